"""Interactive widgets for JupyterLab.

Pass the explorers, such as `what_if_explorer`, `evidence_explorer` and `training_explorer`, to
`show`, which displays figures with static sliders if no kernel runs.
"""

from finemem_lib.explorers.display import is_live, show
from finemem_lib.explorers.evidence import evidence_explorer, memory_player
from finemem_lib.explorers.explorer import Control, Explorer
from finemem_lib.explorers.live import Live
from finemem_lib.explorers.state_mismatch import fork_explorer
from finemem_lib.explorers.training import (
    LiveCurves,
    compare_rollouts,
    group_explorer,
    log_prob_change,
    token_logprobs,
    training_explorer,
)
from finemem_lib.explorers.what_if import what_if_explorer

__all__ = [
    "Control",
    "Explorer",
    "Live",
    "LiveCurves",
    "compare_rollouts",
    "evidence_explorer",
    "fork_explorer",
    "group_explorer",
    "is_live",
    "log_prob_change",
    "memory_player",
    "show",
    "token_logprobs",
    "training_explorer",
    "what_if_explorer",
]
