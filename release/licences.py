"""List the licences of the pinned packages, and check them: `make licences`.

Licences are read from the metadata of what is installed; pins that are not installed here (the
extra gpu on a machine without a GPU) are named in the last line. Exit codes: 0 every licence is
allowed by licences.yaml or excepted there with a reason, 1 one is not.
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
from collections.abc import Mapping
from email.message import Message
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
UNKNOWN = "unknown"


def rules() -> dict[str, Any]:
    """Return licences.yaml: "allowed", "spelled" and "exceptions"."""
    read: dict[str, Any] = yaml.safe_load((ROOT / "release" / "licences.yaml").read_text("utf-8"))
    return read


def pinned() -> list[str]:
    """Return the names of the packages in constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [line.partition("==")[0] for line in lines if "==" in line and line[0] != "#"]


def licence_of(metadata: Message | Any, spelled: Mapping[str, str]) -> str:
    """Return a package's licence as an SPDX expression, or `UNKNOWN`.

    Args:
        metadata: The package's metadata.
        spelled: SPDX ids by how older metadata spell them.
    """
    if expression := metadata.get("License-Expression"):
        return str(expression)
    known = {*spelled.values()}
    stated = (metadata.get("License") or "").strip().partition("\n")[0].strip()
    if spelled.get(stated, stated) in known or re.search(r" (AND|OR) ", stated):
        return spelled.get(stated, stated)
    prefix = "License :: "
    classifiers = [
        str(line).rpartition(" :: ")[2]
        for line in metadata.get_all("Classifier", [])
        if str(line).startswith(prefix)
    ]
    found = sorted({spelled.get(name, name) for name in classifiers if name != "OSI Approved"})
    return " AND ".join(found) or stated or UNKNOWN


def parts(expression: str) -> set[str]:
    """Return all licences of an expression; of those joined by OR, all must be allowed too."""
    return {part.strip(" ()") for part in re.split(r"\b(?:AND|OR)\b", expression)}


def licences() -> tuple[dict[str, str], list[str]]:
    """Return the licences of the pinned packages by name, and the names that are not installed."""
    spelled, found, missing = rules()["spelled"], {}, []
    for name in pinned():
        try:
            found[name] = licence_of(importlib.metadata.metadata(name), spelled)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    return found, missing


def problems(found: Mapping[str, str], given: Mapping[str, Any]) -> list[str]:
    """Return a line for every package whose licence is not allowed, and every idle exception.

    Args:
        found: Licences by package.
        given: The rules of licences.yaml.
    """
    allowed, exceptions = {*given["allowed"]}, given["exceptions"]
    wrong = []
    for name, licence in found.items():
        excepted = exceptions.get(name)
        if parts(licence) <= allowed:
            if excepted:
                wrong.append(f"{name}: {licence} is allowed; remove the exception")
        elif not excepted or not str(excepted.get("reason", "")).strip():
            wrong.append(
                f"{name}: {licence}, expected one that release/licences.yaml allows; add it "
                "there (allowed, spelled, or an exception with a reason), or take another package"
            )
        elif licence not in (excepted["licence"], UNKNOWN):
            wrong.append(f"{name}: {licence}, excepted as {excepted['licence']}; correct it")
    names = {*pinned()}
    wrong += [f"{name}: excepted, but not pinned" for name in exceptions if name not in names]
    return wrong


def main() -> int:
    """Print the licences and what is wrong with them, and return the exit code."""
    found, missing = licences()
    given = rules()
    for name, licence in found.items():
        reason = given["exceptions"].get(name, {}).get("reason")
        version = importlib.metadata.version(name)
        print(f"{name} {version}: {licence}" + (f" (exception: {reason})" if reason else ""))
    wrong = problems(found, given)
    for line in wrong:
        print(line, file=sys.stderr)
    print(
        f"{len(found)} packages with licences that are allowed"
        if not wrong
        else f"{len(wrong)} of {len(found)} packages are not as release/licences.yaml says",
        f"not installed here, so not looked at: {', '.join(missing) or 'none'}",
        sep="; ",
    )
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main())
