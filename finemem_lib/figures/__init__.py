"""Plotly figures, each with a title, a caption and alternative text.

One file per subject. Notebooks call the functions of this package, such as `evidence_sankey` or
`training_curves`, and display the figures with `show`.
"""

from finemem_lib.figures.arena import arena_standings, noise_price_and_end
from finemem_lib.figures.benchmark import (
    benchmark_accuracy,
    cost_by_length,
    memory_length,
    stages_by_method,
)
from finemem_lib.figures.credit_rules import (
    credit_by_regime,
    credit_measures,
    credit_per_call,
    differences_by_regime,
)
from finemem_lib.figures.display import outputs, show
from finemem_lib.figures.episodes import episode_before_after
from finemem_lib.figures.evidence import (
    EvidencePart,
    evidence_heatmap,
    evidence_parts,
    evidence_trail,
    source_sentence,
)
from finemem_lib.figures.evidence_flow import evidence_sankey
from finemem_lib.figures.experiments import (
    accuracy_by_test_length,
    dose_response,
    edit_bars,
    learning_curves,
    measure_intervals,
)
from finemem_lib.figures.frames import figure_table
from finemem_lib.figures.group import group_completions
from finemem_lib.figures.memory import (
    memory_growth,
    memory_state,
    operation_timeline,
    question_audit,
)
from finemem_lib.figures.overfitting import overfitting_scatter
from finemem_lib.figures.question_cards import question_card
from finemem_lib.figures.retrieval import recall_by_rank
from finemem_lib.figures.revisions import accuracy_by_revisions
from finemem_lib.figures.rewards import (
    Term,
    advantage_dumbbell,
    advantage_heatmap,
    credit_by_rule,
    credit_side_by_side,
    formula_card,
    reward_decomposition,
)
from finemem_lib.figures.rollouts import (
    RolloutGroup,
    gradient_map,
    recorded_groups,
    rollout_compare,
    rollout_diff,
    rollout_groups,
    step_terms,
)
from finemem_lib.figures.state_mismatch import agreement_by_step, fork_advantages
from finemem_lib.figures.story import seen_by_group, step_story, text_rows
from finemem_lib.figures.tokens import (
    ColouredCompletion,
    change_view,
    completion_grid,
    completion_view,
    step_tokens,
    token_push,
)
from finemem_lib.figures.training import training_curves, training_keys

__all__ = [
    "ColouredCompletion",
    "EvidencePart",
    "RolloutGroup",
    "Term",
    "accuracy_by_revisions",
    "accuracy_by_test_length",
    "advantage_dumbbell",
    "advantage_heatmap",
    "agreement_by_step",
    "arena_standings",
    "benchmark_accuracy",
    "change_view",
    "completion_grid",
    "completion_view",
    "cost_by_length",
    "credit_by_regime",
    "credit_by_rule",
    "credit_measures",
    "credit_per_call",
    "credit_side_by_side",
    "differences_by_regime",
    "dose_response",
    "edit_bars",
    "episode_before_after",
    "evidence_heatmap",
    "evidence_parts",
    "evidence_sankey",
    "evidence_trail",
    "figure_table",
    "fork_advantages",
    "formula_card",
    "gradient_map",
    "group_completions",
    "learning_curves",
    "measure_intervals",
    "memory_growth",
    "memory_length",
    "memory_state",
    "noise_price_and_end",
    "operation_timeline",
    "outputs",
    "overfitting_scatter",
    "question_audit",
    "question_card",
    "recall_by_rank",
    "reward_decomposition",
    "rollout_compare",
    "rollout_diff",
    "recorded_groups",
    "rollout_groups",
    "seen_by_group",
    "show",
    "source_sentence",
    "stages_by_method",
    "step_story",
    "step_terms",
    "step_tokens",
    "text_rows",
    "token_push",
    "training_curves",
    "training_keys",
]
