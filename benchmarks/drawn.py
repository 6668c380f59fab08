"""Explorers: the time from a key to the drawn figure, in Chromium and JupyterLab.

Random trajectories of 200 steps and 100 global questions (--quick: 50 and 25), 8 rollouts where an
explorer compares some, as in benchmarks/explore.py. In every view of every live explorer, arrow
keys move one control, each once the figure of the last key is drawn. The page notes the key and the
end of drawing; the kernel notes what it does between message and answer. Medians in milliseconds:

wall     from the key to the drawn figure, as the page sees it.
kernel   of this, the time in the kernel; kernel_cpu: its processor time.
page_cpu processor time of the page's main thread, from just before the key to just after the figure
         is drawn (Linux).

Other work on the machine stretches wall times and changes processor times less. `cpu` adds the
processor times up, which is about what a key costs on a machine without other work. The page's part
is that of JupyterLab, too, and of drawing by the processor, since Chromium has no screen here. The
budget is 100 ms.

    python benchmarks/drawn.py [--quick] [--output FILE.jsonl]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import nbformat.v4 as nb

from finemem_lib.util.console import rows_file
from finemem_lib.util.provenance import git_state, workbench_root, write_measured
from tests.helpers.lab import Lab, served

BUDGET_MS, PATIENCE_MS = 100, 120_000
ROOT = workbench_root()

SET_UP = """import json, sys, time
sys.path[:0] = [{root!r}, {root!r} + "/benchmarks"]
from explore import random_group
from finemem_lib import explorers
from finemem_lib.explorers.live import Live
answer, spent = Live._received, open("spent.jsonl", "w", buffering=1)
def timed(live, message):
    wall, cpu = time.perf_counter(), time.process_time()
    answer(live, message)
    row = [time.perf_counter() - wall, time.process_time() - cpu, live.error]
    print(json.dumps(row), file=spent)
Live._received = timed
group = random_group({steps}, {questions})"""

CELLS = {
    "evidence": ("selected", "explorers.evidence_explorer(group[0])"),
    "memory player": ("after step t", "explorers.memory_player(group[0])"),
    "what-if": ("β, share paid by evidence", "explorers.what_if_explorer(group)"),
}
"""The explorers: label of the control that is moved, and the code."""

WATCH = """root => {
    let begun = null;
    root.addEventListener("keydown", () => begun = performance.now(), true);
    new MutationObserver(() => {
        if (root.ariaBusy !== "false" || begun === null) return;
        root.drawn(performance.now() - begun);
        begun = null;
    }).observe(root, {attributes: true, attributeFilter: ["aria-busy"]});
}"""


def page_cpu(browser: Any) -> float:
    """Return the processor time of the main threads of the processes that run pages, in seconds."""
    processes = browser.send("SystemInfo.getProcessInfo")["processInfo"]
    pages = [one["id"] for one in processes if one["type"] == "renderer"]
    times = (Path(f"/proc/{page}/task/{page}/schedstat").read_text().split()[0] for page in pages)
    return sum(map(int, times)) / 1e9


def pressed(page: Any, root: Any, key: str, browser: Any) -> dict[str, float]:
    """Press a key, wait until the figure is drawn, and return what the page noted.

    Nothing looks for elements in the meantime: that would cost the page as much as its drawing.
    """
    before = page_cpu(browser)
    root.evaluate("root => { root.wall = new Promise(drawn => { root.drawn = drawn; }); }")
    page.keyboard.press(key)
    wall = root.evaluate("root => root.wall")
    return {"wall_ms": wall, "page_cpu_ms": 1000 * (page_cpu(browser) - before)}


def moved(area: Any, control: Any, repeats: int, browser: Any) -> list[dict[str, float]]:
    """Move a control by keys, a slider from its start again when it is at its end."""
    root = area.locator(".finemem-explorer").element_handle()
    control.focus()
    slider = control.get_attribute("type") == "range"
    noted = []
    while len(noted) < repeats:
        if slider and control.evaluate("one => one.value === one.max"):
            pressed(area.page, root, "Home", browser)
        key = "ArrowUp" if slider else "ArrowDown"
        noted.append(pressed(area.page, root, key, browser))
    return noted


def measure(lab: Lab, steps: int, questions: int, repeats: int) -> list[dict[str, Any]]:
    """Return a row for every view of every explorer."""
    sources = [SET_UP.format(root=str(ROOT), steps=steps, questions=questions)]
    sources += [f"explorers.show({code}, frames=[])" for _, code in CELLS.values()]
    notebook = nb.new_notebook(cells=[nb.new_code_cell(source) for source in sources])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3"}
    spent = lab.folder / "spent.jsonl"
    rows = []
    with lab.ran(notebook, "drawn.ipynb") as (page, _):
        page.set_default_timeout(PATIENCE_MS)
        session = page.context.browser.new_browser_cdp_session()
        for cell, (name, (label, _)) in enumerate(CELLS.items(), start=1):
            area = page.locator(".jp-CodeCell").nth(cell)
            area.locator(".js-plotly-plot").first.wait_for()
            area.locator(".finemem-explorer").evaluate(WATCH)
            control = area.get_by_label(label, exact=True)
            for tab in area.locator("[role=tab]").all():
                tab.click()
                area.locator(".finemem-explorer[aria-busy=false]").wait_for()
                noted = moved(area, control, repeats, session)
                kernel = [json.loads(line) for line in spent.read_text().splitlines()[-repeats:]]
                if errors := [error for *_, error in kernel if error]:
                    raise RuntimeError(errors[0])
                row = {key: statistics.median(one[key] for one in noted) for key in noted[0]}
                row["kernel_ms"] = 1000 * statistics.median(wall for wall, *_ in kernel)
                row["kernel_cpu_ms"] = 1000 * statistics.median(cpu for _, cpu, _ in kernel)
                row["cpu_ms"] = row["page_cpu_ms"] + row["kernel_cpu_ms"]
                row["of_budget"] = row["cpu_ms"] / BUDGET_MS
                rows.append({"explorer": name, "view": tab.inner_text()} | row)
                print(
                    "".join(
                        f"{v:<16}" if isinstance(v, str) else f"{v:11.1f}"
                        for v in rows[-1].values()
                    ),
                    flush=True,
                )
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a smaller trajectory, fewer keys")
    parser.add_argument("--output", type=rows_file, help="also write the rows and their card")
    asked = parser.parse_args(arguments)
    git, started = git_state(ROOT), time.perf_counter()
    steps, questions, repeats = (50, 25, 2) if asked.quick else (200, 100, 5)
    print(f"{steps} steps, {questions} questions, {repeats} keys a view; budget {BUDGET_MS} ms")
    with tempfile.TemporaryDirectory() as folder, served(Path(folder)) as lab:
        rows = measure(lab, steps, questions, repeats)
    if asked.output:
        write_measured(
            asked.output,
            rows,
            f"python benchmarks/drawn.py{' --quick' * asked.quick}",
            git,
            load=os.getloadavg()[0],
            steps=steps,
            questions=questions,
            seconds=round(time.perf_counter() - started),
        )


if __name__ == "__main__":
    main()
