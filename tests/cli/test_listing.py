"""`finemem list --json`, `finemem clean`, examples in the help, completion, and the last line."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys

import pytest

from finemem_lib.cli import clean, examples, main as command_line
from finemem_lib.cli.main import main
from finemem_lib.cli.manifest import read_manifest
from finemem_lib.util.files import exclusive_lock
from tests.helpers.paths import ROOT
from tests.helpers.patience import LAST_RESORT
from tests.helpers.run_samples import make_bare_run, notebook_entry

GONE = {"pid": 2**22 + 1, "created": 0.0, "host": "another"}


@pytest.fixture
def runs_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("FINEMEM_RUNS_DIR", str(tmp_path / "runs"))
    return tmp_path / "runs"


def make(runs_dir, name, day, status="ok", **changes):
    """Write a run that started on that day of a month."""
    entry = notebook_entry("01_x", status="ok" if status == "ok" else "not run")
    return make_bare_run(
        runs_dir / name,
        **{"status": status, "started": f"2026-01-{day:02}", "notebooks": [entry]} | changes,
    )


def last_line(printed):
    return dict(one.split("=", 1) for one in shlex.split(printed.splitlines()[-1]))


# ---- list ----------------------------------------------------------------------------------------


def test_list_as_json_says_what_the_table_says_and_more(runs_dir, capsys):
    make(runs_dir, "later", 2, seconds=12.5, exit_code=0)
    make(runs_dir, "earlier", 1, status="failed", error="01_x: no")
    (runs_dir / "broken").mkdir()
    (runs_dir / "broken" / "manifest.json").write_text("{")
    assert main(["list", "--json"]) == 0
    broken, earlier, later = json.loads(capsys.readouterr().out)
    assert (broken["run"], broken["status"]) == ("broken", "unreadable")
    assert "no readable manifest" in broken["error"]
    assert later == {
        "started": "2026-01-02",
        "run": "later",
        "status": "ok",
        "profile": "default",
        "seed": 7,
        "notebooks": 1,
        "ok": 1,
        "seconds": 12.5,
        "error": None,
        "exit_code": 0,
        "folder": str(runs_dir / "later"),
    }
    assert (earlier["ok"], earlier["error"]) == (0, "01_x: no")


def test_list_of_no_runs_is_json_too(runs_dir, capsys):
    assert main(["list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


# ---- clean ---------------------------------------------------------------------------------------


def test_clean_keeps_the_newest_and_the_last_good_run(runs_dir, capsys):
    for day, (name, status) in enumerate(
        [("old", "ok"), ("good", "ok"), ("bad", "failed"), ("worse", "timeout"), ("new", "failed")],
        start=1,
    ):
        make(runs_dir, name, day, status)
    assert main(["clean", "--keep", "1", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert last_line(shown)["would_remove"] == "3" and last_line(shown)["removed"] == "0"
    assert len([*runs_dir.iterdir()]) == 5
    assert main(["clean", "--keep", "1"]) == 0
    shown = capsys.readouterr().out
    assert sorted(path.name for path in runs_dir.iterdir()) == ["good", "new"]
    assert re.search(r"good +ok +stays: the last one that is ok", shown)
    assert re.search(r"old +ok +\d+\.\d +removed", shown)
    found = last_line(shown)
    assert (found["status"], found["removed"], found["kept"]) == ("ok", "3", "2")
    assert main(["clean", "--keep", "1"]) == 0
    assert last_line(capsys.readouterr().out)["removed"] == "0"


def test_clean_keeps_what_runs_and_what_an_unfinished_run_needs(runs_dir, capsys):
    make(runs_dir, "base", 1)
    make(runs_dir, "between", 2, "failed", reuse="base")
    make(runs_dir, "unneeded", 3)
    make(runs_dir, "running", 4, "running", reuse="between")
    make(runs_dir, "elsewhere", 5, "running", process=GONE)  # nobody can tell
    make(runs_dir, "finished", 6, reuse="unneeded")
    assert main(["clean", "--keep", "1"]) == 0
    stays = {path.name for path in runs_dir.iterdir()}
    assert stays == {"base", "between", "running", "elsewhere", "finished"}


def test_clean_leaves_alone_what_it_does_not_know(runs_dir, capsys, tmp_path):
    make(runs_dir, "good", 3)
    make(runs_dir, "copied", 1).rename(runs_dir / "kept-by-hand")  # has another run's id
    make(tmp_path, "linked", 1)
    (runs_dir / "linked").symlink_to(tmp_path / "linked")
    for name in ("lab", "broken"):
        (runs_dir / name).mkdir()
    (runs_dir / "broken" / "manifest.json").write_text("{")
    assert main(["clean", "--keep", "1"]) == 0
    stays = {path.name for path in runs_dir.iterdir()}
    assert stays == {"good", "kept-by-hand", "linked", "lab", "broken"}
    assert (tmp_path / "linked" / "manifest.json").exists()


def test_clean_leaves_a_run_to_the_process_that_is_just_resuming_it(runs_dir, capsys):
    make(runs_dir, "good", 3)
    folder = make(runs_dir, "resuming", 1, "failed")
    with exclusive_lock(folder / "resume.lock", "busy"):
        assert main(["clean", "--keep", "1"]) == 1
    shown = capsys.readouterr()
    assert "resuming stays: another process is just resuming it" in shown.err
    assert (folder / "manifest.json").exists() and last_line(shown.out)["removed"] == "0"


def test_clean_goes_on_with_what_an_interrupted_one_has_begun(runs_dir, capsys):
    make(runs_dir, "good", 3)
    make(runs_dir, f".half{clean.REMOVED}", 1)
    make_bare_run(runs_dir / ".being.made.123.tmp")
    assert main(["clean", "--keep", "1"]) == 0
    assert sorted(path.name for path in runs_dir.iterdir()) == [".being.made.123.tmp", "good"]


@pytest.mark.parametrize("number", ["0", "-1", "all"])
def test_clean_keeps_at_least_one_run(runs_dir, number, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["clean", "--keep", number])


def test_reasons_to_stay_end_where_runs_reuse_each_other(runs_dir):
    runs = [
        read_manifest(make(runs_dir, name, 1, "failed", reuse=reuse))
        for name, reuse in (("a", "b"), ("b", "a"), ("c", None))
    ]
    assert {*clean.reasons_to_stay(runs, 1)} == {"a", "b"}


# ---- help, completion, the last line -------------------------------------------------------------


def commands():
    parser = command_line.make_parser()
    return next(
        action.choices
        for action in parser._actions
        if hasattr(action, "choices") and isinstance(action.choices, dict)
    )


@pytest.mark.parametrize("name", sorted(examples.EXAMPLES))
def test_every_help_ends_with_examples_that_the_command_line_takes(name, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([name, "--help"])
    shown = capsys.readouterr().out
    for example in examples.EXAMPLES[name]:
        assert f"\n  {example}\n" in shown
        words = shlex.split(re.sub(r'^eval "\$\((.*)\)"$', r"\1", example))
        assert words[:2] == ["finemem", name]
        command_line.make_parser().parse_args(words[1:])
        for path in words:  # those of the repository are there
            if re.match("(notebooks|data)/.*[.]", path):
                assert (ROOT / path).exists(), path


def test_every_command_has_an_example():
    assert {*commands()} == {*examples.EXAMPLES}


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("finemem re", {"recredit", "report", "rescore", "resume"}),
        ("finemem diff --fail", {"--fail-over"}),
        ("finemem resume n", {"nightly-1", "nightly-2"}),
        ("finemem diff nightly-1 nightly-2", {"nightly-2"}),
        ("finemem run --profile qwen3-4b", {"qwen3-4b-24gb", "qwen3-4b-80gb"}),
        ("finemem run --set 04.num_gen", {"04.num_generations="}),
        ("finemem run --notebooks 1", {"10", "11", "12"}),
        ("finemem completion f", {"fish"}),
    ],
)
def test_a_shell_that_asks_gets_the_words_that_fit(typed, expected, runs_dir, tmp_path):
    pytest.importorskip("argcomplete")
    for day in (1, 2):
        make(runs_dir, f"nightly-{day}", day)
    answer = tmp_path / "answer"
    asked = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
        "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "COMP_LINE": typed,
        "COMP_POINT": str(len(typed)),
    }
    subprocess.run(
        [sys.executable, "-m", "finemem_lib"], env={**os.environ, **asked}, timeout=LAST_RESORT
    )
    assert {word.strip() for word in answer.read_text().split("\n")} == expected


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_the_code_of_a_shell(shell, capsys):
    pytest.importorskip("argcomplete")
    assert main(["completion", shell]) == 0
    assert "finemem" in capsys.readouterr().out


def test_completion_without_its_package_is_a_sentence(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "argcomplete.shell_integration", None)
    monkeypatch.setitem(sys.modules, "argcomplete", None)
    assert main(["completion", "bash"]) == 2
    assert "pip install argcomplete" in capsys.readouterr().err


ENDING = {
    "app",
    "report",
    "rescore",
    "recredit",
    "sweep",
    "diff",
    "clean",
    "copy",
    "export",
    "questions",
    "build",
    "fetch",
    "pictures",
}


def test_commands_that_end_something_say_so_in_a_last_line():
    """`finemem run` and `resume` print theirs themselves; the others only show something."""
    said = {name for name, one in commands().items() if one.get_default("last_line")}
    assert said == ENDING
    assert {*commands()} - said == {
        "run",
        "resume",
        "list",
        "plan",
        "arena",
        "ledger",
        "completion",
    }


def test_an_interrupted_command_says_so_in_its_last_line(monkeypatch, capsys):
    def interrupted(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(clean, "clean_command", interrupted)
    assert main(["clean", "--keep", "1"]) == 130
    assert last_line(capsys.readouterr().out)["status"] == "interrupted"
