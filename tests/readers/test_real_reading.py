"""Retrieval over raw text with the extractive reader reaches what the data card says of it.

The figures in the card were measured without this code. Run with ``-rP`` to see the table.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence

import pytest

from finemem_lib.data.memalpha import load_instances
from finemem_lib.data.sentences import labelled_examples, units
from finemem_lib.memory import FlatMemory
from finemem_lib.readers.extractive import ExtractiveReader
from finemem_lib.reading import Inquiry, answer_questions
from finemem_lib.retrieval import BM25Retriever
from finemem_lib.scoring import f1, score
from finemem_lib.trajectory import AnsweredQuestion, Instance, Operation
from tests.helpers.paths import SHARED_DATA

DATA = SHARED_DATA

pytestmark = pytest.mark.skipif(
    not (DATA / "squad.jsonl").exists(), reason="shared/data is not beside the repository"
)


def chunk(text: str) -> list[str]:
    return [text]


def examples(text: str) -> list[str]:
    return [unit for unit in units(text) if labelled_examples(unit)]


def stored(instance: Instance, cut: Callable[[str], list[str]]) -> Inquiry:
    memory, retriever = FlatMemory(duplicates="allow"), BM25Retriever()
    for step, part in enumerate(instance.chunks, start=1):
        contents = [Operation("INSERT", content) for content in cut(part.text)]
        retriever.update(memory.apply(contents, step)[1])
    return Inquiry(instance.questions, memory, retriever, len(instance.chunks))


@functools.cache
def inquiries(name: str, cut: Callable[[str], list[str]]) -> list[Inquiry]:
    return [stored(instance, cut) for instance in load_instances(DATA / name).instances]


def ask(asked: Sequence[Inquiry], reader: ExtractiveReader, top_k: int) -> list[AnsweredQuestion]:
    return list(itertools.chain.from_iterable(answer_questions(asked, reader, top_k)))


def accuracy(answered: Sequence[AnsweredQuestion]) -> float:
    return sum(one.score for one in answered) / len(answered)


def abstained(answered: Sequence[AnsweredQuestion]) -> float:
    return sum(one.answer == "" for one in answered) / len(answered)


@pytest.mark.parametrize(
    ("name", "nearest_neighbour"),
    [("clinc150.jsonl", 0.647), ("banking77.jsonl", 0.611), ("trec_coarse.jsonl", 0.536)],
)
def test_raw_labelled_examples_reach_the_card_s_nearest_neighbour(
    name: str, nearest_neighbour: float
) -> None:
    asked = inquiries(name, examples)
    one = ask(asked, ExtractiveReader(), top_k=1)
    several = accuracy(ask(asked, ExtractiveReader(), top_k=5))
    print(f"{name}: n={len(one)}, top_k=1 {accuracy(one):.3f}, top_k=5 {several:.3f}")
    assert len(one) == 800
    assert accuracy(one) == pytest.approx(nearest_neighbour, abs=0.02)
    assert several >= accuracy(one)


def seen(asked: Sequence[Inquiry], answered: Sequence[AnsweredQuestion]) -> float:
    """Share of questions with an accepted answer in the text that the reader was given."""
    memories = [one.memory for one in asked for _ in one.questions]
    texts = (
        "\n".join(memory.get(hit.item_id).content for hit in one.retrieved)
        for memory, one in zip(memories, answered, strict=True)
    )
    return sum(
        score(text, one.question.answers, one.question.data_source)
        for text, one in zip(texts, answered, strict=True)
    ) / len(answered)


def test_raw_chunks_put_the_answer_before_the_reader_on_squad() -> None:
    asked = inquiries("squad.jsonl", chunk)
    answered, overlap = {}, {}
    for style in ("sentence", "span"):
        answered[style] = found = ask(asked, ExtractiveReader(answer=style), top_k=2)
        overlap[style] = sum(f1(one.answer, one.question.answers) for one in found) / len(found)
        words = sum(len(one.answer.split()) for one in found) / len(found)
        print(
            f"squad.jsonl: n={len(found)}, {style} answers: accuracy {accuracy(found):.3f}, "
            f"F1 {overlap[style]:.3f}, {words:.1f} words, abstained {abstained(found):.3f}"
        )
    upper_bound = seen(asked, answered["sentence"])
    print(f"squad.jsonl: answer in what the reader sees {upper_bound:.3f}")
    assert len(answered["sentence"]) == 1562
    assert upper_bound == pytest.approx(0.952, abs=0.01)
    assert 0.70 <= accuracy(answered["sentence"]) <= upper_bound
    assert 0.58 <= accuracy(answered["span"]) < accuracy(answered["sentence"])
    assert overlap["span"] > 2 * overlap["sentence"]


def test_the_reader_mostly_abstains_on_text_that_cannot_answer() -> None:
    asked = inquiries("squad.jsonl", chunk)
    elsewhere = [
        Inquiry(one.questions, other.memory, other.retriever, other.step)
        for one, other in zip(asked, asked[3:] + asked[:3], strict=True)
    ]

    own, foreign = (
        abstained(ask(among, ExtractiveReader(), top_k=2)) for among in (asked, elsewhere)
    )
    print(f"abstained: own text {own:.3f}, foreign text {foreign:.3f}")
    assert own < 0.03 and foreign > 0.5


def test_dialogue_is_scored_where_its_row_names_a_metric() -> None:
    answered = ask(inquiries("locomo.jsonl", chunk), ExtractiveReader(), top_k=2)
    print(f"locomo.jsonl: n={len(answered)}, accuracy {accuracy(answered):.3f}")
    assert {one.question.data_source for one in answered} == {"locomo"}
    assert accuracy(answered) > 0.2


@pytest.mark.parametrize("name", ["squality.jsonl", "qmsum.jsonl"])
def test_summaries_keep_to_the_word_budget_and_earn_by_it(name: str) -> None:
    asked = inquiries(name, chunk)
    by_budget = {
        budget: ask(asked, ExtractiveReader(summary_words=budget), top_k=3)
        for budget in (125, 1000)
    }
    for budget, answered in by_budget.items():
        print(f"{name}: n={len(answered)}, {budget} words: keyword hit {accuracy(answered):.3f}")
        assert all(len(one.answer.split()) <= budget for one in answered)
    assert 0 < accuracy(by_budget[125]) < accuracy(by_budget[1000])


def test_a_judged_source_is_read_and_stays_unscored() -> None:
    [answered] = ask(inquiries("long_longmemeval_s_115k.jsonl", chunk), ExtractiveReader(), top_k=2)
    assert answered.score is None
