"""Look for known vulnerabilities of the pinned packages: `make audit`.

pip-audit asks the vulnerability service of PyPI about every line of constraints.txt. Exceptions
stand with their reasons in audit.yaml. Exit codes: 0 every package was looked up and nothing is
known, 1 a vulnerability or a wrong exception was found, 2 the service did not answer for all.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
COMMAND = (
    *(sys.executable, "-m", "pip_audit", "--requirement", "constraints.txt"),
    *("--no-deps", "--disable-pip", "--progress-spinner", "off", "--format", "json"),
    *("--desc", "off"),
)


def asked(command: Sequence[str] = COMMAND) -> tuple[str, str]:
    """Run pip-audit and return what it prints to stdout and stderr.

    Args:
        command: The command line.
    """
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.stdout, done.stderr


def not_looked_up(why: str) -> int:
    """Say that there was no audit, and return the exit code."""
    print(
        f"not audited: {why}. pip-audit needs the vulnerability service of PyPI; expected an "
        "answer for every line of constraints.txt. Run `make audit` on a machine that reaches it",
        file=sys.stderr,
    )
    return 2


def judged(packages: Sequence[dict[str, Any]], exceptions: Sequence[dict[str, str]]) -> list[str]:
    """Return what is wrong: vulnerabilities without an exception, and exceptions without use.

    Args:
        packages: Those of pip-audit's answer, with "name", "version" and "vulns".
        exceptions: Those of audit.yaml, with "id", "package" and "reason".
    """
    wrong, used = [], set()
    excepted = {(one["package"], one["id"]) for one in exceptions if one["reason"].strip()}
    for package in packages:
        for found in package["vulns"]:
            ids = {(package["name"], name) for name in (found["id"], *found.get("aliases", ()))}
            used |= ids
            if not ids & excepted:
                fixed = ", ".join(found["fix_versions"]) or "no version yet"
                wrong.append(
                    f"{package['name']} {package['version']}: {found['id']}, fixed by {fixed}; "
                    "raise the pin, or state in release/audit.yaml why it does not concern us"
                )
    wrong += [
        f"release/audit.yaml: {package} has no {name} any more; remove the exception"
        for package, name in sorted(excepted - used)
    ]
    return wrong


def main(ask: Callable[[], tuple[str, str]] = asked) -> int:
    """Audit the pinned packages, say what was found, and return the exit code.

    Args:
        ask: Returns what pip-audit prints to stdout and stderr.
    """
    exceptions = yaml.safe_load((ROOT / "release" / "audit.yaml").read_text("utf-8"))["exceptions"]
    printed, errors = ask()
    try:
        packages = json.loads(printed)["dependencies"]
    except ValueError:
        return not_looked_up((errors.strip().splitlines() or ["pip-audit printed nothing"])[-1])
    # pip-audit ends with 0 and "No known vulnerabilities found" also when it skipped every package.
    if skipped := [one for one in packages if "skip_reason" in one]:
        return not_looked_up(
            f"{len(skipped)} of {len(packages)} packages were skipped ({skipped[0]['skip_reason']})"
        )
    wrong = judged(packages, exceptions)
    for line in wrong:
        print(line, file=sys.stderr)
    if wrong:
        return 1
    print(f"{len(packages)} packages, no known vulnerability, {len(exceptions)} exceptions")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
