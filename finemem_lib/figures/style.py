"""Colours, markers, template, text escaping and parts of traces that all figures share.

Categories have the colours of Okabe and Ito, and a marker shape or a pattern in addition.
Magnitudes are drawn in `MAGNITUDES`, signed values in PuOr around 0, missing values in grey. Text
from data sets and models is untrusted: plotly renders a subset of HTML, ``%{...}`` inside hover
templates and TeX between dollar signs. So such text is passed to figures only through `label` and
`paragraph`, and as hover text only in `customdata`.
"""

from __future__ import annotations

import functools
import html
import math
import re
import statistics
import textwrap
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import plotly.graph_objects as go
from plotly.colors import get_colorscale, sequential
from plotly.subplots import make_subplots

PLOTLY_MIME = "application/vnd.plotly.v1+json"

CONFIG = {"displaylogo": False}
"""Not "responsive": when the window changes, plotly replaces the height of a responsive figure by
that of its container, which in a notebook is 0 without the figure. JupyterLab resizes figures
itself; a page whose container has a height adds "responsive"."""

BLUE, ORANGE, GREEN, PINK, SKY, RED = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
)

INK, GREY, PALE = "#222222", "#767676", "#D0D0D0"
CATEGORIES = (BLUE, ORANGE, GREEN, PINK, SKY, RED, INK)
MARKERS = ("circle", "diamond", "square", "triangle-up", "cross", "star", "x")
PATTERNS = ("", "/", ".", "x", "-", "\\", "+", "|")

MAGNITUDES = [sequential.YlGnBu[n] for n in (1, 2, 3, 5, 7)]
"""Colours of nonnegative values, without grey, and without white for 0. The middle is light enough
for dark numbers."""

OPERATION_STYLE = {
    "INSERT": (GREEN, "triangle-up"),
    "UPDATE": (ORANGE, "diamond"),
    "DELETE": (RED, "x"),
    "SKIP": (SKY, "circle-open"),
    "invalid": (INK, "asterisk-open"),
    "evicted": (PINK, "square-open"),
}

_AXIS = {
    "gridcolor": "#E4E4E4",
    "linecolor": GREY,
    "zerolinecolor": GREY,
    "ticks": "outside",
    "automargin": True,
    # margins have room for the names; to look for those without takes half of a drawing's time
    "ticklabeloverflow": "allow",
    "title": {"standoff": 8, "font": {"size": 13}},
}

TEMPLATE_MARGIN = {"l": 64, "r": 24, "t": 56, "b": 56}
"""Pixels around the drawing of a figure that has no other margins."""

TEMPLATE = {
    "layout": {
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": INK},
        # above the names of the y axis too, for the room that a long title takes
        "title": {
            "x": 0,
            "xref": "container",
            "y": 1,
            "yref": "container",
            "yanchor": "top",
            "pad": {"t": 14, "l": 8},
            "font": {"size": 17},
        },
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "colorway": list(CATEGORIES),
        "margin": TEMPLATE_MARGIN,
        "hovermode": "closest",
        "hoverlabel": {"align": "left", "bgcolor": "white", "font": {"color": INK}},
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "legend": {
            "orientation": "h",
            # below all else, as wide as the figure: names at the left leave the drawing little room
            "x": 0.01,
            "xref": "container",
            "xanchor": "left",
            "y": 0,
            "yref": "container",
            "yanchor": "bottom",
            "traceorder": "normal",
        },
    }
}

PURPLE_ORANGE = [[round(place, 2), colour] for place, colour in get_colorscale("PuOr")]
"""The colour scale of signed values as a list, because plotly.js does not know its name."""

# The same texts recur each time a control redraws a figure.
cached = functools.lru_cache(maxsize=8192)


@cached
def label(text: object, limit: int = 40) -> str:
    """Return untrusted text as one short line that plotly shows literally.

    Non-printable characters (controls, lone surrogates, direction marks) become spaces.

    Args:
        text: any object; its `str` is shown.
        limit: maximum width in average characters, before escaping (see `one_line`).

    >>> label("<script>alert('a $x$')</script>", limit=20)
    "&lt;script&gt;alert('a &#36;x…"
    """
    return _escape(one_line(text, limit))


@cached
def elided(text: object, limit: int = 40) -> str:
    """Return untrusted text as `label` does, but cut in the middle, so that its end is shown.

    Args:
        text: any object; its `str` is shown.
        limit: maximum width in average characters, before escaping (see `one_line`).

    >>> elided("Mia moved to the north of Oslo", limit=18)
    'Mia move… of Oslo'
    """
    whole = str(text)
    if len(whole) > 8 * limit:
        whole = f"{whole[: 4 * limit]} {whole[-4 * limit :]}"
    line = _weighed(one_line(whole, 9 * limit))
    if len(line) <= limit:
        return _escape(_unweighed(line))
    head, tail = line[: limit // 2], line[-(limit - limit // 2 - 1) :]
    return _escape(f"{_unweighed(head).rstrip()}…{_unweighed(tail)}")


@cached
def paragraph(text: object, limit: int = 180, width: int = 60) -> str:
    """Return untrusted text for a hover box, in several lines.

    Args:
        text: any object; its `str` is shown.
        limit: maximum width in average characters, before escaping (see `one_line`).
        width: maximum width of a line, in the same unit.

    >>> paragraph("a < b " * 3, width=8)
    'a &lt; b a<br>&lt; b a &lt;<br>b'
    """
    lines = textwrap.wrap(_weighed(one_line(text, limit)), width, break_on_hyphens=False)
    return "<br>".join(_escape(_unweighed(line)) for line in lines)


def plain(text: object) -> str:
    """Undo the escaping of `label` and `paragraph`, for output that is not HTML.

    Args:
        text: an escaped text.

    >>> plain(label("a < b & c"))
    'a < b & c'
    """
    return html.unescape(re.sub(r"<br>", " ", re.sub(r"</?[bi]>", "", str(text))))


@cached
def one_line(text: object, limit: int) -> str:
    """Return text without line breaks and non-printable characters, unescaped.

    Args:
        text: any object; its `str` is returned.
        limit: maximum width in average characters: m and w count 1.5, East Asian wide characters
            and emoji 2. A text that is cut ends in an ellipsis.

    >>> one_line("Mia lives", 8), one_line("wwwwwwwww", 8)
    ('Mia liv…', 'wwwww…')
    """
    head = str(text)[: 4 * limit + 1]
    line = " ".join("".join(c if c.isprintable() else " " for c in head).split())
    weighed = _weighed(line)
    if len(weighed) <= limit and len(head) <= 4 * limit:
        return line
    return _unweighed(weighed[: limit - 1]).rstrip() + "…"


_FILLER = "\ue000"
"""Placeholder for the extra width of a character; not printable, so it occurs in no line."""

_WIDE_PAIR = re.compile("([mwMW@%][^mwMW@%]*[mwMW@%])")


def _weighed(line: str) -> str:
    """Return a line with placeholders, so that the length of each part is its width.

    A placeholder follows every second wide letter, and every character of double width.
    """
    if not line.isascii():
        line = "".join(
            char + _FILLER if unicodedata.east_asian_width(char) in "WF" else char for char in line
        )
    return _WIDE_PAIR.sub(rf"\1{_FILLER}", line)


def _unweighed(line: str) -> str:
    return line.replace(_FILLER, "")


def _escape(text: str) -> str:
    return html.escape(text, quote=False).replace("$", "&#36;")


def number(value: Any) -> Any:
    """Round to four significant digits for JSON; `None` for values that are not finite.

    Args:
        value: any number, including numpy's, or `None`.
    """
    if value is None or isinstance(value, int):
        return value
    value = float(value)
    return float(f"{value:.4g}") if math.isfinite(value) else None


def numbers(values: Iterable[Any]) -> list[Any]:
    """Apply `number` to every value.

    Args:
        values: numbers or `None`, as for `number`.
    """
    return [number(value) for value in values]


def known(value: float | None) -> float:
    """Return a value after a check that it is not `None`.

    Args:
        value: a value that cannot be `None` here.

    Raises:
        ValueError: the value is `None`.
    """
    if value is None:
        raise ValueError("known: got None, expected a number; leave unmeasured rows out first")
    return value


def mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that are not `None`; `None` if there are none.

    Args:
        values: measured values; `None` for missing ones.
    """
    measured = [value for value in values if value is not None]
    return statistics.fmean(measured) if measured else None


def largest(rows: Iterable[Iterable[float | None]]) -> float:
    """Return the largest absolute value in rows of values, 1 if all are 0 or `None`.

    Args:
        rows: rows of values, of any length.
    """
    sizes = (abs(value) for row in rows for value in row if value is not None)
    return max(sizes, default=0) or 1


def finish(
    fig: go.Figure, title: str, caption: str, alt: str, height: int, **layout: Any
) -> go.Figure:
    """Give a figure its title, height, caption and alt text, and return it.

    Args:
        fig: the figure, changed in place.
        title: title above the figure, escaped.
        caption: sentence with the main numbers of this figure.
        alt: sentence for screen readers: the kind of figure and the data it shows.
        height: height in pixels.
        layout: further properties of the layout.
    """
    fig.layout.template = TEMPLATE  # assigned; update_layout would merge it into plotly's default
    fig.update_layout(
        title_text=title, height=height, **layout, meta={"caption": caption, "alt": alt}
    )
    return fig


def no_rows(title: str, alt: str) -> go.Figure:
    """Return a figure without axes that states that there are no data yet.

    Args:
        title: as for `finish`.
        alt: the kind of figure and the data it will show.
    """
    fig = go.Figure()
    fig.update_xaxes(visible=False)
    fig.update_yaxes(visible=False)
    fig.add_annotation(
        text="no rows yet", xref="paper", yref="paper", x=0.5, y=0.5, showarrow=False
    )
    caption = "There are no rows for this figure yet; it is drawn as soon as there are."
    return finish(fig, title, caption, f"{alt} Nothing is drawn: there are no rows yet.", 200)


class PlainFigure(go.Figure):  # type: ignore[misc]  # plotly has no types
    """A figure that creates plotly's objects only when its traces or layout are accessed.

    Plotly copies every value of a figure when it creates its objects, and again when it returns the
    JSON. An explorer draws many figures of which only the JSON is used.

    Args:
        spec: the figure as plotly's JSON, in lists and dictionaries; nothing is validated.
    """

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self._spec = spec

    def __getattr__(self, name: str) -> Any:
        if "_spec" not in self.__dict__:
            raise AttributeError(name)
        spec = self.to_dict()  # plotly changes its input, which other figures may share
        del self.__dict__["_spec"]
        super().__init__(spec, _validate=False)
        return getattr(self, name)

    def to_dict(self) -> dict[str, Any]:
        """Return plotly's JSON in new dictionaries, whose lists are shared with the figure."""
        spec: Mapping[str, Any] = self.__dict__.get("_spec") or super().to_dict()
        lists = {key: [_own(one) for one in spec[key]] for key in ("data", "frames") if key in spec}
        return {"layout": _own(spec["layout"]), **lists}


def read_only(figure: go.Figure) -> Mapping[str, Any]:
    """Return plotly's JSON of a figure, for callers that do not change it.

    Args:
        figure: a figure; the JSON of a `PlainFigure` is not copied.
    """
    spec: Mapping[str, Any] | None = figure.__dict__.get("_spec")
    return figure.to_plotly_json() if spec is None else spec


def _own(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of nested dictionaries that shares their lists."""
    return {key: _own(value) if isinstance(value, dict) else value for key, value in spec.items()}


def from_traces(
    traces: Sequence[Mapping[str, Any]],
    title: str,
    caption: str,
    alt: str,
    height: int,
    clicks: Mapping[str, Any] | None = None,
    **layout: Any,
) -> go.Figure:
    """Return a figure from plain traces, for figures that a control redraws often.

    The traces are not validated, because plotly would check each cell of a heatmap. A test
    validates them instead.

    Args:
        traces: the traces as plotly's JSON.
        title: as for `finish`.
        caption: as for `finish`.
        alt: as for `finish`.
        height: as for `finish`.
        clicks: the control and values that clicks on points set (`selection.clicks_on`).
        layout: further properties of the layout.
    """
    meta = {"caption": caption, "alt": alt} | ({"clicks": clicks} if clicks else {})
    return PlainFigure(
        {
            "data": list(traces),
            "layout": {
                "template": TEMPLATE,
                "title": {"text": title},
                "height": height,
                "meta": meta,
                **layout,
            },
        }
    )


def pattern(number: int) -> dict[str, Any]:
    """Return the fill pattern of the bars of series `number`, to distinguish them without colour.

    Args:
        number: position of the series, from 0; patterns repeat.
    """
    return {
        "shape": PATTERNS[number % len(PATTERNS)],
        "fillmode": "overlay",
        "fgcolor": "white",
        "solidity": 0.25,
    }


def series_color(number: int) -> str:
    """Return the colour of series `number`.

    Args:
        number: position of the series, from 0; colours repeat.
    """
    return CATEGORIES[number % len(CATEGORIES)]


def series_marker(number: int, size: int) -> dict[str, Any]:
    """Return the shape of the markers of series `number`, of a size in pixels.

    Args:
        number: Position of the series, from 0; shapes repeat.
        size: Size of the markers in pixels.
    """
    return {"symbol": MARKERS[number % len(MARKERS)], "size": size}


def series_style(number: int, size: int) -> dict[str, Any]:
    """Return line and markers of series `number`.

    After the last colour, lines are dashed and markers open, so that twice as many series can be
    distinguished.

    Args:
        number: Position of the series, from 0.
        size: Size of the markers in pixels.
    """
    again = number // len(CATEGORIES) % 2
    marker = series_marker(number, size)
    return {
        "line": {
            "color": series_color(number),
            "width": 1.5,
            "dash": "dash" if again else "solid",
        },
        "marker": marker | ({"symbol": f"{marker['symbol']}-open"} if again else {}),
    }


def colorbar(title: str) -> dict[str, Any]:
    """Return a narrow colour bar with its title along it.

    Args:
        title: title of the colour bar, escaped.
    """
    return {
        "title": {"text": title, "side": "right", "font": {"size": 13}},
        "thickness": 12,
        "outlinewidth": 0,
        "tickfont": {"size": 11},
        "ticklabeloverflow": "allow",
    }


def magnitude_heatmap(bound: float | None, bar_title: str) -> dict[str, Any]:
    """Return the properties of a heatmap of nonnegative values.

    Args:
        bound: the value at the end of the scale; `None` for the largest value.
        bar_title: title of the colour bar.
    """
    return {
        "colorscale": [[n / (len(MAGNITUDES) - 1), shade] for n, shade in enumerate(MAGNITUDES)],
        "zmin": 0,
        "zmax": bound,
        "xgap": 1,
        "ygap": 1,
        "textfont": {"size": 11},
        "colorbar": colorbar(bar_title),
        "hoverongaps": False,
    }


def signed_heatmap(bound: float, bar_title: str, gap: int = 1) -> dict[str, Any]:
    """Return the properties of a heatmap of signed values: purple above 0, orange below.

    Args:
        bound: the absolute value at both ends of the scale.
        bar_title: title of the colour bar.
        gap: pixels between cells.
    """
    return {
        "colorscale": PURPLE_ORANGE,
        "zmid": 0,
        "zmin": -bound,
        "zmax": bound,
        "xgap": gap,
        "ygap": gap,
        "textfont": {"size": 11},
        "colorbar": colorbar(bar_title),
        "hoverongaps": False,  # otherwise the hover box of a missing value shows NaN
    }


def gap_marks(
    x: Sequence[Any], y: Sequence[Any], cells: Sequence[Sequence[Any]], name: str
) -> dict[str, Any]:
    """Return marks on the cells of a heatmap without value, with a legend entry.

    An unmarked cell would look like a value of 0.

    Args:
        x: the columns of the heatmap.
        y: its rows.
        cells: its values, row by row; a row may be shorter than the columns.
        name: what the marks mean: "not scored", "not assigned".
    """
    gaps = [
        (column, row)
        for row, values in zip(y, cells, strict=True)
        for column, value in zip(x, values, strict=False)
        if value is None
    ]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [column for column, _ in gaps],
        "y": [row for _, row in gaps],
        "showlegend": bool(gaps),
        "marker": {
            "symbol": "line-ew-open",
            "size": 9,
            "color": GREY,
            "line": {"width": 2, "color": GREY},
        },
        "hovertemplate": f"{name}<extra></extra>",
    }


def gap_note(trace: Mapping[str, Any]) -> str:
    """Return a sentence for the caption about the marks of `gap_marks`, "" if there are none.

    Args:
        trace: the trace of `gap_marks`.
    """
    count = len(trace["x"])
    return f" A dash is {trace['name']} ({count}), 0 is a value." if count else ""


def count_axis(count: int, title: str = "step t (chunk number)") -> dict[str, Any]:
    """Return the layout of an axis that counts from 1, with at most 15 labels on round numbers.

    Args:
        count: the last number.
        title: title of the axis.
    """
    every = next(
        step
        for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, count)
        if count <= 15 * step or step == count
    )
    return {
        "title": {"text": title},
        "range": [0.4, count + 0.6],
        "tick0": 0,
        "dtick": every,
        "zeroline": False,
    }


def lines_axis(texts: Sequence[str], room: float = 0.6) -> dict[str, Any]:
    """Return the layout of a y axis with one name per line, the first on top.

    Args:
        texts: the names, escaped.
        room: space above the first line, in lines.
    """
    return {
        "tickvals": list(range(len(texts))),
        "ticktext": list(texts),
        "range": [max(1, len(texts)) - 0.4, -room],
        "zeroline": False,
    }


def panel_titles(titles: Sequence[object]) -> list[str]:
    """Return titles of panels side by side, broken into lines that fit above the panels.

    Args:
        titles: one untrusted title per panel. Words of up to 14 characters are not broken.

    >>> panel_titles(["no limit, compression", "a", "b", "c"])[0]
    'no limit,<br>compression'
    """
    words = (word for title in titles for word in _weighed(one_line(title, 40)).split())
    width = max(10, 40 // max(1, len(titles)), min(14, max(map(len, words), default=0)))
    lines = [paragraph(title, min(36, 3 * width - 4), width).split("<br>") for title in titles]
    # a word that does not fit on the rest of a line can cause a fourth line
    return ["<br>".join(own[:3]) + "…" * (len(own) > 3) for own in lines]


PANELS_TOP = 92
"""Top margin in pixels of panels side by side, for the title and three lines of panel titles."""


def side_by_side(
    titles: Sequence[object], columns: int | None = None, spacing: float = 0.0
) -> go.Figure:
    """Return a figure of empty panels side by side with one y axis for all, named by `titles`.

    Args:
        titles: as for `panel_titles`.
        columns: panels per row, `None` for all in one row.
        spacing: space between two rows of panels, as a share of the height of the drawing.
    """
    columns = min(columns or len(titles), len(titles)) or 1
    return make_subplots(
        rows=-(-len(titles) // columns) or 1,
        cols=columns,
        shared_yaxes="all",
        horizontal_spacing=0.05,
        vertical_spacing=spacing,
        subplot_titles=[
            name
            for start in range(0, len(titles), columns)
            for name in panel_titles(titles[start : start + columns])
        ],
    )


def name_panels(fig: go.Figure, title: str) -> None:
    """Give panels side by side one common title of their x axes, centred below them.

    On a narrow page, a title per panel would overlap the next one, and slanted tick labels.

    Args:
        fig: the figure, changed in place.
        title: the title, escaped.
    """
    fig.update_xaxes(tickangle=0, nticks=4)
    fig.add_annotation(
        name="x title",
        text=title,
        x=0.5,
        xref="paper",
        y=0,
        yref="paper",
        yanchor="top",
        yshift=-26,
        showarrow=False,
        font={"size": 13},
    )


class Measured(Protocol):
    """A row of a table with a value and, if it could be computed, an interval around it."""

    @property
    def value(self) -> float | None: ...

    @property
    def low(self) -> float | None: ...

    @property
    def high(self) -> float | None: ...


def interval(rows: Sequence[Measured]) -> dict[str, Any]:
    """Return error bars for measured rows; a row without an interval has none.

    Args:
        rows: measured rows, in the order of the points.
    """
    return error_bars(
        [0 if row.high is None else row.high - known(row.value) for row in rows],
        [0 if row.low is None else known(row.value) - row.low for row in rows],
        width=5,
    )


def error_bars(
    above: Iterable[float | None],
    below: Iterable[float | None],
    width: int = 4,
    thickness: int = 2,
) -> dict[str, Any]:
    """Return error bars with different lengths to both sides.

    Args:
        above: length of each bar above its point, in units of the axis; `None` for no bar.
        below: length of each bar below its point.
        width: width of the caps in pixels.
        thickness: thickness of the lines in pixels.
    """
    return {
        "type": "data",
        "symmetric": False,
        "thickness": thickness,
        "width": width,
        "array": numbers(above),
        "arrayminus": numbers(below),
    }
