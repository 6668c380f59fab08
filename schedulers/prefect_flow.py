"""Prefect: one run as a flow, which a retry resumes instead of starting again.

`python schedulers/prefect_flow.py` serves it every night at 2; it needs `prefect` beside this
library.
"""

from __future__ import annotations

import subprocess
import sys

from prefect import flow, task
from prefect.runtime import flow_run

from finemem_lib.runs.run import run_folder

FINEMEM = [sys.executable, "-m", "finemem_lib"]


@task(retries=2, retry_delay_seconds=300)
def run_notebooks(run_id: str, profile: str) -> None:
    """Run the notebooks of a profile; after a failure, those that are left."""
    begun = run_folder(run_id).exists()
    new = ["run", "--run-id", run_id, "--profile", profile]
    subprocess.run([*FINEMEM, *(["resume", run_id] if begun else new)], check=True)


@task
def remove_old_runs(keep: int) -> None:
    """Remove all but the newest runs and the last good one."""
    subprocess.run([*FINEMEM, "clean", "--keep", str(keep)], check=True)


@flow(name="finemem-nightly", timeout_seconds=4 * 3600)
def nightly(profile: str = "default", keep: int = 14) -> None:
    """Run a profile and remove old runs."""
    run_notebooks(f"prefect-{flow_run.id}", profile)
    remove_old_runs(keep)


if __name__ == "__main__":
    nightly.serve(name="nightly", cron="0 2 * * *")
