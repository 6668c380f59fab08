"""Builders: the rules hold on any text, the real samples become instances, sizes are comparable."""

from __future__ import annotations

import dataclasses
import json
import random

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from finemem_lib.build.builders import (
    EXAMPLE_LEAD_INS,
    LEAD_INS,
    RULES,
    build_instances,
    keywords,
)
from finemem_lib.build.published_sizes import as_markdown, published_sizes, size_table
from finemem_lib.build.raw_sets import PUBMED_LABELS
from finemem_lib.data.cloze import ClozeTeacher
from finemem_lib.data.leaks import leaks
from finemem_lib.data.memalpha import load_instances, save_instances
from finemem_lib.data.questions import make_chunk_questions
from finemem_lib.data.sentences import labelled_examples
from finemem_lib.readers.extractive import ExtractiveReader
from finemem_lib.reading import Reading
from finemem_lib.scoring import score
from finemem_lib.text import count_tokens
from finemem_lib.trajectory import Instance, from_json, to_json
from tests.helpers.paths import SHARED_DATA

DATA = SHARED_DATA
SAMPLES = DATA / "raw_samples"
needs_data = pytest.mark.skipif(not SAMPLES.is_dir(), reason="../shared/data is not there")


def rule(raw_set, **changes):
    return dataclasses.replace(RULES[raw_set], **changes)


def lines(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return [path]


def content(chunk):
    """Return a chunk's text without header, lead-in and reply."""
    return chunk.text.split("\n", 2)[2].rsplit("\n", 1)[0]


def squad_rows(number, rng, longest=300):
    for paragraph in range(number):
        names = [f"Name{paragraph}x{n}" for n in range(5)]
        filler = " ".join(["and so on"] * rng.randint(1, longest // 3))
        context = " ".join(f"The ship of {name} sails." for name in names) + f" {filler}."
        for name in names:
            yield {
                "context": context,
                "question": f"Who owns ship {name[4:]}?",
                "answers": {"text": [name]},
            }


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(0, 10**6), st.integers(1, 60), st.integers(10, 600))
def test_facts_are_grouped_by_the_rule(tmp_path, seed, number, longest):
    rows = list(squad_rows(number, random.Random(seed), longest))
    kept = rule("squad", num_chunks=4, chunk_tokens=(100, 500), min_asked=1, min_kept=1, max_kept=9)
    built = build_instances("squad", lines(tmp_path / "a.jsonl", rows), rule=kept, seed=seed)
    paragraphs = []
    for instance in built.instances:
        assert 1 <= len(instance.chunks) <= 4 and 1 <= len(instance.questions) <= 9
        for chunk in instance.chunks:
            texts = content(chunk).split("\n\n")
            assert sum(map(count_tokens, texts)) <= 500 or len(texts) == 1
            assert chunk.tokens == count_tokens(chunk.text)
            paragraphs += texts
        for question in instance.questions:
            [step] = question.evidence_steps
            assert score(instance.chunks[step - 1].text, question.answers, "squad") == 1
    assert paragraphs == list(dict.fromkeys(row["context"] for row in rows))
    assert built == build_instances("squad", [tmp_path / "a.jsonl"], rule=kept, seed=seed)


def test_squad_has_the_published_shape(tmp_path):
    rows = list(squad_rows(260, random.Random(1), longest=200))
    built = build_instances("squad", lines(tmp_path / "a.jsonl", rows))
    *whole, _ = built.instances
    assert len(whole) >= 2
    assert {len(instance.chunks) for instance in whole} == {10}
    assert {len(instance.questions) for instance in whole} == {100}
    assert all(content(chunk) for instance in whole for chunk in instance.chunks)
    assert {one.data_source for one in whole} == {"squad"} and {one.category for one in whole} == {
        "AR"
    }
    assert len({chunk.text.split("\n")[1] for one in whole for chunk in one.chunks}) == len(
        LEAD_INS
    )
    days = [chunk.text.split()[6] for chunk in whole[0].chunks]
    assert days == [f"2024-01-{day:02}" for day in range(1, 11)]


def test_what_is_left_out_is_said(tmp_path):
    rows = list(squad_rows(12, random.Random(1), longest=60))
    with pytest.raises(ValueError) as raised:
        build_instances("squad", lines(tmp_path / "a.jsonl", rows), rule=rule("squad", min_kept=70))
    assert "no instance of squad from 60 units" in str(raised.value)
    assert "60 of them usable, expected at least 50 and 70" in str(raised.value)


def test_what_a_closed_book_reader_knows_is_left_out(tmp_path):
    class Knows:
        name = settings = "knows"
        asked = []

        def read(self, tasks):
            self.asked += tasks
            return [Reading("Name0x1" if "0x1" in task.question else None, None) for task in tasks]

    rows = list(squad_rows(3, random.Random(1)))
    small = rule("squad", min_asked=1, min_kept=1)
    built = build_instances(
        "squad", lines(tmp_path / "a.jsonl", rows), rule=small, closed_book=Knows()
    )
    answers = [q.answers[0] for q in built.instances[0].questions]
    assert len(answers) == 14 and "Name0x1" not in answers  # a failed reading keeps its question
    assert not any(task.items for task in Knows.asked) and len(Knows.asked) == 15


def hotpot_row(number, length=1, answer="Oslo"):
    return {
        "question": f"Who wrote book {number}?",
        "answer": answer,
        "titles": [f"Book {number}", f"Ana {number}", "Noise"],
        "sentences": [
            [f"Book {number} is by Ana."],
            ["Ana lives."] * length + [" It is Oslo."],
            ["Noise."],
        ],
        "sf": [[f"Book {number}", 0], [f"Ana {number}", 0]],
    }


def test_hotpotqa_takes_gold_texts_and_cuts_long_ones(tmp_path):
    rows = [hotpot_row(1), hotpot_row(2, length=200), hotpot_row(3, answer="yes")]
    small = rule("hotpotqa", chunk_tokens=(60, 60), min_asked=1, min_kept=1)
    [instance] = build_instances(
        "hotpotqa", lines(tmp_path / "a.jsonl", rows), rule=small
    ).instances
    text = "\n".join(chunk.text for chunk in instance.chunks)
    assert "Noise" not in text and all(count_tokens(content(c)) <= 60 for c in instance.chunks)
    assert [(q.answers, q.evidence_steps) for q in instance.questions] == [
        (("Oslo",), (1,)),
        (("Oslo",), (1, 2)),
        (("yes",), (3,)),
    ]


def test_answers_that_were_cut_away_or_are_long_are_not_asked(tmp_path):
    rows = [
        hotpot_row(1, length=200),
        hotpot_row(2, answer="one two three four five"),
        hotpot_row(3, answer="Ana"),
    ]
    small = rule("hotpotqa", chunk_tokens=(60, 60), min_asked=1, min_kept=1, num_chunks=9)
    rows[1]["sentences"][0].append(" one two three four five")
    [instance] = build_instances(
        "hotpotqa", lines(tmp_path / "a.jsonl", rows[:1] + rows[2:]), rule=small
    ).instances
    assert [q.text for q in instance.questions] == ["Who wrote book 1?", "Who wrote book 3?"]
    rows[0]["answer"] = "Bergen"
    sources = lines(tmp_path / "b.jsonl", rows)
    [instance] = build_instances("hotpotqa", sources, rule=small).instances
    assert [q.text for q in instance.questions] == ["Who wrote book 3?"]


def examples(number, labels, words_each=10):
    return [
        {
            "text": f"example {n} says" + " word" * (words_each - 3),
            "category": f"label {n % labels}",
        }
        for n in range(number)
    ]


def shown_in(instance):
    return [pair for chunk in instance.chunks for pair in labelled_examples(chunk.text)]


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(0, 10**6), st.integers(1, 9), st.booleans(), st.booleans(), st.booleans())
def test_examples_are_drawn_by_the_rule(tmp_path, seed, labels, apart, text_only, every_label):
    rows = examples(160, labels)
    cut = 120 if apart else 160
    sources = lines(tmp_path / "train.jsonl", rows[:cut])
    asked = lines(tmp_path / "test.jsonl", rows[cut:]) if apart else []
    small = rule(
        "banking77",
        shots=None,
        num_chunks=3,
        chunk_tokens=(100, 200),
        num_asked=20,
        text_only=text_only,
        every_label=every_label,
        num_instances=2,
    )
    built = build_instances("banking77", sources, asked, rule=small, seed=seed)
    assert len(built.instances) == 2 and not built.problems
    for instance in built.instances:
        assert instance.category == "TTL" and len(instance.chunks) == 3
        numbers = instance.metadata["label_map"]
        assert sorted(numbers.values(), key=int) == [str(n) for n in range(labels)]
        by_text = {row["text"]: numbers[row["category"]] for row in rows}
        shown = shown_in(instance)
        assert all(by_text[text] == label for text, label in shown)
        assert len({text for text, _ in shown}) >= len(shown) - labels * every_label
        if every_label:
            assert {label for _, label in labelled_examples(instance.chunks[0].text)} == set(
                numbers.values()
            )
        asked_texts = [q.text.split("\n")[0].removeprefix("Sentence: ") for q in instance.questions]
        assert len(set(asked_texts)) == 20 and not {text for text, _ in shown} & set(asked_texts)
        assert [(by_text[text],) for text in asked_texts] == [q.answers for q in instance.questions]
        if apart:
            assert set(asked_texts) <= {row["text"] for row in rows[cut:]}
        for chunk in instance.chunks[every_label:]:
            texts = labelled_examples(chunk.text)
            size = sum(count_tokens(text) for text, _ in texts)
            assert size <= 200 and (text_only or count_tokens(content(chunk)) <= 200)
        assert leaks([instance]) == ()


def test_all_shots_are_shown_evenly_in_one_instance(tmp_path):
    rows = examples(300, 3) + [{"text": f"rare {n}", "category": "rare"} for n in range(5)]
    sources = lines(tmp_path / "a.jsonl", rows)
    asked = lines(tmp_path / "b.jsonl", examples(400, 3)[300:])
    built = build_instances("banking77", sources, asked, rule=rule("banking77", shots=200))
    [instance] = built.instances
    numbers = instance.metadata["label_map"]
    counts = [
        sum(label == numbers[name] for _, label in shown_in(instance))
        for name in ("label 0", "label 1", "label 2", "rare")
    ]
    assert counts == [65, 65, 65, 5] and not built.problems
    assert all(count_tokens(content(chunk)) <= 1024 for chunk in instance.chunks)
    short = build_instances("banking77", sources, asked)
    assert short.problems == ("banking77, instance 1: shows 305 examples, expected 5900",)


def test_too_few_examples_are_said(tmp_path):
    sources = lines(
        tmp_path / "a.jsonl",
        [
            {"scenario": "s", "intent": f"i{n % 3}", "answer_normalised": f"example {n}"}
            for n in range(50)
        ],
    )
    with pytest.raises(ValueError, match="nlu, instance 1 and all after it: 50 examples fill 0"):
        build_instances("nlu", sources)
    with pytest.raises(ValueError, match="instance 1 and all after it: .* are left to ask"):
        build_instances("nlu", sources, rule=rule("nlu", num_chunks=2, chunk_tokens=(20, 20)))


def test_books_are_packed_and_dated(tmp_path):
    text = " ".join(f"Captain Ahab hunts the whale on day {n}." for n in range(40))
    rows = [
        {"book_title": "Omega", "text": text, "summary": [{"text": "Ahab hunts a whale; Ishmael"}]},
        {"book_title": "Short", "text": "Ahab sails.", "summary": [{"text": "Ahab sails."}]},
    ]
    built = build_instances(
        "booksum", lines(tmp_path / "a.jsonl", rows), rule=rule("booksum", chunk_tokens=50)
    )
    [instance] = built.instances
    [problem] = built.problems
    assert "text 2 (Short): 1 chunks and 2 keywords, expected 5 to 20" in problem
    [question] = instance.questions
    assert question.answers == ("Ahab, hunts, whale",) and instance.category == "LRU"
    first, last = (instance.chunks[place].text.split()[3] for place in (0, -1))
    assert question.text.endswith(f"from {first} to {last}") and first == "2024-01-01"
    bodies = [chunk.text.split("<User> ")[1].split("\n\n<System>")[0] for chunk in instance.chunks]
    assert " ".join(bodies) == text and max(map(count_tokens, bodies)) <= 50


@given(st.text(max_size=200), st.text(max_size=200))
def test_keywords_stand_in_both(summary, text):
    found = keywords(summary, text)
    assert len(found) == len({word.lower() for word in found}) <= 20
    assert all(word in summary and word.lower() in text.lower() for word in found)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nonsense", ["a"]), "expected one of squad"),
        (("squad", []), "got 0 sources"),
        (("squad", ["a"], ["b"]), "needs at least one source and no file in `asked`"),
        (("perltqa", ["a"]), "at least one file in `asked`"),
        (("squad", ["missing.json"]), "missing.json: no such file"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_instances(*arguments)


@pytest.mark.parametrize(
    "settings_", [{"rule": RULES["booksum"]}, {"num_instances": 0}, {"on_error": "ignore"}]
)
def test_settings_out_of_range(settings_):
    with pytest.raises(ValueError, match=next(iter(settings_))):
        build_instances("squad", ["a"], **settings_)


# On the real samples: what they can show. None of them is large enough for every rule, and there
# is no sample of BookSum; PerLTQA's two samples are about different people.

BUILT = {
    "squad": (["squad_v1.1_dev_3articles.json"], [], {}, (1, 7, 100)),
    "hotpotqa": (
        ["hotpotqa_distractor_5items.json"],
        [],
        {"min_asked": 1, "min_kept": 1},
        (1, 1, 4),
    ),
    "pubmed-rct": (
        ["pubmed_rct_20k_train_head.txt"],
        [],
        {"num_chunks": 2, "chunk_tokens": (100, 150), "num_asked": 2, "num_instances": 1},
        (1, 2, 2),
    ),
    "nlu": (
        ["nlu_eval_cooking_recipe_anno_20180322130133731.json"],
        [],
        {"num_chunks": 2, "chunk_tokens": (20, 20), "num_asked": 3, "num_instances": 1},
        (1, 2, 3),
    ),
    "trec_coarse": (["trec_train_5500_excerpt.label"], [], {"num_instances": 2}, (2, 10, 100)),
    "trec_fine": (
        ["trec_train_5500_excerpt.label"],
        [],
        {"shots": 200, "num_asked": 50},
        (1, 3, 50),
    ),
    "clinc150": (["clinc150_data_full_excerpt.json"], [], {"num_asked": 20}, (1, 1, 20)),
    "banking77": (
        ["banking77_train_excerpt.csv"],
        ["banking77_test_excerpt.csv"],
        {"num_asked": 90},
        (1, 7, 90),
    ),
}


def built_sample(raw_set):
    sources, asked, changes, _ = BUILT[raw_set]
    return build_instances(
        raw_set,
        [SAMPLES / name for name in sources],
        [SAMPLES / name for name in asked],
        rule=rule(raw_set, **changes),
    ).instances


@needs_data
@pytest.mark.parametrize("raw_set", BUILT)
def test_real_samples_become_instances(raw_set, tmp_path):
    instances = built_sample(raw_set)
    number, chunks, questions = BUILT[raw_set][3]
    assert len(instances) == number
    assert {len(one.chunks) for one in instances} == {chunks}
    assert {len(one.questions) for one in instances} == {questions}
    assert {one.data_source for one in instances} <= set(published_sizes())
    for instance in instances:
        assert from_json(Instance, to_json(instance)) == instance
        assert [leak for leak in leaks([instance]) if leak.kind != "answer in question"] == []
    path = save_instances(instances, tmp_path / "built.parquet")
    assert load_instances(path).instances == instances
    made, _ = make_chunk_questions(instances[0], ClozeTeacher(), ExtractiveReader())
    assert sum(map(len, made.chunk_questions)) >= 2 * chunks


@needs_data
def test_pubmed_is_rendered_as_the_real_excerpt_is():
    """The real row shows the wording of chunk and question, so it holds what is built."""
    real = json.loads((SAMPLES / "memalpha_real_pubmed_rct_test0_excerpt.json").read_text())
    [instance] = built_sample("pubmed-rct")

    def form(text):
        return [
            "example"
            if line[:7] in ("Sample:", "Labels:", "Senten") or line[:9] == "Sentence:"
            else line
            for line in text.split("\n")[2:-1]
        ]

    assert (
        form(instance.chunks[0].text)[:5]
        == form(real["chunks"][0])[:5]
        == ["", "example", "", "example", ""]
    )
    asked, real_asked = instance.questions[0].text, real["questions_and_answers"][0]["question"]
    assert asked.split("\n")[1:] == real_asked.split("\n")[1:]
    assert asked.startswith("Sentence: ") and real_asked.startswith("Sentence: ")
    assert instance.chunks[0].text.split("\n")[1].removeprefix("<User>") in EXAMPLE_LEAD_INS
    numbers = instance.metadata["label_map"]
    assert numbers == {name: str(number) for number, name in enumerate(PUBMED_LABELS)}


@needs_data
def test_perltqa_with_questions_about_its_person(tmp_path):
    """The layouts are the real ones, the questions are ours: no sample has both of one person."""
    asked = [
        {
            "Wang Xiaoming": {
                "profile": [],
                "social_relationship": [],
                "events": [
                    {
                        "1_1_0": [
                            {
                                "Question": "Who made the chandelier?",
                                "Memory Anchors": [
                                    {"Swarovski": [1, 2]},
                                    {"not in the text": [-1, -1]},
                                ],
                            }
                        ]
                    },
                    {
                        "1_1_1": [
                            {
                                "Question": "What was won?",
                                "Memory Anchors": [{"first prize": [0, 2]}],
                            }
                        ]
                    },
                ],
                "dialogues": [
                    {
                        "1_1_2#5": [
                            {
                                "Question": "What was won by Zhang Wei?",
                                "Memory Anchors": [{"Zhang Wei": [0, 1]}, {"championship": [0, 1]}],
                            }
                        ]
                    }
                ],
            }
        }
    ]
    (tmp_path / "asked.json").write_text(json.dumps(asked))
    sources = [SAMPLES / "perltmem_en_v2_excerpt.json"]
    [instance] = build_instances(
        "perltqa", sources, [tmp_path / "asked.json"], rule=rule("perltqa", min_kept=1)
    ).instances
    assert [(q.answers, q.evidence_steps) for q in instance.questions] == [
        (("Swarovski",), (1,)),
        (("first prize",), (2,)),
        (("championship",), (3,)),
    ]
    mini = load_instances(DATA / "perltqa_mini.jsonl").instances[0]
    assert [chunk.tokens for chunk in instance.chunks] == pytest.approx(
        [chunk.tokens for chunk in mini.chunks], rel=0.05
    )
    with pytest.raises(ValueError, match="Wang Xiaoming: 0 of 0 questions usable on 3 events"):
        build_instances("perltqa", sources, [SAMPLES / "perltqa_en_v2_excerpt.json"])


@needs_data
def test_sizes_stand_beside_the_published():
    instances = [*built_sample("trec_coarse"), *built_sample("clinc150")]
    rows = size_table(instances)
    assert [(row["data source"], row["counted in"]) for row in rows] == [
        ("icl_trec_coarse_6600shot_balance", "these instances"),
        ("icl_trec_coarse_6600shot_balance", "arXiv 2509.25911, table 7, train"),
        ("icl_trec_coarse_6600shot_balance", "arXiv 2509.25911, table 7, validation"),
        ("icl_trec_coarse_6600shot_balance", "arXiv 2509.25911, table 8"),
        ("icl_clinic150_7050shot_balance", "these instances"),
        ("icl_clinic150_7050shot_balance", "arXiv 2509.25911, table 8"),
    ]
    here, published = rows[0], rows[1]
    assert here["tokens per instance"] == round(
        sum(chunk.tokens for one in instances[:2] for chunk in one.chunks) / 2
    )
    # The same rule on the same kind of text: library tokens are a fifth fewer than Qwen3's.
    assert 0.7 < here["tokens per chunk"] / published["tokens per chunk"] < 1
    assert as_markdown(rows).count("\n") == len(rows) + 1


def test_the_published_sizes_add_up():
    """Mem-alpha's training column sums to the 567 instances and about 6,043 chunks of Fine-Mem."""
    train = [
        tables["arXiv 2509.25911, table 7, train"]
        for tables in published_sizes().values()
        if "arXiv 2509.25911, table 7, train" in tables
    ]
    assert sum(one.instances for one in train) == 567
    assert round(sum(one.instances * one.chunks for one in train)) == 6039
    eight = [
        tables["arXiv 2509.25911, table 8"]
        for tables in published_sizes().values()
        if "arXiv 2509.25911, table 8" in tables
    ]
    assert sum(one.instances for one in eight) == 112
    assert {one.data_source for one in RULES.values()} <= set(published_sizes())


def test_a_table_keeps_its_cells():
    assert as_markdown([{"a|b": 1, "c": "x|y"}]).split("\n")[2] == "| 1 | x\\|y |"
