r"""Score an answer against the accepted answers, with the metric of its data source.

Differs from the paper: Mem-alpha's scorer (arXiv 2509.25911, table 6) lower-cases the prediction
but not the ";"-separated gold answer, and its baselines find label "3" inside "13". Here both sides
are normalised alike and labels must match as a whole. The other conventions are kept: answers match
as substrings, so extending an answer never lowers its score; report the answer length with it.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

Metric = Callable[[str, Sequence[str]], float | None]
_PUNCTUATION = re.compile(r"[^\w\s]|_")
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")


def normalise(text: str) -> str:
    """Return the normalised text that the metrics compare.

    NFKC form, lower case, no punctuation or symbols, no English articles, single spaces: the
    normalisation of MemoryAgentBench extended to Unicode. A text that would become empty ("The",
    "%") keeps its lower-cased form.

    >>> normalise("The  Treaty of Alès, 1629.")
    'treaty of alès 1629'
    >>> normalise("A"), normalise("%")
    ('a', '%')
    """
    return _bare(text) or _folded(text)


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    r"""Return 1.0 when the reply (its first ``\boxed{}``, or all of it) equals an answer, else 0.0.

    >>> exact_match("the Brandt couple.", ["The Brandt Couple"])
    1.0
    """
    reply = normalise(boxed(prediction))
    return float(any(reply == normalise(answer) for answer in answers))


def substring_match(prediction: str, answers: Sequence[str]) -> float:
    """Return 1.0 when an answer occurs in the reply, else 0.0.

    SubEM of Mem-alpha table 6 and MemoryAgentBench. As in both, the occurrence may begin or end
    inside a word; an empty answer never occurs.

    >>> substring_match("It was signed in the year 1629.", ["1685", "1629"])
    1.0
    """
    return float(any(_occurs(answer, prediction) for answer in answers))


def part_match(prediction: str, answers: Sequence[str]) -> float:
    """Return the share of an answer's ";"-separated parts that occur in the reply.

    The maximum over the answers (PerLTQA in Mem-alpha table 6).

    >>> part_match("philips and OSRAM", ["Philips; Osram; Midea; ABB"])
    0.5
    """
    return max(_share(_parts([answer], ";"), prediction) for answer in answers)


def keyword_hit(prediction: str, answers: Sequence[str]) -> float:
    """Return the share of the keywords that occur in the reply.

    A single answer is a ","-separated list of keywords; of several answers each is one keyword
    (BookSum and InfBench-Sum in Mem-alpha table 6).

    >>> keyword_hit("A cook grows algae.", ["algae, ketchup, Mars, cook"])
    0.5
    """
    return _share(_parts(answers, ",") if len(answers) == 1 else list(answers), prediction)


def label_match(prediction: str, answers: Sequence[str]) -> float:
    r"""Return 1.0 when the reply (its first ``\boxed{}``, or all of it) is exactly a label.

    Otherwise 0.0. The metric of the TTL sources in Mem-alpha table 6.

    >>> label_match(r"The label is \boxed{3}.", ["3"]), label_match("13", ["3"])
    (1.0, 0.0)
    """
    return float(boxed(prediction) in [answer.strip() for answer in answers])


def word_match(prediction: str, answers: Sequence[str]) -> float:
    """Return 1.0 when all ";"-separated parts of an answer occur as whole words (planted streams).

    >>> word_match("Mia lives in Rome", ["rome"]), word_match("Mia met Romeo", ["Rome"])
    (1.0, 0.0)
    """
    split = [_parts([answer], ";") or [answer] for answer in answers]
    return float(any(all(_occurs(part, prediction, " ") for part in parts) for parts in split))


def f1(prediction: str, answers: Sequence[str]) -> float:
    """Return the F1 score, the harmonic mean of word precision and recall, of the best answer.

    Unlike the substring metrics, F1 penalises every superfluous word. Source: SQuAD, arXiv
    1606.05250.

    >>> round(f1("in Cape Town", ["Cape Town"]), 3)
    0.8
    """
    reply = Counter(normalise(prediction).split())

    def one(answer: str) -> float:
        gold = Counter(normalise(answer).split())
        return 2 * (reply & gold).total() / max(1, reply.total() + gold.total())

    return max(map(one, answers))


def rouge_l(prediction: str, answers: Sequence[str]) -> float:
    """Return the ROUGE-L F-measure of the best answer, without stemming (package rouge-score).

    >>> round(rouge_l("a cook grows algae", ["the cook grows steak"]), 2)
    0.5
    """
    scorer = _rouge_scorer()
    return max(float(scorer.score(gold, prediction)["rougeL"].fmeasure) for gold in answers)


def unscored(prediction: str, answers: Sequence[str]) -> None:
    """Return `None`: the source needs a judge (LongMemEval) or a table of films (ReDial)."""


METRICS: dict[str, Metric] = {
    metric.__name__: metric
    for metric in (
        exact_match,
        substring_match,
        part_match,
        keyword_hit,
        label_match,
        word_match,
        f1,
        rouge_l,
        unscored,
    )
}
"""Every metric by name: (prediction, at least one accepted answer) -> [0, 1] or `None`."""

SOURCES: dict[str, str] = {
    "planted": "word_match",
    "planted-paraphrased": "word_match",
    "planted-layers": "word_match",
    "planted-layers-summary": "keyword_hit",
    "squad": "substring_match",
    "hotpotqa": "substring_match",
    "perltqa": "part_match",
    "locomo": "substring_match",
    "lme_train": "unscored",
    "pubmed-rct": "label_match",
    "booksum": "keyword_hit",
    "ruler_*": "substring_match",
    "eventqa*": "substring_match",
    "factconsolidation_*": "substring_match",
    "longmemeval*": "unscored",
    "icl_*": "label_match",
    "infbench_sum*": "keyword_hit",
    "infbench_reference": "rouge_l",
    "detective_qa": "exact_match",
    "recsys*": "unscored",
    "own": "substring_match",
}
"""Metric by data source; a trailing "*" matches any ending.

"own" is for a researcher's own texts (`data.own_texts`). The other names and their metrics come
from Mem-alpha (arXiv 2509.25911, table 6 and its scorer for MemoryAgentBench) and from
MemoryAgentBench (arXiv 2507.05257). `infbench_reference` is for rows whose answer is a whole
reference summary rather than keywords.
"""


def metric_for(data_source: str) -> str:
    """Return the name of the metric for a data source.

    Raises:
        ValueError: the data source is not in `SOURCES`.

    >>> metric_for("icl_nlu_8296shot_balance")
    'label_match'
    """
    if data_source in SOURCES:
        return SOURCES[data_source]
    for name, metric in SOURCES.items():
        if name.endswith("*") and data_source.startswith(name[:-1]):
            return metric
    raise ValueError(
        f"no metric for data source {data_source!r}: expected one of {', '.join(SOURCES)}; "
        "give the instance the name of the source whose metric applies"
    )


def score(prediction: str | None, answers: Sequence[str], data_source: str) -> float | None:
    """Score a prediction against the accepted answers with the metric of its data source.

    Args:
        prediction: The reader's reply, or `None`.
        answers: The accepted answers; one match suffices.
        data_source: Name in `SOURCES` that selects the metric.

    Returns:
        A score in [0, 1], or `None` where the source needs a judge, no answer is known, or there is
        no prediction.

    Raises:
        ValueError: the data source is not in `SOURCES`.

    >>> score("The Edict of ALÈS", ["Edict of Alès"], "squad")
    1.0
    """
    metric = METRICS[metric_for(data_source)]
    return metric(prediction, answers) if answers and prediction is not None else None


def boxed(reply: str) -> str:
    r"""Return the text of the first ``\boxed{}``, or else the whole reply, stripped of white space.

    >>> boxed(r"So \boxed{ 7 }."), boxed(" 7\n")
    ('7', '7')
    """
    found = _BOXED.search(reply)
    return (found[1] if found else reply).strip()


def _folded(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


@functools.lru_cache(maxsize=1024)
def _bare(text: str) -> str:
    return " ".join(_ARTICLES.sub(" ", _PUNCTUATION.sub("", _folded(text))).split())


def _spelled(text: str) -> str:
    return " ".join(_PUNCTUATION.sub(" ", _folded(text)).split())


def _occurs(answer: str, prediction: str, edge: str = "") -> bool:
    wanted, reply = _bare(answer), _bare(prediction)
    # "The The" or "%" would become empty on both sides, and the empty text matches everything.
    if not wanted:
        wanted, reply, edge = _spelled(answer), _spelled(prediction), " "
    if not wanted:
        wanted, reply, edge = _folded(answer), _folded(prediction), ""
    return bool(wanted) and f"{edge}{wanted}{edge}" in f"{edge}{reply}{edge}"


def _parts(answers: Sequence[str], separator: str) -> list[str]:
    return [part for answer in answers for part in answer.split(separator) if part.strip()]


def _share(parts: Sequence[str], prediction: str) -> float:
    return sum(_occurs(part, prediction) for part in parts) / max(1, len(parts))


@functools.cache
def _rouge_scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"])
