"""What notebook 08 says about rules of credit is what the committed rows say.

`python -m tests.house.test_credit_claims` prints what to paste.
"""

import functools
import itertools
import json

import nbformat

from finemem_lib.evaluation.credit_truth import REGIMES, VARIANTS, Row
from finemem_lib.evaluation.rows import read_rows as read_measured
from finemem_lib.experiments.arena import Arena, arena
from finemem_lib.experiments.design import load_design
from finemem_lib.experiments.rows import read_rows
from finemem_lib.lesson.cases import disagreement
from finemem_lib.runs.parameters import RulesDisagree
from finemem_lib.util.provenance import workbench_root

ROWS = workbench_root() / "data" / "experiments" / "credit_truth.jsonl"
EVIDENCE = ("eara", "eara-used", "evidence-loo", "evidence-shapley")
PRESSED = "memory of 12 items"
REPLAYING = ("step-loo", "step-shapley", "owen")
CONTESTANTS = (
    "csr",
    "eara",
    "eara-used",
    "mt-grpo",
    "gigpo",
    "attributed-dense",
    "outcome-broadcast",
    "uniform-split",
    "csr-later, end",
)
"""Rules that ask nothing new afterwards and do not read the truth."""


def cell(rule: str, measure: str, name: str = "all", truth: str = "causal") -> Row:
    """Return one row of the table; the truth is what each step caused."""
    (found,) = (
        row
        for row in read_measured(ROWS, Row)
        if (row.rule, row.measure, row.slice, row.truth) == (rule, measure, name, truth)
    )
    return found


def said(row: Row) -> str:
    """Return a value with its interval."""
    return f"{row.value:.2f} [{row.low:.2f}, {row.high:.2f}]"


def difference(row: Row) -> str:
    """Return the difference to evidence-anchored attribution with its interval."""
    return f"{row.difference:+.2f} [{row.difference_low:+.2f}, {row.difference_high:+.2f}]"


def noise(rule: str) -> str:
    """Return the share of a rule's credit on steps that told nothing."""
    return said(cell(rule, "noise", truth="planted"))


def hits(rule: str) -> str:
    """Return the precision of a rule at the step that told the answer."""
    return said(cell(rule, "precision", truth="planted"))


def signs(rule: str) -> str:
    """Return the sign errors of a rule against what the steps caused."""
    return said(cell(rule, "sign"))


@functools.cache
def trained() -> Arena:
    """Return what the committed rows of the arena say."""
    rows = read_rows(ROWS.with_name("arena.jsonl"))
    return arena(rows, load_design(ROWS.with_name("arena.design.yaml")))


def end(variant: str) -> str:
    """Return the sampled accuracy of a variant at the end of training, 6 chunks, under pressure."""
    (one,) = (
        one
        for one in trained().standings
        if (one.regime, one.variant, one.measure) == ("pressure", variant, "accuracy, sampled")
    )
    return f"{one.value:.2f} [{one.low:.2f}, {one.high:.2f}]"


def price(variant: str) -> str:
    """Return what a variant pays per stored noise sentence at update 14, with its error."""
    (one,) = (
        one
        for one in trained().prices
        if (one.regime, one.variant, one.update) == ("pressure", variant, 14)
    )
    return f"{one.noise:+.2f} ± {one.noise_error:.2f}"


def under_pressure(rule: str) -> str:
    """Return how well a rule orders the rollouts of a step, in a memory of 12 items."""
    return said(cell(rule, "rank_rollouts", PRESSED))


def best_without_a_call() -> Row:
    """Return the best row between rollouts of a rule that needs as few calls as the outcome."""
    rows = [cell(rule, "rank_rollouts") for rule in CONTESTANTS]
    return max((row for row in rows if not row.calls_made), key=lambda row: row.value)


def judged() -> str:
    """Return how many rules there are, in how many variants."""
    variants = {row.rule for row in read_measured(ROWS, Row)}
    return f"{len({VARIANTS[name].rule for name in variants})} rules, in {len(variants)} variants,"


def notebook_claims() -> list[str]:
    """Return the sentences of notebook 08 that quote the rows."""
    card = json.loads(ROWS.with_suffix(".json").read_text(encoding="utf-8"))
    used, csr, loo = (
        cell("eara-used", "rank"),
        *(cell(rule, "rank_rollouts") for rule in ("csr", "evidence-loo")),
    )
    free, two = best_without_a_call(), cell("two-sided-evidence", "rank_rollouts")
    lost = sorted(
        cell(rule, "rank", "memory without limit").value
        - cell(rule, "rank", "memory of 12 items").value
        for rule in EVIDENCE
    )
    return [
        f"The rows below judge {judged()} on {card['rollouts']:,} rollouts of planted streams",
        f"Intervals are over {card['clusters']['all']} streams, {card['clusters']['facts stay']} "
        f"in which facts stay and {card['clusters']['facts change']} in which they change.",
        "crediting only what the reader used is closer to the cause than crediting all that was "
        f"retrieved, {said(used)} against {said(cell('eara', 'rank'))}, a difference of "
        f"{difference(used)}, and takes no additional call.",
        f"All rules that follow evidence lose {lost[0]:.2f} to {lost[-1]:.2f} under pressure",
        f'Of the credit of "eara", {noise("eara")} lies on steps that told nothing, of that of '
        f'"eara-used" {noise("eara-used")}, of leave-one-out of the evidence '
        f"{noise('evidence-loo')}.",
        f'Where a step is credited for an answer, "eara" is right in {hits("eara")}, "csr" in '
        f'{hits("csr")}, "eara-used" in {hits("eara-used")}.',
        f'Of the steps that did good or harm, "eara" pays {signs("eara")} with the wrong sign, '
        f'leave-one-out of the evidence {signs("evidence-loo")}, "mt-grpo" {signs("mt-grpo")}.',
        f'In that order "{free.rule}" reaches {said(free)} without an additional call, '
        f"the chunk-level step reward {said(csr)} for {csr.calls_played:.1f} calls while "
        "playing, and "
        f"leave-one-out of the evidence {said(loo)} for {loo.calls_made:.1f} calls afterwards.",
        f"Two-sided evidence reaches {said(two)} for {two.calls_made:.1f} calls",
        f"{judged()} judged against two truths",
        "Between the rollouts of a step the outcome alone reaches "
        f'{under_pressure("outcome-broadcast")}, "eara" {under_pressure("eara")}, "csr" '
        f'{under_pressure("csr")}, "slot-price" {under_pressure("slot-price")} and '
        f'"two-sided-evidence" {under_pressure("two-sided-evidence")}.',
        "Within a rollout the price does not help: "
        f'"slot-price" {said(cell("slot-price", "rank", PRESSED))}, "eara-used" '
        f"{said(cell('eara-used', 'rank', PRESSED))}.",
        f"outcome-only ends at a sampled accuracy of {end('outcome-only')}, Fine-Mem at "
        f"{end('Fine-Mem')} and the slot price at {end('slot price')}.",
        f"At update 14 outcome-only pays {price('outcome-only')} for a stored noise sentence, "
        f"Fine-Mem {price('Fine-Mem')}, the slot price {price('slot price')}.",
    ]


def test_the_notebook_says_what_the_rows_say():
    text = " ".join(" ".join(one.source for one in page() if one.cell_type == "markdown").split())
    for claim in notebook_claims():
        assert claim in text, f"paste this into notebook 08:\n{claim}"


def test_the_words_around_the_figures_hold():
    assert {row.rule for row in read_measured(ROWS, Row)} == {*VARIANTS}
    used = cell("eara-used", "rank")
    assert used.difference_low > 0 and used.calls_made == 0  # closer to the cause, for nothing
    assert cell("csr", "rank_rollouts").difference_low > 0  # the chunk reward is above
    loo = cell("evidence-loo", "rank_rollouts")
    assert all(cell(rule, "rank_rollouts").low > loo.high for rule in REPLAYING)
    two = cell("two-sided-evidence", "rank_rollouts")
    assert loo.high < two.low and 10 * two.calls_made < loo.calls_made
    outcome, eara, csr, price_, two = (
        cell(rule, "rank_rollouts", PRESSED)
        for rule in ("outcome-broadcast", "eara", "csr", "slot-price", "two-sided-evidence")
    )
    # the outcome is farthest from the cause, two-sided evidence nearer than the slot price
    assert outcome.high < min(eara.low, csr.low) and price_.high < two.low
    ends = {
        one.variant: one
        for one in trained().standings
        if (one.regime, one.measure) == ("pressure", "accuracy, sampled")
    }
    assert ends["Fine-Mem"].high < ends["outcome-only"].low  # and yet it trains better
    assert ends["outcome-only"].high < ends["slot price"].low
    for rule in EVIDENCE:  # lose under pressure
        free, pressed = (cell(rule, "rank", name) for name in ("memory without limit", PRESSED))
        assert pressed.high < free.low


def page():
    (path,) = (workbench_root() / "notebooks").glob("08_*.ipynb")
    return nbformat.read(path, as_version=4).cells


def test_the_seed_of_the_page_moves_what_is_sampled_and_nothing_else():
    code = {one.id: one.source for one in page() if one.cell_type == "code"}

    def paid(seed: int) -> dict[str, tuple[float, ...]]:
        names = {"p": RulesDisagree(seed=seed)}
        for one in ("db5890ab", "b1c7099b", "e0cbda20"):  # imports, settings, pay
            names["trajectory"] = disagreement()
            exec(code[one], names)
        return {name: found.credit for name, found in names["paid"].items()}

    first, other = paid(0), paid(5)
    assert first == paid(0)
    assert {name for name in first if first[name] != other[name]} == {"step-shapley"}


def test_every_slice_of_a_regime_has_twenty_streams():
    clusters = json.loads(ROWS.with_suffix(".json").read_text(encoding="utf-8"))["clusters"]
    for name in itertools.chain(*REGIMES.values()):
        assert clusters[name] >= 20
        assert cell("eara", "rank", name).instances == clusters[name]


if __name__ == "__main__":
    print(*notebook_claims(), sep="\n\n")
