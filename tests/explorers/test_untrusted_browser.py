"""Text from data sets and models in every view, drawn by a browser: it does nothing, can be read,
and stays in its place."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections.abc import Iterator
from typing import Any

import nbformat
import nbformat.v4 as nb
import pytest

from finemem_lib import explorers, figures
from finemem_lib.cli import report
from finemem_lib.evaluation.credit_truth import REGIMES, Row
from finemem_lib.evaluation.state_mismatch import COMPARISONS, Agreement, Fork
from finemem_lib.experiments.arena import arena
from finemem_lib.experiments.tables import ACCURACIES, length_measure, length_measures, table
from finemem_lib.explorers.explorer import Explorer
from finemem_lib.figures.style import CONFIG, PLOTLY_MIME
from tests.helpers.browser import TOKENS, opened
from tests.helpers.experiment_samples import arena_design, arena_results, grid
from tests.helpers.figure_samples import make_figures, make_trajectory
from tests.helpers.patience import wait_until
from tests.helpers.rollout_samples import Spelling, make_training_figures, rollouts
from tests.helpers.run_samples import make_bare_run, notebook_entry

pytestmark = pytest.mark.browser

KINDS = {
    "plain": "",
    "markup": "<script>window.ran=1</script><img src=https://example.org/x onerror=window.ran=1>"
    "</script><a href='javascript:window.ran=1'>x</a> $x^2$ %{x} ",
    "right-to-left": "\u202eעברית \u2067العربية\u200f 🧠🔥 👩‍👩‍👧 ",
    "long": "w" * 10_000 + " ",
}
SEEN = {"plain": "", "markup": "<script>", "right-to-left": "עברית", "long": "wwwwwww"}
"""What a reader must find of a kind of text wherever it is shown: the start of it."""

UNPRINTABLE = "\u202e\u2067\u200f"


class Manager:
    """What the training explorer needs of a trained manager as long as no log-probability is
    asked for."""

    def __init__(self, poison: str) -> None:
        self.tokenizer = Spelling(*(f"{poison}{word}" for word in ("[", "op", "SKIP", "}", "]")))


def make_explorers(poison: str) -> dict[str, Explorer]:
    records = [{"step": step, "reward": step / 10, "entropy": 1 / step} for step in (1, 2)]
    return {
        "evidence": explorers.evidence_explorer(make_trajectory(poison=poison)),
        "memory_player": explorers.memory_player(make_trajectory(poison=poison)),
        "what_if": explorers.what_if_explorer(rollouts(poison)),
        "compare_rollouts": explorers.compare_rollouts([rollouts(poison)]),
        "group_explorer": explorers.group_explorer(rollouts(poison), Manager(poison)),
        "training_explorer": explorers.training_explorer(
            records, {1: [rollouts(poison)]}, Manager(poison)
        ),
    }


def credit_rows(poison: str) -> list[Row]:
    numbers = {field.name: 1 for field in dataclasses.fields(Row)}
    return [
        Row(
            **numbers
            | {
                "slice": place,
                "rule": f"{poison}{rule}",
                "truth": "causal",
                "measure": "rank",
                "value": 0.8,
                "low": 0.7,
                "high": 0.9,
            }
        )
        for place in ("all", *itertools.chain(*REGIMES.values()))
        for rule in ("a", "b")
    ]


@functools.cache
def views(poison: str = "") -> dict[str, Any]:
    """Return one of everything that is shown, by the builder's name; views of explorers follow."""
    trajectory = make_trajectory(poison=poison)
    results = grid(poison)
    rows = table(results, results[0].cell.variant)
    credit = credit_rows(poison)
    names = [f"{poison}a", f"{poison}b"]
    design = arena_design(
        baselines=names[:1],
        variants={name: {"scheme": "outcome-only"} for name in names},
        regimes={f"{poison}short": {"capacity": 12}},
    )
    trained = arena_results(design, {names[1]: 0.2})
    judged = arena(trained, design)
    lengths = design.model_copy(update={"primary": [length_measure(6)]})
    texts = tuple(f"{poison}{word}" for word in ("a", "b", "", "d"))
    made = (
        make_figures(poison)
        | make_training_figures(poison)
        | {
            "memory_state": figures.memory_state(trajectory, 4),
            "evidence_trail": figures.evidence_trail(trajectory, selected="question 1"),
            "formula_card": figures.formula_card(
                [figures.Term(f"{poison}w r", f"{poison}2 x 3", 6.0, True)],
                "Formula",
                "1 term.",
            ),
            "measure_intervals": figures.measure_intervals(
                rows, ACCURACIES, "Accuracy", "accuracy"
            ),
            "dose_response": figures.dose_response(rows, results, {f"{poison}k": ("top_k", {})}),
            "learning_curves": figures.learning_curves(results),
            "edit_bars": figures.edit_bars(results),
            "credit_by_regime": figures.credit_by_regime(credit, "causal"),
            "differences_by_regime": figures.differences_by_regime(credit, "causal"),
            "credit_per_call": figures.credit_per_call(credit, "causal"),
            "credit_measures": figures.credit_measures(credit),
            "arena_standings": figures.arena_standings(judged),
            "accuracy_by_test_length": figures.accuracy_by_test_length(
                arena(trained, lengths, of=length_measures), (6,)
            ),
            "noise_price_and_end": figures.noise_price_and_end(judged, "accuracy, greedy"),
            "fork_advantages": figures.fork_advantages(Fork(0.75)),
            "agreement_by_step": figures.agreement_by_step(
                [Agreement(COMPARISONS[0], step, 0.5, 0.4, 0.6, 0.0) for step in (1, 2)]
            ),
            "completion_view": figures.completion_view(
                [figures.ColouredCompletion(f"{poison}step 1", texts, (1.0, -0.5, None, 0.0))],
                "advantage A",
            ),
        }
    )
    for name, one in make_explorers(poison).items():
        made |= {f"{name}: {view}": figure for view, figure in one.figures().items()}
    return made


NAMES = list(views())
NO_TEXT = {
    "reward_decomposition",
    "advantage_heatmap",
    "step_terms",
    "what_if: card",
    "what_if: rewards",
    "what_if: advantages",
    "training_explorer: run",
    "training_explorer: rollout",
    "fork_advantages",
    "agreement_by_step",
}
"""Views that show numbers alone, or operations without content."""


def test_every_builder_is_here() -> None:
    builders = {
        name
        for name, one in vars(figures).items()
        if getattr(one, "__annotations__", {}).get("return") == "go.Figure"
    }
    assert builders - {"change_view"} <= {*NAMES}  # it is completion_view


def output(view: Any) -> Any:
    spec = json.loads(view.to_json()) | {"config": CONFIG}
    return nb.new_output("display_data", {PLOTLY_MIME: spec, "text/plain": "[figure]"})


@pytest.fixture(scope="module")
def opened_page(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Any, list[str], list[str]]]:
    """A report with a notebook for every kind of text that shows every view."""
    folder = tmp_path_factory.mktemp("run")
    for kind, poison in KINDS.items():
        cells = [
            nb.new_code_cell("shown", outputs=[output(view)]) for view in views(poison).values()
        ]
        nbformat.write(nb.new_notebook(cells=cells), folder / f"{kind}.ipynb")
    make_bare_run(folder, notebooks=[notebook_entry(kind, status="ok") for kind in KINDS])
    with opened(report.build_report(folder, folder / "report.html")) as (page, errors, requests):
        yield page, errors, requests


LOOK = """cell => {
    const plot = cell.querySelector(".plot");
    const frame = (plot ?? cell).getBoundingClientRect();
    const outside = element => {
        const box = element.getBoundingClientRect();
        return box.width && (box.left < frame.left - 1 || box.right > frame.right + 1
            || box.top < frame.top - 1 || box.bottom > frame.bottom + 1);
    };
    const words = element => element.textContent.trim();
    const drawn = [...cell.querySelectorAll("svg text")].filter(words);
    const lines = text => text.querySelector("tspan.line")
        ? [...text.querySelectorAll("tspan.line")].map(words) : [words(text)];
    const seen = {
        lines: drawn.flatMap(lines), cut: drawn.filter(outside).map(words),
        silent: [],
        small: drawn.filter(text => parseFloat(getComputedStyle(text).fontSize) < 8).map(words),
        captions: [...cell.querySelectorAll("figcaption")].map(words),
        table: [...cell.querySelectorAll("td")].map(words),
        live: [...cell.querySelectorAll("script:not([type='application/json']), img, iframe, a,"
            + "object, foreignObject, svg image:not([*|href^='data:image/png'])")]
            .map(element => element.outerHTML),
    };
    for (const [number, trace] of (plot?.data ?? []).entries()) {
        const known = (note, place) => note != null && (trace.z ?? trace.y)[place] != null;
        const place = (trace.customdata ?? []).findIndex(known);
        if (trace.type === "sankey" || place < 0) continue;
        const column = trace.z?.[place].findIndex(value => value != null);
        const point = trace.z ? {xval: trace.x[column], yval: trace.y[place]}
            : [{curveNumber: number, pointNumber: place}];
        Plotly.Fx.hover(plot, point, [(trace.xaxis ?? "x") + (trace.yaxis ?? "y")]);
        const box = [...plot.querySelectorAll(".hoverlayer text")].filter(words);
        seen.lines.push(...box.flatMap(lines));
        if (!box.length) seen.silent.push(number);
        Plotly.Fx.unhover(plot);
    }
    return seen;
}"""
"""What is in a cell of the report: the lines of text drawn in its figure and in one box for each
trace that a pointer opens, traces without such a box, texts that are cut off or too small, captions
and tables, and elements that could do something."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_untrusted_text_is_harmless_and_legible(
    opened_page: tuple[Any, list[str], list[str]], name: str, kind: str
) -> None:
    page, errors, requests = opened_page
    cell = page.locator(f"section[aria-labelledby=nb-{kind}] .code_cell").nth(NAMES.index(name))
    cell.scroll_into_view_if_needed()  # for a screenshot
    seen = cell.evaluate(LOOK)
    assert seen["live"] == [] and page.evaluate("window.ran") is None
    assert seen["cut"] == [] and seen["small"] == [] and seen["silent"] == []
    assert max(map(len, seen["lines"]), default=0) <= 140
    assert max(map(len, seen["captions"])) <= 700
    text = "\n".join([*seen["lines"], *seen["captions"], *seen["table"]])
    assert (SEEN[kind] in text) == (name not in NO_TEXT or kind == "plain")
    assert not {*UNPRINTABLE} & {*text}
    assert errors == [] and requests == []


ROOM = """plot => {
    const frame = plot.getBoundingClientRect();
    const words = text => text.textContent.trim();
    const slanted = text => /rotate\\((?!0|-?90)/.test(text.getAttribute("transform") ?? "");
    const texts = [...plot.querySelectorAll("svg text")].filter(words)
        .map(text => [text, text.getBoundingClientRect()]).filter(([, box]) => box.width);
    const titles = texts.filter(([text]) => text.closest(".infolayer, .xtick, .ytick, .sankey"));
    const clash = ([one, a], [other, b]) => !(slanted(one) && slanted(other))
        && Math.min(a.right, b.right) - Math.max(a.left, b.left) > 2
        && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3;
    return {
        wide: plot._fullLayout.width > plot.closest("figure").clientWidth,
        cut: texts.filter(([, box]) => box.left < frame.left - 1 || box.right > frame.right + 1
            || box.top < frame.top - 1 || box.bottom > frame.bottom + 1)
            .map(([text]) => words(text)),
        over: titles.flatMap((one, place) => titles.slice(0, place).filter(
            other => clash(one, other)).map(([other]) => [words(one[0]), words(other)])),
    };
}"""
"""Whether a drawing is wider than its column; its texts that are cut off; and those of its titles,
axes and legend that run into each other. Of slanted texts their boxes do, where they do not."""


@pytest.fixture(scope="module")
def narrow_page(opened_page: tuple[Any, list[str], list[str]]) -> Iterator[Any]:
    """The page at 200 % of 1280 pixels, when all figures have followed."""
    page, *_ = opened_page
    before = page.viewport_size
    page.set_viewport_size({"width": 640, "height": 900})
    page.wait_for_function(
        """() => [...document.querySelectorAll(".plot")]
        .every(plot => plot._fullLayout.width <= 608)""",
    )
    yield page
    page.set_viewport_size(before)


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_every_view_has_room_at_twice_the_size(
    opened_page: tuple[Any, list[str], list[str]], narrow_page: Any, kind: str
) -> None:
    _, errors, requests = opened_page
    assert narrow_page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    cells = narrow_page.locator(f"section[aria-labelledby=nb-{kind}] .code_cell")
    found = {}
    for place, name in enumerate(NAMES):
        for plot in cells.nth(place).locator(".plot").all():
            found[name] = plot.evaluate(ROOM)
            if kind == "long":  # nothing but the widest letter: it may fill a place to its end
                del found[name]["over"]
    assert {name: room for name, room in found.items() if any(room.values())} == {}
    assert errors == [] and requests == []


@pytest.mark.parametrize("trusted", [True, False])
def test_jupyterlab_keeps_what_stands_below_a_figure(lab: Any, trusted: bool) -> None:
    """Its sanitizer drops roles and labels from a notebook that is not trusted, not the texts."""
    poison = KINDS["markup"] + KINDS["right-to-left"]
    figure = make_figures(poison)["operation_timeline"]
    bundles = figures.outputs(figure)
    code = (
        "from IPython.display import display\n"
        f"for bundle in {bundles!r}:\n    display(bundle, raw=True)"
    )
    notebook = nb.new_notebook(
        cells=[
            nb.new_code_cell(
                code,
                outputs=[]
                if trusted
                else [nb.new_output("display_data", bundle) for bundle in bundles],
            )
        ]
    )
    notebook.metadata.kernelspec = {
        "name": "python3",
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
    }
    with (lab.ran if trusted else lab.saved)(notebook, f"below-{trusted}.ipynb") as (page, watch):
        note = page.locator("figure.finemem-note")
        note.wait_for()
        assert note.locator("figcaption").inner_text() == figure.layout.meta["caption"]
        assert (note.get_attribute("aria-label") is not None) == trusted
        opener, table = note.locator("summary"), note.locator("table")
        assert not table.is_visible()

        def opened() -> bool:  # JupyterLab may take the focus back when a cell has run
            if not table.is_visible():
                opener.focus()
                opener.press("Enter")
            return table.is_visible()

        wait_until(opened)
        assert figure.layout.meta["alt"] in note.locator("details > p").inner_text()
        assert "<script>" in table.inner_text() and "עברית" in table.inner_text()
        assert note.locator("a, img, script").count() == 0
        assert page.evaluate("window.ran") is None
        assert watch.errors == [] and watch.requests == []


def test_jupyterlab_colours_tokens_in_a_notebook_that_is_not_trusted(lab: Any) -> None:
    """Incident: they were spans with classes, and its sanitizer drops classes and styles."""
    poison = KINDS["markup"]
    one = figures.ColouredCompletion(poison, (poison, "b", "c", "d"), (1.0, -1.0, None, 0.0))
    bundles = figures.outputs(figures.completion_view([one], "advantage A"))
    outputs = [nb.new_output("display_data", bundle) for bundle in bundles]
    notebook = nb.new_notebook(cells=[nb.new_code_cell("shown", outputs=outputs)])
    with lab.saved(notebook, "tokens.ipynb") as (page, watch):
        page.locator(".barlayer .bars .point text").nth(3).wait_for()
        tokens = page.evaluate(f"({TOKENS})(document)")
        assert [text[:8] for text, _ in tokens] == ["<script>", "b", "c", "d"]
        assert [colour for _, colour in tokens] == [
            "rgb(45, 0, 75)",
            "rgb(127, 59, 8)",
            "rgb(255, 255, 255)",
            "rgb(247, 247, 247)",
        ]
        below = page.locator(".barlayer text", has_text="b").locator("tspan")
        assert "underline" in below.first.evaluate("one => getComputedStyle(one).textDecoration")
        assert page.evaluate("window.ran") is None
        assert watch.errors == [] and watch.requests == []
