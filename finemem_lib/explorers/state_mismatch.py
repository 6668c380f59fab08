"""Explorer of the state mismatch: four rollouts, and a slider for the shares of questions."""

from __future__ import annotations

from finemem_lib.evaluation.state_mismatch import Fork
from finemem_lib.explorers.explorer import Control, Explorer, Views
from finemem_lib.figures.state_mismatch import fork_advantages

SHARES = 8
"""Number of intervals of the slider."""


def fork_explorer(share: float = 0.5) -> Explorer:
    """Return the explorer of a fork: the effects of step 2, and its advantages.

    Args:
        share: Initial share of the questions about step 1, in [0, 1], rounded to a slider value.
    """

    def build(share: float) -> Views:
        return {"fork": fork_advantages(Fork(share))}

    shares = [number / SHARES for number in range(SHARES + 1)]
    return Explorer(
        "Effect and advantage of step 2",
        (
            Control(
                "share",
                "questions about step 1",
                [(f"{value:.1%}".replace(".0%", "%"), value) for value in shares],
                min(shares, key=lambda value: abs(value - share)),
                kind="slider",
                static=True,
            ),
        ),
        build,
    )
