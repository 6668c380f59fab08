"""The environment files, the README and the citation say the same thing as the project."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.helpers.paths import ROOT
from tests.helpers.patience import LAST_RESORT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ASKED_FOR = (
    "jupyterlab ipywidgets plotly torch transformers unsloth trl rank-bm25 papermill nbval"
).split()


def pins() -> dict[str, str]:
    found = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            found[canonicalize_name(name)] = version
    return found


def declared() -> list[Requirement]:
    extras = PYPROJECT["project"]["optional-dependencies"]
    lines = [PYPROJECT["project"]["dependencies"], *extras.values()]
    return [Requirement(line) for group in lines for line in group]


def environment_pip_lines() -> list[str]:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    return next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))


def test_every_declared_dependency_is_pinned_inside_its_range():
    for requirement in declared():
        version = pins().get(canonicalize_name(requirement.name))
        assert version, f"{requirement.name} has no line in constraints.txt"
        assert requirement.specifier.contains(version), f"{requirement} excludes {version}"


def test_every_dependency_is_imported_by_the_library_or_a_notebook():
    """What only tests import belongs to the test extra. JupyterLab is started, never imported; the
    explorers' widget is one of ipywidgets by way of anywidget, whose base class it is."""
    modules = {"beautifulsoup4": "bs4", "pyyaml": "yaml"}
    paths = [*ROOT.glob("finemem_lib/**/*.py"), *ROOT.glob("notebooks/*.ipynb")]
    source = "\n".join(path.read_text(encoding="utf-8") for path in paths)
    for line in PYPROJECT["project"]["dependencies"]:
        name = canonicalize_name(Requirement(line).name)
        module = modules.get(name, name.replace("-", "_"))
        used = re.search(rf"\b(?:import|from) {module}\b", source)
        assert used or name in ("jupyterlab", "ipywidgets"), f"nothing imports {name}"


def test_environment_file_holds_the_packages_asked_for_at_the_pinned_versions():
    lines = environment_pip_lines()
    named = {
        canonicalize_name(line.split("==")[0]): line.split("==")[1]
        for line in lines
        if not line.startswith("-")
    }
    assert set(ASKED_FOR) <= set(named)
    assert {name: pins()[name] for name in named} == named
    assert "--constraint constraints.txt" in lines
    assert "--editable .[gpu,test]" in lines


def test_the_environment_file_brings_other_extras_with_the_test_extra():
    extras = PYPROJECT["project"]["optional-dependencies"]
    for name in ("app", "dask", "docs", "figures", "real"):
        assert set(extras[name]) <= set(extras["test"])
    assert any(line.startswith("--editable") and "test" in line for line in environment_pip_lines())


def test_environment_file_and_pyproject_agree_on_python():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python = next(line for line in environment["dependencies"] if str(line).startswith("python="))
    assert Requirement(f"python{PYPROJECT['project']['requires-python']}").specifier.contains(
        python.removeprefix("python=") + ".0"
    )


def test_unsloth_stays_out_of_the_cpu_environment():
    """Incident: next to a CPU build of torch, unsloth's torchvision broke `from trl import ...`."""
    project = PYPROJECT["project"]
    for line in project["dependencies"] + project["optional-dependencies"]["test"]:
        assert Requirement(line).name not in {"unsloth", "torchvision", "xformers"}


def test_no_process_compiles_a_grammar_before_it_reads_a_notebook():
    """Incident: from 4.25 on, jsonschema compiles one for a second in all that import nbformat: the
    command, the worker of every notebook, JupyterLab."""
    assert "rfc3987-syntax" not in pins()


@pytest.mark.long
@pytest.mark.network
@pytest.mark.parametrize("extras", ["[test]", "[gpu,test]", "[s3,gcs]"])
def test_all_sets_resolve_without_installing(extras, tmp_path):
    probe = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--quiet",
        "--retries",
        "1",
        "--dest",
        str(tmp_path),
        f"six=={pins()['six']}",
    ]
    if subprocess.run(probe, capture_output=True, timeout=LAST_RESORT).returncode:
        pytest.skip("no package index answers from this machine")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--dry-run",
            "--quiet",
            "--constraint",
            "constraints.txt",
            f".{extras}",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LAST_RESORT,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_citation_names_both_papers_and_the_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    papers = {entry["identifiers"][0]["value"] for entry in citation["references"]}
    assert papers == {"arXiv:2601.08435", "arXiv:2509.25911"}
    import finemem_lib

    assert citation["version"] == finemem_lib.__version__
