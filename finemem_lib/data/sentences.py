"""Split chunks into sentences or labelled examples.

Every function takes time linear in the length of its input, because texts from data sets may be
long, repetitive or malformed.
"""

from __future__ import annotations

import re

from finemem_lib.scoring import metric_for

STOPWORDS = frozenset(
    "a an the of in on at to for from by with as is are was were be been being am do does did done "
    "has have had having it its this that these those and or but if so such no not nor other there "
    "what which who whom whose when where why how many much their his her he she they we you i me "
    "my your our us them him can could would should will may might must than then into about also "
    "after before during between over under up out s t".split()
)

_LOOK_BACK = 24  # longer than any abbreviation
_SENTENCE_END = re.compile(r"[.!?]+[\"'”’)\]]*(?=\s)")

_LABELLED = re.compile(
    r"^(Sentence|Sample|Text):[ \t]*(\S[^\n]*?)(?:\n\s*|;[ \t]*)Labels?:[ \t]*(\S+)", re.MULTILINE
)

_ABBREVIATIONS = frozenset(
    "mr mrs ms dr prof sr jr st gen col lt sgt capt rev hon gov sen rep vs etc al inc ltd co corp "
    "no nos vol fig figs ed eds pp approx ca cf dept est univ jan feb mar apr jun jul aug sep sept "
    "oct nov dec e.g i.e u.s u.k a.m p.m".split()
)

_LABEL_LEAD = re.compile(r"^\s*(?:Sentence|Sample|Text):\s*")
_LABEL_REQUEST = re.compile(r"\s*What (?:is|are) the labels? for the above[\w ]*\?\s*$")


def sentences(text: str) -> list[str]:
    """Split prose into sentences; a line break always ends one.

    Initials, decimals and common abbreviations do not end a sentence.

    Args:
        text: Any text.

    >>> sentences("Dr. Okoye left at 5 p.m. on Monday. It rained!")
    ['Dr. Okoye left at 5 p.m. on Monday.', 'It rained!']
    """
    found = []
    for line in text.split("\n"):
        start = 0
        for match in _SENTENCE_END.finditer(line):
            # A bounded look-back keeps a line full of abbreviations linear.
            head = line[max(start, match.start() - _LOOK_BACK) : match.start()]
            last = head[head.rfind(" ") + 1 :].lstrip("(\"'“‘[").lower()
            if match.group().startswith(".") and (last in _ABBREVIATIONS or _is_initial(last)):
                continue
            found.append(line[start : match.end()].strip())
            start = match.end()
        found.append(line[start:].strip())
    return [sentence for sentence in found if sentence]


def _is_initial(word: str) -> bool:
    return len(word) == 1 and word.isalpha() and word != "i"


def labelled_examples(text: str) -> list[tuple[str, str]]:
    r"""Return (sentence, label) of every labelled example of a test-time-learning chunk.

    Args:
        text: Any text, with or without labelled examples.

    >>> labelled_examples("Sentence: good day\nLabel: 3\n\nSample: bye\n\nLabels: 4")
    [('good day', '3'), ('bye', '4')]
    >>> labelled_examples("Sample: bye; Label: 4")
    [('bye', '4')]
    """
    return [(match[2].strip(), match[3]) for match in _LABELLED.finditer(text)]


def units(text: str) -> list[str]:
    r"""Return the labelled examples of a chunk or, if it has none, its sentences.

    Args:
        text: Text of the chunk.

    >>> units("Sentence: good day\nLabel: 3")
    ['Sentence: good day\nLabel: 3']
    >>> units("Mia lives in Rome. Ana sails.")
    ['Mia lives in Rome.', 'Ana sails.']
    """
    examples = [
        f"{match[1]}: {match[2].strip()}\nLabel: {match[3]}" for match in _LABELLED.finditer(text)
    ]
    return examples or sentences(text)


def retrieval_query(question: str, data_source: str) -> str:
    r"""Return the retrieval query: the sentence to label if a label is asked for, or the question.

    Args:
        question: Text of the question.
        data_source: Data source, which selects the metric.

    Raises:
        ValueError: the data source has no metric.

    >>> retrieval_query("Sentence: good day\nWhat are the labels for the above sentence?", "icl_x")
    'good day'
    """
    if metric_for(data_source) == "label_match":
        return _LABEL_REQUEST.sub("", _LABEL_LEAD.sub("", question))
    return question
