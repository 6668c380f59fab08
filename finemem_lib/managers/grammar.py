"""Constrained decoding: sample only operations that quote a sentence and address a record shown.

A completion is a path through a tree of tokens. Where only one token is allowed, it is not sampled
and needs no separate forward pass; where several are allowed, the policy samples one. All
log-probabilities, also those for GRPO, are those of the constrained distribution: the softmax over
the logits of the allowed tokens. A forced token has log-probability 0.

Differs from the paper: its manager samples from the whole vocabulary and learns the format of
operations with the format reward.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from finemem_lib.text import words

if TYPE_CHECKING:
    import torch

MOST_OPERATIONS = 8
"""Largest number of operations of a completion; more would not fit into the shipped profiles."""

_OPENINGS = {
    "INSERT": '{"op":"INSERT","quote":',
    "UPDATE": '{"op":"UPDATE","id":"#',
    "DELETE": '{"op":"DELETE","id":"#',
}
_SKIP = '[{"op":"SKIP"}]'


@dataclass(frozen=True, slots=True)
class State:
    """The state of the grammar between two fields of a completion.

    Attributes:
        asked: The next field: "start", "id" or "quote".
        kind: Kind of the operation that the field belongs to.
        record: Alias of the record that an UPDATE addresses, without "#".
        quoted: Numbers of the sentences quoted so far.
        addressed: Aliases of the records addressed so far, without "#".
        operations: Number of operations begun so far.
    """

    asked: str = "start"
    kind: str = ""
    record: int | None = None
    quoted: frozenset[int] = frozenset()
    addressed: frozenset[int] = frozenset()
    operations: int = 0


Branch = dict[int, Any]
"""The continuation by token: a branch, a `State` whose options follow, or `None` at the end."""


class QuoteGrammar:
    """The grammar of applicable operations.

    It allows each sentence to be quoted and each record to be addressed at most once.

    Args:
        quotes: Number of sentences that may be quoted, numbered from 1.
        records: Number of records that may be addressed, #0 first.
        encode: Returns the token ids of a text.
        end: Id of the token that ends a completion.
        matches: For each record, the sentences that may replace it by an UPDATE; a record without
            one is not addressed at all. `None`: every sentence may replace every record.
    """

    def __init__(
        self,
        quotes: int,
        records: int,
        encode: Callable[[str], Sequence[int]],
        end: int,
        matches: Sequence[Collection[int]] | None = None,
    ) -> None:
        self.quotes, self.records, self.encode, self.end = quotes, records, encode, end
        self.matches = matches
        self.branch = functools.cache(self._branch)

    def walk(self) -> Walk:
        """Return a `Walk` at the beginning of a completion."""
        return Walk(self)

    def choices(self, completion: Sequence[int]) -> list[tuple[int, ...]]:
        """Return the allowed token ids at every position of a completion.

        Args:
            completion: Token ids of a completion that the grammar allows, complete or not.

        Raises:
            ValueError: The grammar does not allow the completion.
        """
        walk, allowed = self.walk(), []
        for token in completion:
            allowed.append(walk.allowed)
            walk.take(token)
        return allowed

    def tokens(self, completion: str) -> tuple[int, ...]:
        """Return the token ids of a completion as in a walk, including the end token.

        Args:
            completion: Text that the grammar allows, without spaces.

        Raises:
            ValueError: The grammar does not allow the text.
        """
        state: State | None = State()
        found: list[int] = []
        rest = completion
        while state is not None:
            options = [one for one in self.options(state) if rest.startswith(one[0])]
            if not options:
                raise ValueError(
                    f"QuoteGrammar: {rest!r} does not follow, expected one of "
                    f"{[text for text, _ in self.options(state)]}"
                )
            ((text, state),) = options
            found += self.encode(text)
            rest = rest[len(text) :]
        if rest:
            raise ValueError(f"QuoteGrammar: {rest!r} stands behind the end, expected nothing")
        return (*found, self.end)

    def options(self, state: State) -> list[tuple[str, State | None]]:
        """Return the allowed continuations, each a text and the state after it (`None`: the end).

        No text is a prefix of another.

        Args:
            state: The current state.
        """
        if state.asked == "start":
            opened = [("[" + text, after) for text, after in self._opened(state)]
            return [(_SKIP, None), *opened]
        if state.asked == "quote":
            return [
                (f"{number}}}{text}", after)
                for number in self._quotable(state, state.record)
                for text, after in self._closed(
                    _with(state, record=None, quoted=state.quoted | {number})
                )
            ]
        left = self._addressable(state, state.kind)
        after_id = [_with(state, addressed=state.addressed | {number}) for number in left]
        if state.kind == "UPDATE":
            return [
                (f'{number}","quote":', _with(after, asked="quote", record=number))
                for number, after in zip(left, after_id, strict=True)
            ]
        return [
            (f'{number}"}}{text}', following)
            for number, after in zip(left, after_id, strict=True)
            for text, following in self._closed(after)
        ]

    def _closed(self, state: State) -> list[tuple[str, State | None]]:
        """Return the continuations after an operation: the end of the list, or a further one."""
        more = [("," + text, after) for text, after in self._opened(state)]
        return [("]", None), *more]

    def _opened(self, state: State) -> list[tuple[str, State]]:
        """Return the possible beginnings of the next operation, with the states after them."""
        if state.operations == MOST_OPERATIONS:
            return []
        possible = {
            "INSERT": len(state.quoted) < self.quotes,
            "UPDATE": bool(self._addressable(state, "UPDATE")),
            "DELETE": bool(self._addressable(state, "DELETE")),
        }
        return [
            (
                opening,
                _with(
                    state,
                    asked="quote" if kind == "INSERT" else "id",
                    kind=kind,
                    operations=state.operations + 1,
                ),
            )
            for kind, opening in _OPENINGS.items()
            if possible[kind]
        ]

    def _quotable(self, state: State, record: int | None) -> list[int]:
        """Return the sentences left to quote; for a record, those that may replace it."""
        every = range(1, self.quotes + 1)
        allowed = every if record is None or self.matches is None else self.matches[record]
        return [number for number in every if number in allowed and number not in state.quoted]

    def _addressable(self, state: State, kind: str) -> list[int]:
        """Return the records left that an operation of a kind may address."""
        left = [number for number in range(self.records) if number not in state.addressed]
        if kind == "UPDATE":
            return [number for number in left if self._quotable(state, number)]
        return [number for number in left if self.matches is None or self.matches[number]]

    def _branch(self, state: State) -> Branch:
        """Return the options of a state as a tree of tokens."""
        tree: Branch = {}
        for text, after in self.options(state):
            tokens = [*self.encode(text), *([self.end] if after is None else [])]
            branch = tree
            for token in tokens[:-1]:
                branch = branch.setdefault(token, {})
            branch[tokens[-1]] = after
        return tree


MATCHING_SHARE = 0.7
"""Share of a record's words that a sentence repeats if it may revise or retract the record."""


def matching_sentences(
    sentences: Sequence[str], records: Sequence[str]
) -> tuple[frozenset[int], ...]:
    """Return, for each record, the numbers of the sentences that may revise or retract it.

    A sentence matches if it repeats at least `MATCHING_SHARE` of the record's distinct words, and
    at least three of them.

    Args:
        sentences: Sentences of the chunk; the first has number 1.
        records: Contents of the records.

    >>> matching_sentences(["Mia sails.", "Leo owns a cat."], ["Leo owns a dog.", "Zoe paints."])
    (frozenset({2}), frozenset())
    """
    said = [set(words(sentence)) for sentence in sentences]
    found = []
    for record in records:
        known = set(words(record))
        least = max(3, MATCHING_SHARE * len(known))
        found.append(
            frozenset(n for n, one in enumerate(said, start=1) if len(known & one) >= least)
        )
    return tuple(found)


def _with(state: State, **changed: Any) -> State:
    values = {name: getattr(state, name) for name in State.__slots__}
    return State(**values | changed)


@dataclass
class Walk:
    """The position in a grammar of a partly written completion.

    Attributes:
        grammar: The grammar.
        branch: The possible continuations; empty at the end.
    """

    grammar: QuoteGrammar
    branch: Branch = field(init=False)

    def __post_init__(self) -> None:
        self.branch = self.grammar.branch(State())

    @property
    def allowed(self) -> tuple[int, ...]:
        """The allowed next tokens; empty at the end."""
        return tuple(self.branch)

    def take(self, token: int) -> None:
        """Append a token.

        Args:
            token: One of `allowed`.

        Raises:
            ValueError: The token is not allowed here.
        """
        if token not in self.branch:
            raise ValueError(
                f"Walk: token {token} is not allowed here, expected one of {self.allowed}; "
                "sample with the grammar of the same prompt"
            )
        after = self.branch[token]
        if isinstance(after, State):
            self.branch = self.grammar.branch(after)
        else:
            self.branch = after or {}

    def forced(self) -> list[int]:
        """Append tokens while only one is allowed, and return them."""
        tokens = []
        while len(self.branch) == 1:
            (token,) = self.branch
            self.take(token)
            tokens.append(token)
        return tokens


def allowed_logprobs(
    logits: torch.Tensor, allowed: Sequence[Sequence[int]], temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the allowed tokens and their log-probabilities, normalised among the allowed tokens.

    Args:
        logits: Shape (positions, vocabulary).
        allowed: Allowed token ids per position, at least one each.
        temperature: Temperature of the distribution, above 0.

    Returns:
        Token ids and log-probabilities (nats, single precision), both of shape (positions, largest
        number of allowed tokens); rows are padded with their first token and -inf.

    >>> import torch
    >>> ids, logprobs = allowed_logprobs(torch.tensor([[0.0, 5.0, 0.0]]), [[0, 2]])
    >>> ids.tolist(), logprobs.exp().tolist()
    ([[0, 2]], [[0.5, 0.5]])
    """
    import torch

    most = max(map(len, allowed), default=1)
    padded = [token for row in allowed for token in (*row, *[row[0]] * (most - len(row)))]
    ids = torch.tensor(padded, dtype=torch.long, device=logits.device).view(-1, most)
    lengths = torch.tensor([len(row) for row in allowed], dtype=torch.long, device=logits.device)
    inside = torch.arange(most, device=logits.device) < lengths[:, None]
    found = logits.gather(1, ids).float() / temperature
    return ids, found.masked_fill(~inside, -torch.inf).log_softmax(dim=-1)


def chosen_logprobs(
    logits: torch.Tensor,
    allowed: Sequence[Sequence[int]],
    chosen: Sequence[int],
    temperature: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the log-probabilities of chosen tokens and the entropies of the distributions.

    Args:
        logits: Shape (positions, vocabulary).
        allowed: Allowed token ids per position, at least one each.
        chosen: Chosen token id per position.
        temperature: Temperature of the distribution, above 0.

    Returns:
        Both of shape (positions,), in nats; 0 where only one token is allowed.

    >>> import torch
    >>> logprobs, entropies = chosen_logprobs(torch.zeros(2, 9), [[3], [4, 5]], [3, 5])
    >>> logprobs.exp().tolist(), entropies.exp().tolist()
    ([1.0, 0.5], [1.0, 2.0])
    """
    import torch

    ids, every = allowed_logprobs(logits, allowed, temperature)
    places = (
        (ids == torch.tensor(chosen, dtype=torch.long, device=ids.device)[:, None])
        .int()
        .argmax(dim=1)
    )
    known = every.masked_fill(every == -torch.inf, 0.0)
    return every.gather(1, places[:, None])[:, 0], -(known.exp() * known).sum(dim=-1).detach()
