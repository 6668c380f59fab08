"""A trainable reader: it selects one retrieved item and extracts the answer from that item.

Differs from the paper: Fine-Mem (arXiv 2601.08435) freezes its reasoning agent and does not train
it together with the manager. This reader is small enough to train in the same loop:
a linear scorer with a few thousand weights over hashed word pairs. It must learn which verb answers
which question; the reader of `extractive.reader_for` gets these verbs as synonyms.

PyTorch is imported when a reader is created.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finemem_lib.data.sentences import STOPWORDS
from finemem_lib.readers.extractive import ExtractiveReader
from finemem_lib.reading import MemoisedAgent, Reading, ReadingTask, ReasoningAgent
from finemem_lib.seeds import stable_seed
from finemem_lib.text import words

if TYPE_CHECKING:
    import torch

DENSE = ("overlap", "rank", "recency")
"""Features that are not hashed, each in [0, 1]: share of the question's content words in the item;
retrieval rank, 1 for the best; order of the last write, 1 for the newest."""


class TrainableReader(ReasoningAgent):
    """A reader that selects the retrieved item with the highest score and extracts the answer.

    The score of item m for question q is linear, ``s(q, m) = sum_(u, v) w[hash(u, v)] + sum_f w_f
    f(q, m)``, over the pairs of a content word u of the question (or none) and a word v of the
    item, and over the features f of `DENSE`. Among equal scores the better ranked item is selected;
    without a retrieved item the reader abstains.

    Training maximises the mean expected score ``sum_m softmax(s)_m r_m``, where r_m is the score of
    the answer extracted from item m. This is the policy gradient (REINFORCE, Williams 1992) of the
    selection, computed over all items instead of sampled.

    Args:
        seed: Seed of the initial weights.
        synonyms: Words added to the query, as in `ExtractiveReader`; the scorer does not use them.
        buckets: Number of hashed weights, at least 1.
        spread: Standard deviation of the initial weights, at least 0. At 0 an untrained reader
            selects the best ranked item, otherwise an arbitrary one.
        learning_rate: Learning rate of Adam, above 0.
        steps: Gradient steps per call of `learn`, at least 1.

    Raises:
        ValueError: a setting is out of range.

    >>> reader = TrainableReader(spread=0.0)
    >>> items = (("1", "Mia visited Oslo."), ("2", "Mia moved to Rome."))
    >>> task = ReadingTask("Where does Mia live?", "planted", items)
    >>> reader.read([task])
    [Reading(answer='Mia visited Oslo.', used=('1',))]
    >>> reader.learn([task], [[0.0, 1.0]])
    >>> reader.read([task])
    [Reading(answer='Mia moved to Rome.', used=('2',))]
    """

    name = "trainable"

    def __init__(
        self,
        seed: int = 0,
        *,
        synonyms: Mapping[str, Sequence[str]] | None = None,
        buckets: int = 4096,
        spread: float = 0.1,
        learning_rate: float = 0.05,
        steps: int = 1,
    ) -> None:
        import torch

        for name, value, least in (("buckets", buckets, 1), ("spread", spread, 0)):
            if value < least:
                raise ValueError(f"TrainableReader: {name} is {value}, expected at least {least}")
        if steps < 1 or learning_rate <= 0:
            raise ValueError(
                f"TrainableReader: steps is {steps} and learning_rate {learning_rate}, expected "
                "at least 1 step and a rate above 0"
            )
        random = torch.Generator().manual_seed(stable_seed(seed, "trainable reader"))
        # Double precision, so that rounding in a batch does not change the order of scores.
        self.weights = torch.normal(
            0.0, spread, (buckets + len(DENSE), 1), generator=random, dtype=torch.float64
        ).requires_grad_()
        self.buckets = buckets
        self.steps = steps
        self._optimizer = torch.optim.Adam([self.weights], lr=learning_rate)
        self._searcher = ExtractiveReader(synonyms=synonyms)
        self._digest: str | None = None

    @property
    def settings(self) -> str:
        """The settings and a hash of the weights, on which the answers depend, as JSON."""
        if self._digest is None:
            held = self.weights.detach().numpy().tobytes()
            self._digest = hashlib.sha256(held).hexdigest()[:16]
        return json.dumps([self.name, self._digest, self.buckets, self._searcher.synonyms])

    def query(self, question: str, data_source: str) -> str:
        return self._searcher.query(question, data_source)

    def read(self, tasks: Sequence[ReadingTask]) -> list[Reading]:
        import torch

        with torch.no_grad():
            scores = self.scores(tasks)
        readings = []
        for task, row in zip(tasks, scores, strict=True):
            if not task.items:
                readings.append(Reading("", ()))
                continue
            place = int(row.argmax())  # the first of equals
            readings.append(Reading(self.answers(task)[place], (task.items[place][0],)))
        return readings

    def answers(self, task: ReadingTask) -> list[str]:
        """Return the answers that would be extracted from each item of a task.

        Args:
            task: A question with the retrieved items.
        """
        return [_extracted(task.question, task.data_source, content) for _, content in task.items]

    def scores(self, tasks: Sequence[ReadingTask]) -> list[torch.Tensor]:
        """Return the scores of a task's items, one (num_items,) tensor per task, with gradients.

        Args:
            tasks: Questions with the retrieved items.
        """
        import torch

        bags, dense = [], []
        for task in tasks:
            last = max(len(task.items) - 1, 1)
            asked = _content_words(task.question)
            for place, (_, content) in enumerate(task.items):
                bags.append(_pairs(asked, content, self.buckets))
                held = set(words(content))
                dense.append(
                    (
                        sum(word in held for word in asked) / max(len(asked), 1),
                        1 - place / last,
                        (task.written[place] if task.written else 0) / last,
                    )
                )
        sizes = [len(task.items) for task in tasks]
        if not bags:
            return [torch.zeros(0, dtype=torch.float64) for _ in tasks]
        starts = [0, *itertools.accumulate(map(len, bags))][:-1]
        hashed = torch.nn.functional.embedding_bag(
            torch.tensor([*itertools.chain.from_iterable(bags)], dtype=torch.long),
            self.weights,
            torch.tensor(starts),
            mode="sum",
        )
        features = torch.tensor(dense, dtype=torch.float64)
        scores = hashed[:, 0] + (features * self.weights[self.buckets :, 0]).sum(dim=1)
        return [*torch.split(scores, sizes)]

    def learn(self, tasks: Sequence[ReadingTask], rewards: Sequence[Sequence[float]]) -> None:
        """Take `steps` gradient steps on the expected score of the selection.

        Args:
            tasks: Questions with the retrieved items; tasks without items have no effect.
            rewards: Per task, the score of the answer from each item.

        Raises:
            ValueError: the number of rewards of a task is not its number of items.
        """
        import torch

        for task, row in zip(tasks, rewards, strict=True):
            if len(task.items) != len(row):
                raise ValueError(
                    f"TrainableReader.learn: got {len(row)} rewards for {len(task.items)} items, "
                    "expected one each"
                )
        # The gradient is zero if all items of a task have the same reward.
        lessons = [
            (task, torch.tensor([*row], dtype=torch.float64))
            for task, row in zip(tasks, rewards, strict=True)
            if len({*row}) > 1
        ]
        if not lessons:
            return
        for _ in range(self.steps):
            scores = self.scores([task for task, _ in lessons])
            expected = [
                scored.softmax(dim=0) @ row
                for scored, (_, row) in zip(scores, lessons, strict=True)
            ]
            self._optimizer.zero_grad()
            loss = -torch.stack(expected).mean()
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            self._optimizer.step()
        self._digest = None

    def save(self, path: Path) -> None:
        """Write the weights and the optimizer's state.

        Args:
            path: The file.
        """
        import torch

        torch.save(
            {"weights": self.weights.detach(), "optimizer": self._optimizer.state_dict()}, path
        )

    def load(self, path: Path) -> None:
        """Load the weights and the optimizer's state that `save` wrote.

        Args:
            path: The file, written by a reader with the same number of buckets.

        Raises:
            ValueError: the file cannot be read or does not fit this reader.
        """
        import torch

        try:
            state: dict[str, Any] = torch.load(path, weights_only=True)
            with torch.no_grad():
                self.weights.copy_(state["weights"])
            self._optimizer.load_state_dict(state["optimizer"])
        except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"TrainableReader: {path} does not hold the weights of a reader with "
                f"{self.buckets} buckets ({error}); make the reader with the settings it was "
                "trained with"
            ) from error
        self._digest = None


def trainable_reader(agent: ReasoningAgent | None) -> TrainableReader | None:
    """Return the agent if it is a `TrainableReader`, memoised or not; else `None`.

    Args:
        agent: A reasoning agent, or `None`.
    """
    inner = agent.agent if isinstance(agent, MemoisedAgent) else agent
    return inner if isinstance(inner, TrainableReader) else None


def _content_words(question: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word for word in words(question) if word not in STOPWORDS))


@functools.lru_cache(maxsize=65536)
def _extracted(question: str, data_source: str, content: str) -> str:
    [reading] = ExtractiveReader().read([ReadingTask(question, data_source, (("", content),))])
    return reading.answer or ""


@functools.lru_cache(maxsize=65536)
def _pairs(asked: tuple[str, ...], content: str, buckets: int) -> tuple[int, ...]:
    """Return the bucket of every pair of a question word (or none) and a word of the item."""
    return tuple(
        stable_seed(word, held) % buckets
        for held in dict.fromkeys(words(content))
        for word in ("", *asked)
    )
