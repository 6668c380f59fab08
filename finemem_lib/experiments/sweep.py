"""Run the cells of a design in parallel, in processes or on a Dask cluster."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from finemem_lib.experiments.cells import Cell, CellResult, run_cell
from finemem_lib.util.files import written_beside

if TYPE_CHECKING:
    from distributed import Client

Run = Callable[[Cell], CellResult]
Progress = Callable[[int, int, Cell, str], None]

WORKER_DIED = (
    "a process that trained cells was killed (out of memory?); run the same command again, with "
    "fewer jobs if it happens again"
)
ONE_THREAD = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}


@dataclass(frozen=True, slots=True)
class FailedCell:
    """A cell without a result.

    Attributes:
        cell: The cell, with the names of the design.
        error: Message of the error that its training raised.
    """

    cell: Cell
    error: str


class Attempt(NamedTuple):
    """One attempt to train a cell, with a result or an error.

    Attributes:
        key: Key of the cell.
        result: What `run` returned for the cell; `None` where it failed.
        error: Why it failed; empty where it did not.
    """

    key: str
    result: Any
    error: str


def run_cells(
    cells: Sequence[Cell],
    folder: Path,
    *,
    jobs: int = 2,
    scheduler: str | None = None,
    progress: Progress | None = None,
    run: Run = run_cell,
) -> tuple[list[CellResult], list[FailedCell]]:
    """Train the cells without a result in `folder`; return all results and failures.

    A result is written to ``folder/<key>.json`` as soon as its training ends. On a Dask cluster, a
    cell whose worker is lost is trained by another worker.

    Args:
        cells: The cells; equal cells with several names are trained once.
        folder: Folder of the results; created if missing.
        jobs: Number of processes on this machine; ignored with a `scheduler`.
        scheduler: Address of a Dask scheduler, e.g. ``tcp://HOST:8786``; `None` for processes.
        progress: Called after every cell with the number done, the total number, the cell, and
            "kept", "done" or the error.
        run: Trains one cell.

    Returns:
        Results and failures, both in the order of `cells` and with their names.

    Raises:
        ValueError: a result in the folder cannot be read, or no scheduler answers.
        ModuleNotFoundError: `scheduler` is given and the dask extra is not installed.
    """
    folder = Path(folder)
    by_key = {cell.key: cell for cell in reversed(cells)}
    results = {one.key: one for one in kept_results(list(by_key.values()), folder)}
    todo = {cell.key: cell for cell in cells if cell.key not in results}
    errors: dict[str, str] = {}

    def report(key: str, what: str, done: int) -> None:
        if progress is not None:
            progress(done, len(by_key), by_key[key], what)

    for done, key in enumerate(results, start=1):
        report(key, "kept", done)
    if todo:
        folder.mkdir(parents=True, exist_ok=True)
        attempts = on_dask(todo, scheduler, run) if scheduler else _on_processes(todo, jobs, run)
        with contextlib.closing(attempts):
            for done, (key, result, error) in enumerate(attempts, start=len(results) + 1):
                if result is None:
                    errors[key] = error
                else:
                    _write_result(folder, key, result)
                    results[key] = result
                report(key, error or "done", done)
    named = [(cell, cell.key) for cell in cells]
    return (
        [results[key].model_copy(update={"cell": cell}) for cell, key in named if key in results],
        [FailedCell(cell, errors[key]) for cell, key in named if key in errors],
    )


def kept_results(cells: Sequence[Cell], folder: Path) -> list[CellResult]:
    """Return the stored results of cells, in the order of `cells` and with their names.

    Args:
        cells: The cells; those without a stored result are left out.
        folder: Folder of the results.

    Raises:
        ValueError: a result in the folder cannot be read.
    """
    named = [(cell, cell.key) for cell in cells]
    return [
        _read_result(folder, key).model_copy(update={"cell": cell})
        for cell, key in named
        if _file(folder, key).exists()
    ]


def _on_processes(cells: dict[str, Cell], jobs: int, run: Run) -> Generator[Attempt]:
    """Yield every attempt when it ends; if a process is killed, all remaining cells have failed."""
    import joblib

    parallel = joblib.Parallel(
        jobs, batch_size=1, pre_dispatch=jobs, return_as="generator_unordered"
    )
    missing = list(cells)
    try:
        for attempt in parallel(joblib.delayed(_attempt)(*item, run) for item in cells.items()):
            missing.remove(attempt.key)
            yield attempt
    except BrokenProcessPool:
        yield from (Attempt(key, None, WORKER_DIED) for key in missing)


def on_dask(
    cells: Mapping[str, Any], scheduler: str, run: Callable[[Any], Any]
) -> Generator[Attempt]:
    """Yield every attempt as it ends; a cell that several workers died of has failed.

    Args:
        cells: What to run, by key.
        scheduler: Address of a Dask scheduler.
        run: Runs one cell on a worker.

    Raises:
        ValueError: no scheduler answers.
        ModuleNotFoundError: the dask extra is not installed.
    """
    with _client(scheduler) as client:
        from distributed import KilledWorker, as_completed

        keys = {
            client.submit(_attempt, key, cell, run, pure=False): key for key, cell in cells.items()
        }
        ended = as_completed(keys, loop=client.loop)  # type: ignore[no-untyped-call]  # untyped
        for future in ended:
            try:
                yield future.result()
            except KilledWorker:
                yield Attempt(keys[future], None, WORKER_DIED)


def _client(scheduler: str) -> Client:
    try:
        from distributed import Client
        from distributed.comm.addressing import get_address_host_port
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "run_cells: a scheduler needs dask.distributed, which is not installed; install the "
            "dask extra: pip install -e .[dask]"
        ) from error
    try:
        # With an invalid address a client takes a minute to end, with a traceback.
        get_address_host_port(scheduler)
        return Client(scheduler, set_as_default=False)  # type: ignore[no-untyped-call]  # untyped
    except (OSError, ValueError) as error:
        raise ValueError(
            f"run_cells: no Dask scheduler answers at {scheduler!r} ({error}); expected an address "
            "such as tcp://HOST:8786, which `dask scheduler` prints when it starts"
        ) from error


def _attempt(key: str, cell: Any, run: Callable[[Any], Any]) -> Attempt:
    for name, value in ONE_THREAD.items():
        os.environ.setdefault(name, value)
    try:
        return Attempt(key, run(cell), "")
    except Exception as error:  # report the failure of one cell and continue with the others
        return Attempt(key, None, f"{type(error).__name__}: {error}")


def _file(folder: Path, key: str) -> Path:
    return folder / f"{key}.json"


def _write_result(folder: Path, key: str, result: CellResult) -> None:
    with written_beside(_file(folder, key)) as beside:
        beside.write_text(result.model_dump_json() + "\n", encoding="utf-8")


def _read_result(folder: Path, key: str) -> CellResult:
    path = _file(folder, key)
    try:
        result = CellResult.model_validate_json(path.read_text(encoding="utf-8"))
        if result.key != key:
            raise ValueError(f"it holds that of {result.key}")
        return result
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} is not the result of a cell ({error}); move it away and run the same command "
            "again, which trains the cell once more"
        ) from error
