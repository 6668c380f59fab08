"""Copies of runs in object storage: with papermill's handler replaced, and on a local S3 server."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import socket
import subprocess
import sysconfig
import urllib.error
import urllib.request

import papermill.iorw
import pytest

from finemem_lib.cli import copying
from finemem_lib.cli.execute import Outcome
from finemem_lib.cli.main import main
from tests.helpers.environments import environment_with
from tests.helpers.paths import ROOT
from tests.helpers.patience import LAST_RESORT, wait_until
from tests.helpers.run_samples import make_bare_run
from tests.helpers.small_notebooks import FIRST, PASS_ON, THIRD, make_notebooks

KEY, SECRET = "KEYNEVERTOBEKEPT", "secret-never-to-be-kept"


@pytest.fixture
def runs_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("FINEMEM_RUNS_DIR", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture
def bucket(monkeypatch):
    """What papermill's handler of s3:// was given, by address; `bucket.broken` fails once."""

    class Bucket(dict):
        broken: str | None = None

    kept = Bucket()

    def write(text, path):
        if kept.broken and kept.broken in path:
            raise OSError("the connection is gone\n\x1b[2J")
        kept[path] = text

    monkeypatch.setattr(papermill.iorw.S3Handler, "write", write)
    monkeypatch.setitem(copying.EXTRAS, "s3", ("s3", "papermill"))
    return kept


def made(runs_dir):
    folder = make_bare_run(runs_dir / "done", status="ok")
    (folder / "notebooks").mkdir()
    for name in ("01_x.ipynb", "02_y.ipynb"):
        (folder / "notebooks" / name).write_text(f'{{"name": "{name}"}}')
    (folder / "report.html").write_text("<p>röport</p>", encoding="utf-8")
    return folder


def test_notebooks_and_report_arrive_and_then_the_manifest(runs_dir, bucket, capsys):
    folder = made(runs_dir)
    assert main(["copy", "done", "s3://results/nightly/"]) == 0
    names = ["notebooks/01_x.ipynb", "notebooks/02_y.ipynb", "report.html", "manifest.json"]
    assert [*bucket] == [f"s3://results/nightly/done/{name}" for name in names]
    for name, text in zip(names, bucket.values(), strict=True):
        assert text == (folder / name).read_text(encoding="utf-8")
    shown = capsys.readouterr().out
    assert "copied: 4 files to s3://results/nightly/done" in shown
    assert shown.splitlines()[-1].startswith("status=ok run=done copied=4 of=4 ")


def test_an_address_of_google_goes_to_its_handler(runs_dir, monkeypatch):
    made(runs_dir)
    kept = {}
    monkeypatch.setattr(
        papermill.iorw.GCSHandler, "write", lambda _, text, to: kept.update({to: 1})
    )
    monkeypatch.setitem(copying.EXTRAS, "gs", ("gcs", "papermill"))
    assert main(["copy", "done", "gs://results"]) == 0
    assert len(kept) == 4 and {path[:18] for path in kept} == {"gs://results/done/"}


def test_what_does_not_arrive_is_named_and_leaves_the_copy_without_manifest(
    runs_dir, bucket, capsys
):
    made(runs_dir)
    bucket.broken = "02_y"
    assert main(["copy", "done", "s3://results"]) == 1
    shown = capsys.readouterr()
    assert [path.rpartition("/")[2] for path in bucket] == ["01_x.ipynb", "report.html"]
    assert "not copied: notebooks/02_y.ipynb (OSError: the connection is gone" in shown.err
    assert "\x1b" not in shown.err
    assert "2 of 4 files are not at s3://results/done" in shown.err
    assert "finemem copy done s3://results" in shown.err
    assert shown.out.splitlines()[-1].startswith("status=failed run=done copied=2 of=4 ")
    bucket.broken = None
    assert main(["copy", "done", "s3://results"]) == 0
    assert "s3://results/done/manifest.json" in bucket


@pytest.mark.parametrize(
    ("broken", "code", "said"),
    [(None, 0, ("ok", "yes")), ("report", 1, ("failed", "no"))],
)
def test_a_run_is_copied_when_it_has_ended(tmp_path, runs_dir, bucket, capsys, broken, code, said):
    bucket.broken = broken
    notebooks = make_notebooks(tmp_path / "notebooks", {FIRST: PASS_ON[FIRST]})
    words = ["run", "--notebooks-dir", str(notebooks), "--run-id", "r", "--copy-to", "s3://results"]
    assert main(words, lambda *_: Outcome("ok")) == code
    last = capsys.readouterr().out.splitlines()[-1]
    assert re.fullmatch(rf"status={said[0]} run=r seconds=\d+ copied={said[1]}", last)
    kept = json.loads((runs_dir / "r" / "manifest.json").read_text())
    assert (kept["status"], kept["exit_code"]) == ("ok", 0), "the run itself is whole"
    assert ("s3://results/r/manifest.json" in bucket) == (code == 0)


def test_without_the_extra_nothing_starts(tmp_path, runs_dir, capsys, monkeypatch):
    monkeypatch.setitem(copying.EXTRAS, "gs", ("gcs", "no_such_module"))
    notebooks = make_notebooks(tmp_path / "notebooks", {FIRST: PASS_ON[FIRST]})
    words = ["run", "--notebooks-dir", str(notebooks), "--copy-to", "gs://results"]
    assert main(words, lambda *_: pytest.fail("a notebook was started")) == 2
    assert "gs://results needs the extra gcs" in capsys.readouterr().err
    assert not runs_dir.exists()
    made(runs_dir)
    assert main(["copy", "done", "gs://results"]) == 2
    assert main(["copy", "nothing", "gs://results"]) == 2


@pytest.mark.parametrize(
    "text",
    [
        f"s3://{KEY}:{SECRET}@results/x",
        f"s3://results/x?key={SECRET}",
        "s3:/results",
        "s3://",
        "https://results/x",
        "folder",
        "s3://results/../x y",
    ],
)
def test_an_address_that_may_hold_credentials_or_is_none_is_refused(text, capsys):
    with pytest.raises(
        argparse.ArgumentTypeError, match="give credentials in environment"
    ) as refused:
        copying.address(text)
    assert SECRET not in str(refused.value) and KEY not in str(refused.value)
    with pytest.raises(SystemExit):
        main(["copy", "done", text])
    assert SECRET not in capsys.readouterr().err


# ---- a local S3 server ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_boto(tmp_path_factory):
    """An environment with boto3 and a local S3 server, in which the workbench can be imported."""
    folder = environment_with(tmp_path_factory.mktemp("s3") / "env", "moto[server]", "boto3")
    [packages] = folder.glob("lib/python*/site-packages")
    shared = [str(ROOT), sysconfig.get_paths()["purelib"], sysconfig.get_paths()["platlib"]]
    (packages / "workbench.pth").write_text("\n".join(dict.fromkeys(shared)))
    return folder


@pytest.fixture
def storage(with_boto, tmp_path, monkeypatch):
    """The address of an S3 server on loopback with one bucket; the environment leads to it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (tmp_path / "server.log").open("w")
    command = [with_boto / "bin/moto_server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"

    def answers():
        assert server.poll() is None, (tmp_path / "server.log").read_text()
        with contextlib.suppress(OSError):
            request = urllib.request.Request(f"{address}/results", method="PUT")
            return urllib.request.urlopen(request, timeout=60)

    try:
        wait_until(answers)
        for name, value in {
            "AWS_ENDPOINT_URL": address,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("PYTHONPATH", raising=False)
        yield address
    finally:
        server.terminate()
        server.wait(LAST_RESORT)


def command(with_boto, *words):
    done = subprocess.run(
        [with_boto / "bin/python", "-m", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=LAST_RESORT,
        env=os.environ,
    )
    return done.returncode, done.stdout + done.stderr


def stored(with_boto, key):
    """Return an object of the bucket; nobody without credentials may read it."""
    read = (
        "import boto3, sys\n"
        "found = boto3.client('s3').get_object(Bucket='results', Key=sys.argv[1])\n"
        "sys.stdout.buffer.write(found['Body'].read())"
    )
    python = with_boto / "bin/python"
    return subprocess.run([python, "-c", read, key], capture_output=True, check=True).stdout


def assert_no_credentials(*texts):
    assert not [one for one in texts if KEY in one or SECRET in one]


@pytest.mark.nightly
@pytest.mark.network
@pytest.mark.notebook
def test_a_run_arrives_whole_on_a_local_s3_server(with_boto, storage, tmp_path, runs_dir):
    notebooks = make_notebooks(tmp_path / "notebooks", PASS_ON)
    words = ["finemem_lib", "run", "--notebooks-dir", notebooks, "--run-id"]
    code, printed = command(with_boto, *words, "r", "--copy-to", "s3://results/nightly")
    assert code == 0 and "copied=yes" in printed, printed
    folder = runs_dir / "r"
    copied = [f"notebooks/{FIRST}.ipynb", f"notebooks/{THIRD}.ipynb"]
    for name in [*copied, "metrics.json", "report.html", "manifest.json"]:
        assert stored(with_boto, f"nightly/r/{name}") == (folder / name).read_bytes(), name
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(f"{storage}/results/nightly/r/manifest.json")
    kept = [
        one.read_bytes().decode(errors="replace") for one in folder.rglob("*.*") if one.is_file()
    ]
    assert_no_credentials(printed, *kept)
    code, printed = command(with_boto, *words, "lost", "--copy-to", "s3://nowhere/nightly")
    assert code == 1 and "copied=no" in printed and "NoSuchBucket" in printed, printed
    assert "finemem copy lost s3://nowhere/nightly" in printed
    assert_no_credentials(printed)


@pytest.mark.nightly
@pytest.mark.network
@pytest.mark.notebook
def test_bare_papermill_writes_a_notebook_to_s3(with_boto, storage, tmp_path, runs_dir):
    notebook = ROOT / "notebooks" / f"{FIRST}.ipynb"
    profile = ROOT / "notebooks" / "profiles" / "default.yaml"
    words = ["papermill", notebook, "s3://results/out.ipynb", "-f", profile]
    code, printed = command(with_boto, *words, "-p", "max_instances", "2", "--cwd", tmp_path)
    assert code == 0, printed
    text = stored(with_boto, "out.ipynb").decode()
    cells = [one for one in json.loads(text)["cells"] if one["cell_type"] == "code"]
    assert all(one["execution_count"] for one in cells)
    assert_no_credentials(printed, text)
