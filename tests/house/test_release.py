"""What people take home: sdist and wheel, the container, licences, the audit, cards, the checks."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile

import pytest
import yaml
from packaging.specifiers import SpecifierSet

import finemem_lib
from finemem_lib.cli.init import PATTERNS
from tests.helpers.benchmarks import benchmark_module
from tests.helpers.paths import ROOT
from tests.helpers.patience import LAST_RESORT

check = benchmark_module("check", "release")
audit = benchmark_module("audit", "release")
licences = benchmark_module("licences", "release")
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


# ---- sdist and wheel -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """An sdist of the working tree, and the wheel built from that sdist."""
    if not (ROOT / ".git").exists():
        pytest.skip("git tells which files belong to the repository; this is no clone")
    place = tmp_path_factory.mktemp("release")
    check.copy_sources(place / "source")
    return check.build(place / "source", place / "dist", "--no-isolation")


def test_both_carry_what_they_should_and_state_the_same(built):
    check.check_metadata(*built)
    check.check_contents(*built)
    assert built[1].name == f"fine_mem-{finemem_lib.__version__}-py3-none-any.whl"


def test_the_sdist_leaves_out_what_no_build_needs(built):
    with tarfile.open(built[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"setup.py", "LICENSE", "CITATION.cff", "data/tiny_manager/README.md"} <= names
    assert not [name for name in names if re.match(r"tests/|data/(runs|models)/|\.", name)]


@pytest.mark.parametrize(
    ("name", "message"),
    [("finemem_lib/stray.txt", "holds"), (f"{check.CARRIED}notebooks/mine.ipynb", "carries")],
)
def test_a_file_that_git_does_not_have_is_found_in_a_wheel(built, name, message, tmp_path):
    wheel = tmp_path / built[1].name
    wheel.write_bytes(built[1].read_bytes())
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr(name, "x")
    with pytest.raises(check.Failed, match=message):
        check.check_contents(built[0], wheel)


def test_a_file_that_the_wheel_lacks_is_found(built, tmp_path):
    wheel = tmp_path / built[1].name
    with zipfile.ZipFile(built[1]) as whole, zipfile.ZipFile(wheel, "w") as part:
        for name in whole.namelist():
            if not name.endswith("prompts/read.txt"):
                part.writestr(name, whole.read(name))
    with pytest.raises(check.Failed, match=r"lacks 'finemem_lib/prompts/read.txt'"):
        check.check_contents(built[0], wheel)


@pytest.mark.long
def test_the_wheel_alone_makes_a_folder_and_runs_there(built, tmp_path):
    """In an environment that shares the packages of this one, but not this checkout."""
    place = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    python = place / "bin" / "python"
    options = ["--quiet", "--no-deps", "--no-index"]
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", *options, str(built[1])],
        cwd=tmp_path,
        env=check.apart(),  # an egg-info of the checkout would count as installed
        check=True,
    )
    shared = sysconfig.get_path("purelib")
    [packages] = place.glob("lib/python*/site-packages")
    (packages / "shared.pth").write_text(f"{shared}\n")
    environment = check.apart() | {"JUPYTER_PATH": f"{sys.prefix}/share/jupyter"}

    def command(folder, *words):
        return subprocess.run(
            [place / "bin" / words[0], *words[1:]],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=LAST_RESORT,
        )

    outside = command(tmp_path, "finemem", "list")
    assert outside.returncode == 2 and "finemem init" in outside.stderr
    assert command(tmp_path, "finemem", "init", "mine").returncode == 0
    folder = tmp_path / "mine"
    ran = command(folder, "finemem", *check.SHORT_RUN, "--run-id", "first")
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
    assert ran.stdout.splitlines()[-1].startswith("status=ok run=first")
    assert (folder / "data" / "runs" / "first" / "report.html").is_file()
    imported = command(folder, "python", "-c", "import finemem_lib; print(finemem_lib.__file__)")
    assert imported.stdout.strip() == f"{packages}/finemem_lib/__init__.py"
    assert str(ROOT) not in (folder / "data/runs/first/manifest.json").read_text()


# ---- container -----------------------------------------------------------------------------------


def test_the_steps_of_the_container_become_a_script(tmp_path):
    script = check.container_script(DOCKERFILE, ROOT, tmp_path, ["run", "--notebooks", "01"])
    assert "/workbench" not in script.replace(str(tmp_path), "")
    assert script.splitlines()[-1] == "finemem run --notebooks 01"
    steps = [line.partition(" ")[2] for line in DOCKERFILE.splitlines() if line[:4] == "RUN "]
    assert len(steps) > 4
    for step in steps:
        assert step.replace("/workbench", str(tmp_path)) in script
    subprocess.run(["sh", "-n"], input=script, text=True, check=True)


def test_an_instruction_that_would_be_left_out_is_refused(tmp_path):
    with pytest.raises(ValueError, match="VOLUME"):
        check.container_script("FROM x\nVOLUME /runs\n", ROOT, tmp_path, [])


def test_the_containers_have_a_python_that_the_project_takes():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    development = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    images = [*re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE), development["image"]]
    for image in images:
        version = re.fullmatch(r"python:([\d.]+)(-slim)?", image)[1]
        assert SpecifierSet(project["requires-python"]).contains(f"{version}.0")
    makefile = (ROOT / "Makefile").read_text()
    for target in development["postCreateCommand"].removeprefix("make ").split():
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_the_container_leaves_the_environment_and_runs_outside():
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".git", ".venv", "data/runs", "data/models"} <= {*ignored}


# ---- version, licences, audit --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("heading", "released", "wrong"),
    [
        ("9.9.9 - 2026-12-01", "version: 9.9.9\ndate-released: 2026-12-01", None),
        ("9.9.9 - 2026-12-01", "version: 9.9.8\ndate-released: 2026-12-01", "states version 9.9.8"),
        ("9.9.9 - 2026-12-01", "version: 9.9.9\ndate-released: 2026-12-02", "2026-12-02"),
        ("9.9.9 - 2026-12-01", "version: 9.9.9", "date-released None"),
        ("Unreleased", "version: 9.9.9\ndate-released: 2026-12-01", "rename Unreleased"),
    ],
)
def test_a_release_has_one_version_and_one_date(heading, released, wrong, tmp_path):
    (tmp_path / "finemem_lib").mkdir()
    (tmp_path / "finemem_lib" / "__init__.py").write_text('__version__ = "9.9.9"\n')
    (tmp_path / "CITATION.cff").write_text(released)
    (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n## {heading}\n")
    state, text = check.carried_out(lambda: check.check_version(tmp_path))
    assert state == ("failed" if wrong else "ok")
    assert (wrong or "9.9.9 of 2026-12-01") in text


def test_every_licence_of_the_pinned_packages_is_allowed_or_excepted():
    found, _ = licences.licences()
    assert len(found) > 150
    assert not licences.problems(found, licences.rules())


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"tqdm": "MIT"}, "remove the exception"),
        ({"tqdm": "GPL-3.0-only"}, "excepted as MPL-2.0 AND MIT"),
        ({"numpy": "MIT AND GPL-3.0-only"}, "expected one that release/licences.yaml allows"),
        ({"numpy": "unknown"}, "expected one that release/licences.yaml allows"),
        ({"numpy": "(MIT OR Apache-2.0) AND ISC"}, None),
    ],
)
def test_a_licence_that_is_not_allowed_is_named(found, message):
    wrong = licences.problems(found, licences.rules())
    assert [message in line for line in wrong] == ([True] if message else [])


PACKAGE = {"name": "idna", "version": "3.20", "vulns": []}
KNOWN = {"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["3.21"]}


@pytest.mark.parametrize(
    ("answer", "code", "says"),
    [
        ({"dependencies": [PACKAGE]}, 0, "1 packages, no known vulnerability"),
        ({"dependencies": [PACKAGE | {"vulns": [KNOWN]}]}, 1, "idna 3.20: PYSEC-1, fixed by 3.21"),
        ({"dependencies": [PACKAGE, {"name": "x", "skip_reason": "why"}]}, 2, "not audited: 1 of"),
        (None, 2, "not audited: no connection"),
    ],
)
def test_an_audit_says_what_is_known_and_when_there_was_none(answer, code, says, capsys):
    """Incident: pip-audit ends with 0 when the service knows none of the packages."""
    printed = "" if answer is None else json.dumps(answer)
    assert audit.main(lambda: (printed, "first\nno connection\n")) == code
    assert says in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("exception", "wrong"),
    [
        ({"id": "CVE-1", "package": "idna", "reason": "not used"}, []),
        ({"id": "CVE-1", "package": "idna", "reason": " "}, ["raise the pin"]),
        ({"id": "CVE-2", "package": "idna", "reason": "old"}, ["raise the pin", "remove the exc"]),
    ],
)
def test_an_exception_has_a_reason_and_a_use(exception, wrong):
    found = audit.judged([PACKAGE | {"vulns": [KNOWN]}], [exception])
    assert len(found) == len(wrong) and all(map(str.__contains__, found, wrong))


def test_the_workflow_calls_targets_of_make():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "audit.yml").read_text())
    commands = [step["run"] for step in workflow["jobs"]["audit"]["steps"] if "run" in step]
    assert commands == ["make audit"]
    paths = workflow[True]["push"]["paths"]  # YAML reads the key "on" as true
    assert paths and all((ROOT / path).is_file() for path in paths)


def test_the_exceptions_and_the_pins_of_the_audit_can_be_read():
    exceptions = yaml.safe_load((ROOT / "release" / "audit.yaml").read_text())["exceptions"]
    assert all({"id", "package", "reason"} <= {*one} for one in exceptions)
    assert "constraints.txt" in audit.COMMAND and (ROOT / "constraints.txt").is_file()


# ---- cards ---------------------------------------------------------------------------------------

SHIPPED = sorted({ROOT / pattern.partition("/*")[0] for pattern in PATTERNS.read_text().split()
                  if pattern.startswith("data/")})  # fmt: skip


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name)
def test_shipped_models_and_data_have_a_card(folder):
    card = (folder / "README.md").read_text(encoding="utf-8")
    weights = [path.name for path in folder.glob("*.safetensors")]
    if weights:
        _, head, text = card.split("---\n", 2)
        assert yaml.safe_load(head)["license"] == "apache-2.0"
        assert "Made by `python -m finemem_lib." in text
        assert "demonstrations" in text and "## Measured" in text
        assert (weights == ["adapter_model.safetensors"]) == ("base_model" in yaml.safe_load(head))
    else:
        assert re.search(r"licen[cs]e", card)
    for rows in folder.glob("*.jsonl"):
        made = json.loads(rows.with_suffix(".json").read_text(encoding="utf-8"))
        assert re.fullmatch(r"[0-9a-f]{40}", made.get("commit") or made["git"]["commit"])
        assert f"`{rows.name}`" in card, f"{folder.name}/README.md lacks {rows.name}"
    for table in folder.glob("*.parquet"):
        assert f"`{table.name}`" in card, f"{folder.name}/README.md lacks {table.name}"


def test_every_file_of_data_that_is_a_model_or_a_table_is_shipped_with_its_card():
    kinds = ("*.safetensors", "*.parquet", "*.jsonl")
    skipped = (ROOT / "data" / "runs", ROOT / "data" / "models")
    places = {
        path.parent
        for kind in kinds
        for path in (ROOT / "data").rglob(kind)
        if not any(path.is_relative_to(folder) for folder in skipped)
    }
    assert places == {*SHIPPED}


def test_a_check_in_an_environment_of_its_own_finds_nothing_of_the_checkout():
    given = {**os.environ, "PYTHONPATH": str(ROOT), "VIRTUAL_ENV": "x", "FINEMEM_RUNS_DIR": "y"}
    assert not {"PYTHONPATH", "VIRTUAL_ENV", "FINEMEM_RUNS_DIR"} & {*check.apart(given)}
