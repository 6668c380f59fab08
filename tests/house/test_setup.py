"""What `make` installs, and with which program, on stand-ins of python, uv and pip."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from finemem_lib.util.provenance import workbench_root

FILES = ("Makefile", "pyproject.toml", "constraints.txt", "release/install.sh")
PYTHON = """#!/bin/sh
case "$*" in
  "-m venv .venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python && cp "$0" .venv/bin/finemem ;;
  "-m pip config list") printf '%s' "$PIP_SAYS" ;;
  *) echo "$(basename "$0") $*" >> calls ;;
esac
"""
UV = """#!/bin/sh
echo "uv $*" >> calls
exit $UV_CODE
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the project's Makefile, where python and uv write down how they are called."""
    (tmp_path / "release").mkdir()
    for name in FILES:
        shutil.copy(workbench_root() / name, tmp_path / name)
    for name, source in (("python3", PYTHON), ("uv", UV)):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(source)
        program.chmod(0o755)
    return tmp_path


def make(
    checkout: Path, target: str, pip_says: str = "", uv_code: int = 0
) -> tuple[str, list[str]]:
    """Return what `make` prints, and the calls that install something or run the command."""
    done = subprocess.run(
        ["make", target],
        cwd=checkout,
        env={
            "PATH": f"{checkout / 'bin'}:{os.environ['PATH']}",
            "PIP_SAYS": pip_says,
            "UV_CODE": str(uv_code),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    calls = (checkout / "calls").read_text().splitlines()
    return done.stdout, [call for call in calls if "install" in call or "finemem" in call]


def test_uv_installs_what_a_run_needs_and_the_cpu_build_where_there_is_no_gpu(checkout):
    printed, calls = make(checkout, "run")
    assert "Installed by uv" in printed
    assert len(calls) == 2 and calls[1] == "finemem run --figures"
    assert calls[0].startswith("uv pip install") and "--torch-backend auto" in calls[0]
    assert calls[0].endswith("--constraint constraints.txt --editable .[figures,real]")


def test_a_second_run_installs_nothing(checkout):
    make(checkout, "run")
    _, calls = make(checkout, "run")
    assert [call for call in calls if "install" in call] == calls[:1]


@pytest.mark.parametrize(
    ("pip_says", "uv_code", "tried"),
    [("global.index-url='https://index.example/simple'", 0, 0), ("", 1, 1)],
)
def test_pip_installs_where_it_is_configured_and_where_uv_fails(checkout, pip_says, uv_code, tried):
    printed, calls = make(checkout, "run", pip_says, uv_code)
    assert "Installed by pip" in printed and "Installed by uv" not in printed
    assert len([call for call in calls if call.startswith("uv")]) == tried
    assert calls[tried].startswith("python -m pip install")


def test_tests_and_tools_come_with_the_first_target_that_needs_them(checkout):
    _, calls = make(checkout, "setup")
    assert [call.rpartition(" ")[2] for call in calls] == [".[figures,real]", ".[test]"]


def test_the_site_brings_what_it_is_built_with(checkout):
    _, calls = make(checkout, "docs")
    installed = [call.rpartition(" ")[2] for call in calls if "install" in call]
    assert installed == [".[figures,real]", ".[docs]"]


def test_a_set_up_that_failed_is_tried_again(checkout):
    failing = PYTHON.replace("*) echo", '"-m pip install"*) exit 1 ;;\n  *) echo')
    (checkout / "bin" / "python3").write_text(failing)
    with pytest.raises(subprocess.CalledProcessError):
        make(checkout, "run", uv_code=1)
    (checkout / "bin" / "python3").write_text(PYTHON)
    _, calls = make(checkout, "run")
    assert calls[-1] == "finemem run --figures"
    assert [call.split()[0] for call in calls[:-1]] == ["uv", "uv"]
