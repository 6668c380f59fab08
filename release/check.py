"""Check that a release can be cut from this commit, and that people can install it.

`make release-check` runs this and prints a line per check. Exit codes: 0 all is well, 1 a check
failed, 2 nothing failed, but a check could not be carried out on this machine.
"""

from __future__ import annotations

import email.parser
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import yaml
from packaging.metadata import Metadata

ROOT = Path(__file__).resolve().parents[1]
CARRIED = "finemem_lib/workbench/"
"""Folder of the wheel that `finemem init` copies; setup.py fills it."""

SHORT_RUN = ["run", "--notebooks", "01,04"] + [
    word
    for setting in (
        *("max_instances=2", "num_chunks=4", "updates=1", "held_out=4"),
        *("instances_per_update=2", "num_generations=2"),
    )
    for word in ("--set", setting)
]
"""A run of `finemem` that ends within a minute and uses what the wheel carries."""


class Failed(Exception):
    """A check failed; the message says what was found, what was expected and what to do."""


class NotPossible(Exception):
    """A check could not be carried out here; the message says why and what to do."""


def call(
    *command: str | Path, cwd: Path = ROOT, environment: Mapping[str, str] | None = None
) -> str:
    """Run a command and return what it prints.

    Raises:
        Failed: The command ends with an error; the message holds its last lines.
    """
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        last = "\n".join(done.stdout.splitlines()[-15:])
        raise Failed(f"`{' '.join(map(str, command))}` ended with {done.returncode}:\n{last}")
    return done.stdout


def apart(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return an environment in which Python finds nothing of this checkout."""
    return {
        name: value
        for name, value in environment.items()
        if name not in ("PYTHONPATH", "VIRTUAL_ENV", "FINEMEM_RUNS_DIR")
    }


# What the files say


def check_commit() -> str:
    """Check that everything is committed."""
    if changed := call("git", "status", "--porcelain").splitlines():
        raise Failed(
            f"{len(changed)} files differ from the last commit, such as {changed[0][3:]!r}, "
            "expected none; commit or remove them"
        )
    return call("git", "rev-parse", "--short", "HEAD").strip()


def version_of(root: Path) -> str:
    """Return the version that the library states, without importing it."""
    found = re.search(r'__version__ = "(.+)"', (root / "finemem_lib/__init__.py").read_text())
    assert found is not None
    return found[1]


def check_version(root: Path = ROOT) -> str:
    """Check that CITATION.cff and CHANGELOG.md state the version and one date."""
    version = version_of(root)
    citation = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))
    if citation["version"] != version:
        raise Failed(
            f"CITATION.cff states version {citation['version']}, expected {version}, as "
            "finemem_lib/__init__.py does; correct the one that is wrong"
        )
    headings = re.findall(r"^## (.+)$", (root / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    dated = re.compile(re.escape(version) + r" - (\d{4}-\d\d-\d\d)")
    dates = [found[1] for heading in headings if (found := dated.fullmatch(heading))]
    if len(dates) != 1 or str(citation.get("date-released")) != dates[0]:
        raise Failed(
            f"CHANGELOG.md has the sections {headings[:3]} and CITATION.cff the date-released "
            f"{citation.get('date-released')}, expected a section '{version} - YYYY-MM-DD' and "
            "its date; rename Unreleased, put a new one above it and state the date"
        )
    return f"{version} of {dates[0]}"


# What is built


def copy_sources(target: Path) -> None:
    """Copy the files of the repository, committed or not but for ignored ones, into a folder."""
    listed = call("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file() and not (ROOT / name).is_symlink():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)


def build(source: Path, output: Path, *options: str) -> tuple[Path, Path]:
    """Build an sdist, and a wheel from that sdist; return both.

    Args:
        source: A copy of the repository, in which the build leaves files.
        output: The folder to write to.
        options: Options of `python -m build`.
    """
    pinned = apart() | {"PIP_CONSTRAINT": str(source / "constraints.txt")}
    call(
        sys.executable, "-m", "build", "--outdir", output, *options, source,
        cwd=output.parent, environment=pinned,
    )  # fmt: skip
    [sdist], [wheel] = output.glob("*.tar.gz"), output.glob("*.whl")
    return sdist, wheel


def check_metadata(sdist: Path, wheel: Path) -> str:
    """Check that the metadata of both are valid, equal and complete."""
    with zipfile.ZipFile(wheel) as archive:
        [name] = [one for one in archive.namelist() if one.endswith(".dist-info/METADATA")]
        of_wheel = archive.read(name)
    with tarfile.open(sdist) as archive:
        member = archive.extractfile(f"{sdist.name.removesuffix('.tar.gz')}/PKG-INFO")
        assert member is not None
        of_sdist = member.read()
    if of_wheel != of_sdist:
        raise Failed("metadata of wheel and sdist differ, expected the same; build both again")
    metadata = Metadata.from_email(of_wheel, validate=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    expected = {
        "name": project["name"],
        "version": version_of(ROOT),
        "license_expression": project["license"],
        "license_files": ["LICENSE"],
        "description_content_type": "text/markdown",
    }
    for field, value in expected.items():
        if (got := getattr(metadata, field)) != value and str(got) != value:
            raise Failed(f"metadata: {field} is {got!r}, expected {value!r}; see pyproject.toml")
    if not email.parser.BytesParser().parsebytes(of_wheel).get_payload():
        raise Failed("metadata: no description, expected README.md; see pyproject.toml")
    return f"{metadata.name} {metadata.version}, {metadata.license_expression}"


def check_contents(sdist: Path, wheel: Path) -> str:
    """Check that the wheel holds the library and what `finemem init` copies, and nothing else."""
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    tracked = call("git", "ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    folders = ("notebooks/", "data/", "schedulers/")
    library = {name for name in tracked if name.startswith("finemem_lib/")}
    carried = {name for name in inside if name.startswith(CARRIED)}
    for what, names, remedy in (
        ("lacks", library - inside, "add it to package-data in pyproject.toml"),
        ("holds", inside - library - carried, "remove it, or add it to git"),
        ("carries", {name.removeprefix(CARRIED) for name in carried} - {*tracked}, "add to git"),
    ):
        if names:
            raise Failed(f"{wheel.name} {what} {sorted(names)[0]!r}, expected otherwise; {remedy}")
    for name in packed:
        if name.startswith(folders) and "." in name and name not in tracked:
            raise Failed(f"{sdist.name} holds {name!r}, expected only what git has; remove it")
    return f"{len(inside)} files, {wheel.stat().st_size / 1e6:.1f} MB"


# What is installed


def container_script(dockerfile: str, source: Path, place: Path, command: Sequence[str]) -> str:
    """Return a shell script that does in a folder what a Dockerfile does in a container.

    Args:
        dockerfile: Its text, with the instructions that it says it keeps to.
        source: The build context.
        place: Folder that stands for "/workbench".
        command: Arguments for the entry point instead of CMD.

    Raises:
        ValueError: The text has another instruction.
    """
    lines = ["set -eu"]
    for line in dockerfile.replace("\\\n", " ").splitlines():
        instruction, _, rest = line.partition(" ")
        rest = rest.replace("/workbench", str(place))
        if instruction == "COPY":
            lines += [f"cp -R '{source}/.' '{rest.split()[1]}'"]
        elif instruction == "ENV":
            lines += [f"export {rest}"]
        elif instruction == "RUN":
            lines += [rest]
        elif instruction == "WORKDIR":
            lines += [f"cd {rest}"]
        elif instruction == "ENTRYPOINT":
            lines += [" ".join([*json.loads(rest), *command])]
        elif instruction not in ("", "#", "FROM", "USER", "CMD"):
            raise ValueError(f"Dockerfile: {instruction} is not carried out as a script")
    return "\n".join(lines) + "\n"


def checksums(wheel: Path) -> dict[str, int]:
    """Return the checksum of every file of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return {one.filename: one.CRC for one in archive.infolist()}


def container_engine() -> str | None:
    """Return "docker" or "podman", whichever can build here, or `None`."""
    for engine in ("docker", "podman"):
        if shutil.which(engine):
            done = subprocess.run([engine, "info"], capture_output=True)
            if done.returncode == 0:
                return engine
    return None


def check_install(source: Path, place: Path, wheel: Path) -> str:
    """Build and run the container, else do its steps in an empty folder; both from the wheel.

    Args:
        source: A copy of the repository.
        place: An empty folder.
        wheel: The wheel of the release, which the steps must have built again.
    """
    if engine := container_engine():
        call(engine, "build", "--tag", "fine-mem-check", source)
        printed = call(engine, "run", "--rm", "fine-mem-check", *SHORT_RUN)
        how = f"in a container of {engine}"
    else:
        dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
        script = place.parent / "container.sh"
        script.write_text(container_script(dockerfile, source, place, SHORT_RUN), "utf-8")
        printed = call("sh", script, cwd=place, environment=apart())
        [again] = (place / "wheel").glob("*.whl")
        if checksums(again) != checksums(wheel):
            raise Failed(f"{again.name} was built with other files the second time; see setup.py")
        how = "in an empty environment (no docker or podman here)"
    last = printed.splitlines()[-1]
    if not last.startswith("status=ok"):
        raise Failed(f"the run {how} ended with {last!r}, expected status=ok")
    return f"{last} {how}"


# All checks


def check_licences() -> str:
    """Check the licences of the pinned packages that are installed here."""
    return call(sys.executable, ROOT / "release" / "licences.py").splitlines()[-1]


def check_audit() -> str:
    """Look for known vulnerabilities of the pinned packages."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "release" / "audit.py")], capture_output=True, text=True
    )
    if done.returncode == 2:
        raise NotPossible(done.stderr.strip())
    if done.returncode:
        raise Failed((done.stdout + done.stderr).strip())
    return done.stdout.splitlines()[-1]


def main() -> int:
    """Carry out all checks, print what they find, and return the exit code."""
    with tempfile.TemporaryDirectory(prefix="fine-mem-release-") as temporary:
        place = Path(temporary)
        source, output, installed = place / "source", place / "dist", place / "workbench"
        copy_sources(source)
        installed.mkdir()
        built: list[Path] = []

        def check_build() -> str:
            built.extend(build(source, output))
            return ", ".join(path.name for path in built)

        def outputs() -> list[Path]:
            if not built:
                raise NotPossible("nothing was built; see above")
            return built

        checks: dict[str, Callable[[], str]] = {
            "commit": check_commit,
            "version": check_version,
            "build": check_build,
            "metadata": lambda: check_metadata(*outputs()),
            "contents": lambda: check_contents(*outputs()),
            "licences": check_licences,
            "audit": check_audit,
            "install": lambda: check_install(source, installed, outputs()[1]),
        }
        states = []
        for name, check in checks.items():
            state, text = carried_out(check)
            states.append(state)
            print(f"{state:<12} {name}: {text}", flush=True)
        if "failed" in states:
            return 1
        shutil.rmtree(ROOT / "dist", ignore_errors=True)
        shutil.copytree(output, ROOT / "dist")
    print(f"what was checked lies in {ROOT / 'dist'}")
    return 2 if "not checked" in states else 0


def carried_out(check: Callable[[], str]) -> tuple[str, str]:
    """Return "ok", "failed" or "not checked", and what there is to say."""
    try:
        return "ok", check()
    except Failed as error:
        return "failed", str(error)
    except NotPossible as error:
        return "not checked", str(error)


if __name__ == "__main__":
    raise SystemExit(main())
