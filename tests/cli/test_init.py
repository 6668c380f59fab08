"""`finemem init`: what it copies, what it refuses, and that commands then work in that folder."""

from __future__ import annotations

import errno
import json
import os
import subprocess

import pytest

from finemem_lib.cli import init
from finemem_lib.cli.main import main
from finemem_lib.runs.run import runs_folder
from finemem_lib.util import provenance
from finemem_lib.util.provenance import FOLDER_MARK, workbench_root
from tests.helpers.paths import ROOT


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A folder of `finemem init`, in which the test works."""
    monkeypatch.delenv("FINEMEM_RUNS_DIR", raising=False)
    folder = tmp_path / "a folder"
    assert main(["init", str(folder)]) == 0
    monkeypatch.chdir(folder)
    return folder


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*")}


def test_the_folder_holds_copies_of_what_lies_in_the_repository(made):
    names = {path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file()}
    assert {
        "notebooks/04_grpo_training.ipynb",
        "notebooks/profiles/default.yaml",
        "notebooks/designs/schemes.yaml",
        "notebooks/models/smollm2.yaml",
        "data/tiny_manager/model.safetensors",
        "data/tiny_layers_manager/model.safetensors",
        "schedulers/nightly.sh",
    } <= names
    for name in names - {FOLDER_MARK}:
        assert (made / name).read_bytes() == (ROOT / name).read_bytes()
    assert os.access(made / "schedulers" / "nightly.sh", os.X_OK)


def test_every_file_of_the_notebooks_folder_travels():
    """A new kind of file there needs a line in workbench_files.txt."""
    if not (ROOT / ".git").exists():
        pytest.skip("git tells which files belong to the repository; this is no clone")
    tracked = subprocess.run(
        ["git", "ls-files", "notebooks", "schedulers", "data"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    carried = {path.relative_to(ROOT).as_posix() for path in init.carried_files(ROOT)}
    assert set(tracked) - carried == {"data/ledger.yaml"}  # about the repository's own texts


def test_every_pattern_names_a_file():
    for pattern in init.PATTERNS.read_text().split():
        assert any(ROOT.glob(pattern)), pattern


def test_commands_use_the_folder_and_what_was_edited_there(made, monkeypatch, capsys):
    monkeypatch.chdir(made / "notebooks" / "profiles")
    assert workbench_root() == made
    assert runs_folder() == made / "data" / "runs"
    profile = made / "notebooks" / "profiles" / "mine.yaml"
    profile.write_text("description: d\nnotebooks: ['77']\n")
    assert main(["run", "--profile", "mine"]) == 2
    assert "77" in capsys.readouterr().err


def test_outside_such_a_folder_a_checkout_is_used(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert workbench_root() == ROOT


def test_the_nearest_folder_is_used_and_none_of_another_account(tmp_path, monkeypatch):
    """Who executes notebooks of another account runs that account's code."""
    (tmp_path / FOLDER_MARK).write_text("{}")
    checkout = tmp_path / "checkout"
    (checkout / "notebooks" / "profiles").mkdir(parents=True)
    module = checkout / "finemem_lib" / "util" / "provenance.py"
    monkeypatch.setattr(provenance, "__file__", str(module))
    monkeypatch.chdir(checkout / "notebooks")
    assert workbench_root() == checkout
    monkeypatch.chdir(tmp_path)
    assert workbench_root() == tmp_path
    monkeypatch.setattr(provenance.os, "getuid", lambda: (tmp_path.stat().st_uid or 1) + 1)
    monkeypatch.setattr(provenance, "ROOT_UID", -1)
    assert workbench_root() == checkout


def test_without_folder_and_checkout_the_command_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FINEMEM_RUNS_DIR", raising=False)
    installed = tmp_path / "site-packages" / "finemem_lib" / "util" / "provenance.py"
    monkeypatch.setattr(provenance, "__file__", str(installed))
    assert main(["run"]) == 2
    error = capsys.readouterr().err
    assert str(tmp_path) in error and "run `finemem init FOLDER`, then `cd FOLDER`" in error


@pytest.mark.parametrize("again", ["in place", "file", "nested file"])
def test_a_folder_that_is_not_empty_is_left_as_it_is(again, made, tmp_path, capsys):
    target = made
    if again != "in place":
        (tmp_path / "file").write_text("mine")
        target = tmp_path / "file" / ("x" if again == "nested file" else "")
    before = contents(tmp_path)
    assert main(["init", str(target)]) == 2
    error = capsys.readouterr().err
    assert ("is not empty" if again == "in place" else "is no folder") in error
    assert "expected" in error and contents(tmp_path) == before


@pytest.mark.parametrize("end", [".tmp", ".former"])
def test_what_lies_under_a_name_that_is_needed_is_left_as_it_is(end, tmp_path, capsys):
    work = tmp_path / f"mine{end}" / "work"
    work.parent.mkdir()
    work.write_text("mine")
    assert main(["init", str(tmp_path / "mine")]) == 2
    assert "move it away" in capsys.readouterr().err and work.read_text() == "mine"
    assert [*tmp_path.iterdir()] == [work.parent]


def test_an_empty_folder_is_filled_unless_it_is_the_working_directory(
    tmp_path, monkeypatch, capsys
):
    (tmp_path / "empty").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert main(["init", "."]) == 2
    assert "the folder you are in" in capsys.readouterr().err
    assert main(["init", "../empty"]) == 0
    assert (tmp_path / "empty" / FOLDER_MARK).is_file()
    assert not any((tmp_path / "here").iterdir())


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch, capsys):
    copied = []

    def full_after_three(source, target):
        if len(copied) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        copied.append(target.write_bytes(source.read_bytes()))

    monkeypatch.setattr(init.shutil, "copyfile", full_after_three)
    assert main(["init", str(tmp_path / "new")]) == 1
    printed = capsys.readouterr()
    assert "No space left on device" in printed.err and "status=failed" in printed.out
    assert not list(tmp_path.iterdir())


def test_what_another_process_wrote_meanwhile_stays(tmp_path, monkeypatch):
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.setattr(init, "check_folder", lambda folder: (folder / "theirs").write_text("x"))
    assert main(["init", str(folder)]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
    assert [path.name for path in folder.iterdir()] == ["theirs"]


@pytest.mark.parametrize(
    ("mark", "warned"),
    [(json.dumps({"version": "0.0.9"}), True), ("{}", False), ("[1]", False), ("", False)],
)
def test_a_folder_of_another_version_is_named(made, mark, warned):
    assert init.version_note() == ""
    (made / FOLDER_MARK).write_text(mark)
    assert ("was made by version 0.0.9" in init.version_note()) is warned
