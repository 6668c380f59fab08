"""Execute one notebook in a worker process.

At a timeout or an interrupt, the worker is killed together with its kernel. When the command itself
is killed, the worker detects this, kills the kernel and completes the manifest.
Papermill alone does not show whether a notebook is done (a killed kernel leaves cells marked as
completed), so `notebook_error` checks the cells.

The worker of every notebook imports this module, which is why it imports little.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing.connection
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from finemem_lib.util.files import discard

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from finemem_lib.cli.manifest import NotebookStatus

CHECKPOINTS = "-checkpoints"
"""Suffix of the scratch folders (`Run.scratch`) that a stopped run keeps."""


def notebook_error(path: Path) -> str | None:
    """Return the error of an executed notebook, `None` if every cell ran without an error.

    Every code cell must have been executed, except empty ones and those tagged ``skip-execution``.
    The text begins with the number of the cell (not counting the cells that papermill adds) and the
    error, and ends with the last lines of the traceback.

    Args:
        path: The executed notebook.
    """
    import nbformat
    from papermill.exceptions import strip_color

    added = {"injected-parameters", "papermill-error-cell-tag"}
    cells = [
        cell
        for cell in nbformat.read(path, as_version=4).cells
        if not added & set(cell.metadata.get("tags", []))
    ]
    for position, cell in enumerate(cells, start=1):
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                lines = strip_color("\n".join(output.traceback)).rstrip().splitlines()
                return "\n".join(
                    [
                        f"cell {position} (In [{cell.execution_count}]): {output.ename}: "
                        f"{strip_color(output.evalue)}",
                        *lines[-12:],
                    ]
                )
    for position, cell in enumerate(cells, start=1):
        skipped = "skip-execution" in cell.metadata.get("tags", [])
        if cell.cell_type == "code" and cell.source.strip() and not skipped:
            if cell.execution_count is None:
                return f"cell {position} was not executed"
    return None


class Outcome(NamedTuple):
    """The result of executing a notebook.

    Attributes:
        status: Status of the notebook.
        error: Description of the error, `None` if the status is ok.
    """

    status: NotebookStatus
    error: str | None = None


class Executor(Protocol):
    """A function that executes one notebook, as `execute_notebook` does."""

    def __call__(
        self,
        source: Path,
        parameters: dict[str, Any],
        folder: Path,
        environment: Mapping[str, str],
        deadline: float,
        tick: Callable[[], None],
    ) -> Outcome: ...  # noqa: D102


def _execute_in_worker(
    source: Path,
    executed: Path,
    parameters: dict[str, Any],
    folder: Path,
    environment: Mapping[str, str],
    answer: Connection,
) -> None:
    """Execute one notebook in this worker process, and send errors that no cell contains."""
    os.setsid()  # Ctrl-C at the terminal reaches only the command, which then ends this process
    log = os.open(folder / "run.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(environment)
    threading.Thread(target=_clean_up_after_command, args=(folder,), daemon=True).start()
    import papermill

    try:
        papermill.execute_notebook(
            source,
            executed,
            parameters,
            kernel_name="python3",
            cwd=source.parent,
            progress_bar=False,
            start_timeout=600,
            store_widget_state=False,
        )
    except papermill.PapermillExecutionError:
        pass  # the cell contains the error
    except Exception as error:
        answer.send(f"{type(error).__name__}: {error}")


def _clean_up_after_command(folder: Path) -> None:
    """Wait until the command's process ends, then kill the kernel and complete the manifest."""
    command = multiprocessing.parent_process()
    assert command is not None  # this is a worker
    multiprocessing.connection.wait([command.sentinel])
    try:
        _kill_tree(os.getpid(), including=False)
        from finemem_lib.cli.manifest import ACTIVE, read_manifest

        if read_manifest(folder, settle=True).status not in ACTIVE:  # otherwise it was resumed
            clear_scratch(folder)
    finally:
        os._exit(1)


def _kill_tree(pid: int, including: bool = True) -> None:
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        processes = parent.children(recursive=True) + [parent] * including
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, timeout=10)


def clear_scratch(folder: Path, finished: bool = False) -> None:
    """Remove the scratch files of a run, and files that were not written completely.

    Args:
        folder: Folder of the run.
        finished: Whether to remove also the checkpoints from which `finemem resume` would continue.
    """
    for path in (folder / "scratch").glob("*"):
        if finished or not path.name.endswith(CHECKPOINTS):
            discard(path)
    with contextlib.suppress(OSError):  # checkpoints are left, or there was none
        (folder / "scratch").rmdir()
    for path in folder.rglob("*.tmp"):
        discard(path)


def execute_notebook(
    source: Path,
    parameters: dict[str, Any],
    folder: Path,
    environment: Mapping[str, str],
    deadline: float,
    tick: Callable[[], None],
) -> Outcome:
    """Execute a notebook, write it to ``notebooks/`` of a run, and return its status.

    Args:
        source: The notebook.
        parameters: Values for its parameters cell.
        folder: Folder of the run.
        environment: Environment variables of its kernel in addition to those of this process.
        deadline: Time at which to stop it, on the clock of `time.monotonic`, in seconds.
        tick: Function called about once a second while it runs.
    """
    from finemem_lib.runs.notebooks import RUNNING

    executed = folder / "scratch" / source.name
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    given = {**environment, RUNNING: str(source)}
    worker = context.Process(
        target=_execute_in_worker,
        args=(source, executed, parameters, folder, given, theirs),
    )
    try:
        worker.start()
        theirs.close()
        while worker.is_alive() and time.monotonic() < deadline:
            worker.join(min(1.0, max(0.0, deadline - time.monotonic())))
            tick()
        if worker.is_alive():
            return Outcome("timeout", "stopped: the time given with --timeout is over")
        try:
            error = ours.recv()
        except EOFError:  # the worker sent no error
            error = None
        if worker.exitcode != 0:
            error = f"the process that executed the notebook ended with code {worker.exitcode}"
        if executed.exists():
            error = notebook_error(executed) if error is None else error
        elif error is None:
            error = "papermill left no executed notebook; see run.log"
        return Outcome("failed" if error else "ok", error)
    finally:
        if worker.is_alive() and worker.pid:
            _kill_tree(worker.pid)
            worker.join()
        with contextlib.suppress(
            OSError, ValueError, RecursionError
        ):  # missing, or not written completely
            json.loads(executed.read_text(encoding="utf-8"))
            os.replace(executed, folder / "notebooks" / source.name)
