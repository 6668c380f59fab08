"""Short names of instances, for titles and menus."""

from __future__ import annotations

from finemem_lib.data.planted import DATA_SOURCES, NAMES
from finemem_lib.trajectory import Instance, Question, Trajectory

MAX_PEOPLE = 4
"""Largest number of people in the name of a planted stream."""


def instance_name(one: Instance | Trajectory, number: int | None = None) -> str:
    """Return a short name: the people of a planted stream, else data source and first question.

    The name may contain text of a data set, which is untrusted and not yet escaped.

    Args:
        one: The instance, or a trajectory of it.
        number: Position of the instance in a list, from 1; `None` leaves it out.

    >>> from finemem_lib.data.planted import planted_stream
    >>> instance_name(planted_stream(seed=1), 3)
    'stream 3: Mia, Eva, Ada and Hal'
    """
    questions = [
        asked if isinstance(asked, Question) else asked.question for asked in one.questions
    ]
    place = "" if number is None else f" {number}"
    if one.data_source in DATA_SOURCES.values():
        texts = [word.strip("?,.") for asked in questions for word in asked.text.split()]
        people = [name for name in dict.fromkeys(texts) if name in NAMES]
        more = len(people) - MAX_PEOPLE
        shown = people[:MAX_PEOPLE] + [f"{more} more"] * (more > 0)
        if shown:
            *first, last = shown
            return f"stream{place}: {' and '.join(filter(None, [', '.join(first), last]))}"
    about = questions[0].text if questions else one.instance_id
    return f"{one.data_source}{place}: {about}"
