"""Run the cells of a design in parallel, on processes or on a Dask cluster."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finemem_lib.experiments.cells import Cell, CellResult, run_cell
from finemem_lib.util.files import written_beside


@dataclass(frozen=True, slots=True)
class Failure:
    """A cell that could not be made, and why."""

    cell: Cell
    error: str


def run_cells(
    cells: Sequence[Cell],
    folder: Path,
    *,
    jobs: int = 2,
    scheduler: str | None = None,
    progress: Callable[[int, int, Cell, str], None] | None = None,
    run: Callable[[Cell], CellResult] = run_cell,
) -> tuple[list[CellResult], list[Failure]]:
    """Make the cells that `folder` lacks in `jobs` processes; return all results and failures.

    A result is written to ``folder/<key>.json`` as soon as it is there. With `scheduler`, the
    address of a Dask scheduler, its workers make the cells (`jobs` is theirs) and a cell whose
    worker is lost is made by another. `progress` is told the cells done, all, the last one, and
    "kept", "done" or its error. Results come in the order of `cells`, named as they name them.

    Raises:
        ValueError: a result in the folder cannot be read, or at `scheduler` none answers or its
            workers have one thread in all.
        ModuleNotFoundError: `scheduler` is given and the dask extra is not installed.
    """
    folder = Path(folder)
    by_key: dict[str, Cell] = {cell.key: cell for cell in reversed(cells)}
    kept = {key: _read_result(folder, key) for key in by_key if _file(folder, key).exists()}
    todo = [cell for cell in {cell.key: cell for cell in cells}.values() if cell.key not in kept]
    failures: dict[str, str] = {}
    done = 0

    def say(cell: Cell, what: str) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, len(by_key), cell, what)

    for key in kept:
        say(by_key[key], "kept")
    if todo:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(_made(todo, jobs, scheduler, run)) as made:
            for key, result, error in made:
                if result is None:
                    failures[key] = error
                else:
                    with written_beside(_file(folder, key)) as beside:
                        beside.write_text(result.model_dump_json() + "\n", encoding="utf-8")
                    kept[key] = result
                say(by_key[key], error or "done")
    named = [(cell, cell.key) for cell in cells]
    return (
        [kept[key].model_copy(update={"cell": cell}) for cell, key in named if key in kept],
        [Failure(cell, failures[key]) for cell, key in named if key in failures],
    )


def _made(
    cells: Sequence[Cell], jobs: int, scheduler: str | None, run: Callable[[Cell], CellResult]
) -> Iterator[tuple[str, CellResult | None, str]]:
    """Yield key, result and error of every cell as it ends."""
    import joblib

    lost: tuple[type[Exception], ...] = (BrokenProcessPool,)
    with contextlib.ExitStack() as stack:
        if scheduler is None:
            parallel = joblib.Parallel(
                jobs,
                batch_size=1,
                pre_dispatch=jobs,
                return_as="generator_unordered",
            )
        else:
            stack.enter_context(_dask(scheduler))
            from distributed import KilledWorker  # a cell that several workers died of

            lost += (KilledWorker,)
            parallel = joblib.Parallel(
                -1, batch_size=1, pre_dispatch="all", return_as="generator_unordered"
            )
        missing = [cell.key for cell in cells]
        try:
            for made in parallel(joblib.delayed(_attempt)(cell, cell.key, run) for cell in cells):
                missing.remove(made[0])
                yield made
        except lost:
            for key in missing:
                yield (
                    key,
                    None,
                    (
                        "a process that trained cells was killed (out of memory?); run the same "
                        "command again, with fewer jobs if it happens again"
                    ),
                )


def _attempt(
    cell: Cell, key: str, run: Callable[[Cell], CellResult]
) -> tuple[str, CellResult | None, str]:
    for name, value in {
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TQDM_DISABLE": "1",
    }.items():
        os.environ.setdefault(name, value)
    try:
        return key, run(cell), ""
    except Exception as error:  # one cell's failure is reported, and the others go on
        return key, None, f"{type(error).__name__}: {error}"


@contextlib.contextmanager
def _dask(scheduler: str) -> Iterator[None]:
    import joblib

    try:
        from distributed import Client
        from joblib._dask import DaskDistributedBackend
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "run_cells: a scheduler needs dask.distributed, which is not installed; install the "
            "dask extra: pip install -e .[dask]"
        ) from error
    try:
        client = Client(scheduler, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"run_cells: no Dask scheduler answers at {scheduler!r} ({error}); expected an address "
            "such as tcp://HOST:8786, which `dask scheduler` prints when it starts"
        ) from error

    class Backend(DaskDistributedBackend):
        """joblib's, which waits for ever for a cell that was given up because workers died of it:
        it tells of results and of errors that a cell raised, not of those of the cluster."""

        def submit(self, func: Any, callback: Any = None) -> Any:
            def tell(done: Future) -> None:
                if not done.cancelled() and done.exception() is not None:
                    callback(done.exception())

            future = super().submit(func, callback)
            future.add_done_callback(tell)
            return future

        def retrieve_result_callback(self, out: Any) -> Any:
            if isinstance(out, BaseException):
                raise out
            return super().retrieve_result_callback(out)

    with client, joblib.parallel_config(backend=Backend(client=client)):
        if sum(client.ncores().values()) == 1:
            raise ValueError(
                f"run_cells: the workers at {scheduler!r} have one thread in all, expected two or "
                "more; joblib would train here instead, so add a worker or leave the scheduler out"
            )
        yield


def _file(folder: Path, key: str) -> Path:
    return folder / f"{key}.json"


def _read_result(folder: Path, key: str) -> CellResult:
    path = _file(folder, key)
    try:
        result = CellResult.model_validate_json(path.read_text(encoding="utf-8"))
        if result.key != key:
            raise ValueError(f"it holds that of {result.key}")
        return result
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} is not the result of a cell ({error}); move it away and it is made again"
        ) from error
