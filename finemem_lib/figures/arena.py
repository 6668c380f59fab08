"""Figures of the arena: measures of every rule by regime, and the price of noise against a measure.

They draw the result of `experiments.arena.arena`.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from finemem_lib.evaluation.intervals import interval_text
from finemem_lib.experiments.arena import Arena, NoisePrice, Standing, seeds_text
from finemem_lib.figures import style
from finemem_lib.figures.style import GREY, known, label, paragraph


def arena_standings(of: Arena) -> go.Figure:
    """Show the primary measures of every rule with their intervals, one panel per regime.

    Rules are ordered by their mean rank over regimes in the first measure, the best on top. A
    marker is open if another rule is clearly better (`Standing.beaten_by`).

    Args:
        of: the result of `experiments.arena.arena`.
    """
    measures = of.design.primary
    rules = _best_first(of.standings, measures[0])
    regimes = list(of.design.regimes)
    fig = style.side_by_side(regimes)
    for place, measure in enumerate(measures):
        shift = 0.6 * (place - (len(measures) - 1) / 2) / max(1, len(measures))
        for panel, regime in enumerate(regimes):
            part = [
                one
                for one in of.standings
                if (one.measure, one.regime) == (measure, regime) and one.variant in rules
            ]
            dots = _standing_dots(part, rules, place, shift, regime)
            dots.update(name=label(measure), legendgroup=measure)
            dots.update(showlegend=not panel and len(measures) > 1)
            fig.add_trace(dots, row=1, col=panel + 1)
    fig.update_yaxes(style.lines_axis([paragraph(rule, 36, 20) for rule in rules]))
    fig.update_yaxes(title_text="rule", col=1)
    fig.update_xaxes(matches="x")
    fig.update_annotations(font={"size": 13})
    style.name_panels(fig, "accuracy (mean score)")
    best = "; ".join(
        f"{style.one_line(one.regime, 28)} {style.one_line(one.variant, 28)} {one.value:.3f}"
        for one in of.standings
        if one.measure == measures[0] and one.rank == 1
    )
    done = len(of.design.cells) - len(of.missing)
    return style.finish(
        fig,
        "Accuracy of every rule by regime",
        f"{of.level:.0%} intervals over seeds and streams, {done} of {len(of.design.cells)} cells; "
        f"open markers are beaten by another rule. Best in {measures[0]}: {best or 'nothing yet'}.",
        f"Dot plots with intervals of {len(measures)} measures for {len(rules)} rules in "
        f"{len(regimes)} regimes.",
        200 + max(130, (22 + 12 * len(measures)) * len(rules)),
        margin={"t": style.PANELS_TOP, "b": 96},
    )


def _standing_dots(
    part: Sequence[Standing], rules: Sequence[str], series: int, shift: float, regime: str
) -> go.Scatter:
    """Return the dots of one measure in the panel of a regime, each `shift` lines below the line of
    its rule."""
    at = [rules.index(one.variant) for one in part]
    marker = style.series_marker(series, 9)
    shape = marker.pop("symbol")
    return go.Scatter(
        x=style.numbers(one.value for one in part),
        y=style.numbers(line + shift for line in at),
        meta={"panel": label(regime), "y": at},
        error_x=style.interval(part),
        mode="markers",
        marker={
            "color": style.series_color(series),
            "symbol": [f"{shape}-open" if one.beaten_by else shape for one in part],
            **marker,
        },
        customdata=[_hover(one) for one in part],
        hovertemplate="%{customdata}<extra></extra>",
    )


def noise_price_and_end(of: Arena, measure: str) -> go.Figure:
    """Show the price of noise during training against a measure at its end, one point per rule.

    The price is that of each rule's second measured update, when training is under way (the first
    is at the warm start).

    Args:
        of: the result of `experiments.arena.arena`.
        measure: the measure on the y axis.
    """
    prices = _second_prices(of)
    ends = {
        (one.regime, one.variant): one
        for one in of.standings
        if one.measure == measure and (one.regime, one.variant) in prices
    }
    regimes = [name for name in of.design.regimes if any(at[0] == name for at in ends)]
    columns = 2 if len(regimes) > 2 else len(regimes) or 1
    lines = -(-len(regimes) // columns) or 1
    fig = style.side_by_side(regimes, columns, 0.3 / lines)  # for numbers, and three lines of names
    correlations, seen = [], set[str]()
    for panel, regime in enumerate(regimes):
        here = {at[1]: (prices[at], end) for at, end in ends.items() if at[0] == regime}
        for place, rule in enumerate(of.design.variants):
            if rule not in here:
                continue
            point = _price_point(*here[rule], place).update(showlegend=rule not in seen)
            fig.add_trace(point, row=panel // columns + 1, col=panel % columns + 1)
        seen |= here.keys()
        correlations.append(f"{style.one_line(regime, 28)} {_rank_correlation(here)}")
    fig.add_vline(x=0, line={"color": GREY, "width": 1})
    fig.update_yaxes(title_text=label(measure), col=1)
    fig.update_annotations(font={"size": 13})
    style.name_panels(fig, "advantage per stored noise sentence")
    updates = sorted({price.update for price in prices.values()})
    return style.finish(
        fig,
        "Accuracy at the end against the price of noise",
        f"Price at update {' or '.join(map(str, updates)) or '–'}, bars of 95 %. Rank correlation "
        f"over rules: {'; '.join(correlations) or 'none (0 rules)'}. Left of zero, storing noise "
        "is punished.",
        f"Scatter plots of {len(seen)} rules in {len(regimes)} regimes: advantage per stored noise "
        "sentence and accuracy at the end, with error bars.",
        242 + 260 * lines,
        margin={"t": style.PANELS_TOP, "b": 150},
    )


def _price_point(price: NoisePrice, end: Standing, series: int) -> go.Scatter:
    """Return the point of one rule in the panel of a regime."""
    bar = [price.noise_error and 1.96 * price.noise_error]
    return go.Scatter(
        x=style.numbers([price.noise]),
        y=style.numbers([end.value]),
        error_x=style.error_bars(bar, bar, thickness=1),
        error_y=style.interval([end]) | {"thickness": 1},
        mode="markers",
        name=label(end.variant),
        legendgroup=label(end.variant),
        meta={"panel": label(end.regime)},
        marker={
            "color": style.series_color(series),
            **style.series_marker(series + series // len(style.MARKERS), 10),
        },
        customdata=[_hover(end)],
        hovertemplate="noise %{x:+.2f}, %{customdata}<extra></extra>",
    )


def _best_first(standings: Sequence[Standing], measure: str) -> list[str]:
    """Return the rules by their mean rank in a measure, then by their mean."""
    ranks: dict[str, list[tuple[float, float]]] = {}
    for one in standings:
        if one.measure == measure:
            rank = float("inf") if one.rank is None else one.rank
            ranks.setdefault(one.variant, []).append((rank, -one.value))
    return sorted(
        ranks, key=lambda rule: tuple(map(statistics.fmean, zip(*ranks[rule], strict=True)))
    )


def _second_prices(of: Arena) -> dict[tuple[str, str], NoisePrice]:
    """Return the price of noise by regime and rule, at each rule's second measured update."""
    by_place: dict[tuple[str, str], list[NoisePrice]] = {}
    for price in of.prices:
        if price.noise is not None:
            by_place.setdefault((price.regime, price.variant), []).append(price)
    return {place: prices[:2][-1] for place, prices in by_place.items()}


def _rank_correlation(here: Mapping[str, tuple[NoisePrice, Standing]]) -> str:
    from scipy.stats import spearmanr

    pairs = [(known(price.noise), end.value) for price, end in here.values()]
    if len(pairs) < 3 or any(len(set(side)) < 2 for side in zip(*pairs, strict=True)):
        return f"– ({len(pairs)} rules)"
    return f"{spearmanr(*zip(*pairs, strict=True)).statistic:+.2f} ({len(pairs)} rules)"


def _hover(one: Standing) -> str:
    return (
        f"{label(one.variant)}, {label(one.measure)}: "
        f"{interval_text(one.value, one.low, one.high)}, seeds {seeds_text(one.seeds)}"
    )
