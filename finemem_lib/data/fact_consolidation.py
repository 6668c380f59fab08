"""Read FactConsolidation's numbered lists of facts, in which later facts revise earlier ones.

The rows are those of MemoryAgentBench's conflict resolution (arXiv 2507.05257): a context "Here is
a list of facts:" with one numbered fact per line, questions and accepted answers. A larger number
is newer. Data sources "factconsolidation_sh_*" ask for one fact (single hop),
"factconsolidation_mh_*" for a chain of facts (multi-hop). A fact revises an earlier one if the two
differ only in the value at their end, as in "The capital of X is A" and "The capital of X is B".

Differs from the paper: a fact is written as "Fact 17: ..." instead of "17. ...", because sentence
splitting would cut off the number. The rows do not state how often a fact was revised; this is
derived from the list, for single-hop questions whose fact is found in it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from finemem_lib.data.sentences import STOPWORDS
from finemem_lib.scoring import normalise
from finemem_lib.text import words

FACTS_LEAD_IN = "Facts; where two disagree, the one with the larger number is newer:"
"""Text before the facts of a chunk."""

_FACT = re.compile(r"^[ \t]*(\d+)[.)][ \t]+(\S[^\n]*?)[ \t]*$", re.MULTILINE)
_VALUE = re.compile(r"\A(.*\b(?:is|are|was|were|of|by|in|at|to|with|from|on|as|plays)) (\S.*)\Z")


def numbered_facts(context: str) -> list[tuple[int, str]]:
    """Return the number and text of every fact of a context, in order.

    Args:
        context: The list of facts.

    Raises:
        ValueError: there is no numbered line.

    >>> numbered_facts("Here is a list of facts:\\n0. Rome is in Italy.\\n1. Mia sails.")
    [(0, 'Rome is in Italy.'), (1, 'Mia sails.')]
    """
    found = [(int(match[1]), match[2]) for match in _FACT.finditer(context)]
    if not found:
        raise ValueError(
            'field context: expected lines "0. a fact", got '
            f"{context!r:.60}; set the data source of the row to that of its text"
        )
    return found


def fact_line(fact: tuple[int, str]) -> str:
    """Return a fact as a line of a chunk.

    Args:
        fact: Number and text of the fact.

    >>> fact_line((17, "Mia sails."))
    'Fact 17: Mia sails.'
    """
    return f"Fact {fact[0]}: {fact[1]}"


def versions(facts: Sequence[tuple[int, str]]) -> dict[str, list[str]]:
    """Return the values of every fact, oldest first, by the text before them in lower case.

    Args:
        facts: Numbers and texts of the facts, in any order.

    >>> versions([(0, "X is married to A."), (1, "Y plays chess."), (2, "X is married to B.")])
    {'x is married to': ['A', 'B'], 'y plays': ['chess']}
    """
    found: defaultdict[str, list[str]] = defaultdict(list)
    for _, text in sorted(facts):
        if match := _VALUE.match(text.rstrip(". ")):
            value = match[2]
            if [value] != found[key := match[1].lower()][-1:]:
                found[key].append(value)
    return dict(found)


def revisions_of(
    facts: Sequence[tuple[int, str]],
    source: str,
    questions: Sequence[str],
    answers: Sequence[Sequence[str]],
) -> dict[str, dict[str, Any]]:
    """Return kind and revisions of every question, as in `metadata` of `revised.revised_stream`.

    Args:
        facts: Numbers and texts of the facts of the context.
        source: Name of the data source, which determines the kind.
        questions: Texts of the questions.
        answers: Accepted answers of each question.

    Returns:
        By question id, "kind" ("single" or "chain"), "revisions" (`None` for a chain, and if no
        fact has an accepted answer as its last value), and the known "former" values.
    """
    single = "_sh" in source
    known = versions(facts) if single else {}
    by_value: defaultdict[str, list[str]] = defaultdict(list)
    for key, values in known.items():
        by_value[normalise(values[-1])].append(key)
    told: dict[str, dict[str, Any]] = {}
    for number, (question, accepted) in enumerate(zip(questions, answers, strict=True), start=1):
        asked = {*words(question)} - STOPWORDS
        keys = [key for answer in accepted for key in by_value[normalise(answer)]]
        best = max(keys, key=lambda key: len(asked & {*words(key)}), default=None)
        found = best is not None and bool(asked & {*words(best)})
        told[f"q-{number}"] = {
            "kind": "single" if single else "chain",
            "revisions": len(known[best]) - 1 if found and best else None,
            "former": sorted({*known[best]} - {*accepted}) if found and best else [],
        }
    return told
