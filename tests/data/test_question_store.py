"""Questions made ahead: what a part holds, resuming after a kill, loading back, being alone."""

from __future__ import annotations

import dataclasses
import random
import subprocess
import sys
import time

import pytest

from finemem_lib.data.cloze import ClozeTeacher
from finemem_lib.data.planted import SYNONYMS, StreamSettings, planted_stream
from finemem_lib.data.question_store import (
    load_questions,
    prepare_questions,
    recipe_of,
    stored_rows,
    with_questions,
)
from finemem_lib.data.questions import make_chunk_questions
from finemem_lib.readers.extractive import ExtractiveReader
from finemem_lib.trajectory import Chunk, Instance, Question
from tests.helpers.patience import LAST_RESORT

READER = ExtractiveReader(synonyms=SYNONYMS)


def streams(number=3, chunks=2):
    return [planted_stream(seed, StreamSettings(num_chunks=chunks)) for seed in range(number)]


class CountingTeacher(ClozeTeacher):
    """Counts the chunks it is asked about, and can fail at one."""

    def __init__(self, fail_at=None):
        super().__init__()
        self.asked = []
        self.fail_at = fail_at

    def write(self, chunk_text, *arguments):
        if len(self.asked) == self.fail_at:
            raise ConnectionError("the teacher is gone")
        self.asked.append(chunk_text)
        return super().write(chunk_text, *arguments)


def test_what_is_loaded_is_what_was_made(tmp_path):
    instances = streams()
    expected = [make_chunk_questions(one, ClozeTeacher(), READER, k=3, seed=5) for one in instances]
    told = []
    made = prepare_questions(
        instances,
        tmp_path,
        ClozeTeacher(),
        READER,
        k=3,
        seed=5,
        progress=lambda done, total: told.append((done, total)),
    )
    assert list(made) == [instance for instance, _ in expected]
    assert told == [(1, 3), (2, 3), (3, 3)]
    bare = [dataclasses.replace(one, chunk_questions=None) for one in instances]
    assert with_questions(bare, tmp_path) == made


def test_a_store_gives_back_instances_audits_and_the_recipe(tmp_path):
    instances, teacher = streams(), ClozeTeacher()
    made = [make_chunk_questions(one, teacher, READER, k=3) for one in instances]
    prepare_questions(instances, tmp_path, teacher, READER, k=3)
    bare = [dataclasses.replace(one, chunk_questions=None) for one in instances]
    stored = load_questions(bare, str(tmp_path), k=3)
    assert list(zip(stored.instances, stored.audits, strict=True)) == made
    assert stored.recipe == recipe_of(teacher, READER, k=3)
    with pytest.raises(ValueError, match="at most 3 per chunk, expected 5; set questions_per_chun"):
        load_questions(bare, tmp_path, k=5)
    with pytest.raises(ValueError, match="holds no questions for the text"):
        load_questions(streams(4), tmp_path, k=3)


def test_instances_of_several_recipes_name_the_one_that_is_meant(tmp_path):
    first, second, third = streams()
    prepare_questions([first, second], tmp_path, ClozeTeacher(), READER, k=3)
    prepare_questions([second, third], tmp_path, ClozeTeacher(), READER, k=2)
    keys = [recipe_of(ClozeTeacher(), READER, k=k).key for k in (3, 2)]
    with pytest.raises(ValueError, match="by 2 recipes"):
        load_questions([first, second], tmp_path)
    with pytest.raises(ValueError, match=rf"by 2 recipes \({', '.join(sorted(keys))}\).*FOLDER@K"):
        load_questions([first, third], tmp_path)
    stored = load_questions([first, second], f"{tmp_path}@{keys[0]}", k=3)
    assert stored.recipe.key == keys[0]
    odd = tmp_path / "a@b"
    prepare_questions([first], odd, ClozeTeacher(), READER, k=1)
    assert load_questions([first], odd).recipe.k == 1


def test_a_row_per_candidate_with_verdict_and_recipe(tmp_path):
    instances = streams(2)
    teacher = ClozeTeacher()
    prepare_questions(instances, tmp_path, teacher, READER, k=2)
    audit = {
        (instance.instance_id, row.step, row.question): row
        for instance in instances
        for row in make_chunk_questions(instance, teacher, READER, k=2)[1]
    }
    rows = stored_rows(tmp_path)
    assert len(rows) == len(audit)
    recipe = dataclasses.asdict(recipe_of(teacher, READER, k=2))
    for row in rows:
        expected = audit[row["instance_id"], row["step"], row["question"]]
        assert (row["accepted"], row["reason"], row["reply"]) == (
            expected.accepted,
            expected.reason,
            expected.reply,
        )
        assert "; ".join(row["answers"]) == expected.answer
        assert {name: row[name] for name in recipe} == recipe
    assert {row["accepted"] for row in rows} == {True, False}


def test_what_is_there_is_not_asked_again(tmp_path):
    instances = streams()
    failing = CountingTeacher(fail_at=3)
    with pytest.raises(ConnectionError):
        prepare_questions(instances, tmp_path, failing, READER)
    again = CountingTeacher()
    made = prepare_questions(instances, tmp_path, again, READER)
    assert again.asked == [chunk.text for one in instances[1:] for chunk in one.chunks]
    assert made == prepare_questions(instances, tmp_path / "other", ClozeTeacher(), READER)
    idle = CountingTeacher()
    prepare_questions(instances, tmp_path, idle, READER)
    assert idle.asked == []
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")]


SCRIPT = """
import sys, time
from finemem_lib.data.planted import SYNONYMS, StreamSettings, planted_stream
from finemem_lib.data.question_store import prepare_questions
from finemem_lib.data.cloze import ClozeTeacher
from finemem_lib.readers.extractive import ExtractiveReader

class Slow(ClozeTeacher):
    def write(self, chunk_text, *arguments):
        time.sleep(0.02)
        with open(sys.argv[2], "a") as log:
            log.write(chunk_text.replace("\\n", " ") + "\\n")
        return super().write(chunk_text, *arguments)

streams = [planted_stream(seed, StreamSettings(num_chunks=2)) for seed in range(8)]
prepare_questions(streams, sys.argv[1], Slow(), ExtractiveReader(synonyms=SYNONYMS))
sys.stdin.read()  # it is to be killed, however late whoever does it comes
"""


def test_killed_at_any_moment_it_goes_on(tmp_path):
    store, log = tmp_path / "store", tmp_path / "asked.log"
    command = [sys.executable, "-c", SCRIPT, str(store), str(log)]

    def asked():
        return log.read_text().splitlines() if log.exists() else []

    for seed in (1, 2):
        before = len(asked())
        process = subprocess.Popen(command, stdin=subprocess.PIPE)
        deadline = time.monotonic() + LAST_RESORT
        while len(asked()) == before < 16 and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(random.Random(seed).uniform(0, 0.05))
        assert process.poll() is None, "it was to be killed at work"
        process.kill()
        process.communicate()
    subprocess.run(command, check=True, input=b"", timeout=LAST_RESORT)
    instances = streams(8)
    chunks = [chunk.text.replace("\n", " ") for one in instances for chunk in one.chunks]
    assert set(asked()) == set(chunks)
    # A kill costs at most the instance that was being made: two chunks here.
    assert len(asked()) <= len(chunks) + 2 * 2
    expected = prepare_questions(instances, tmp_path / "other", ClozeTeacher(), READER)
    assert with_questions(instances, store) == expected


def test_one_process_at_a_time(tmp_path):
    class Nosy(ClozeTeacher):
        def write(self, *arguments):
            with pytest.raises(ValueError, match="another process is making questions"):
                prepare_questions(streams(1), tmp_path, ClozeTeacher(), READER)
            return super().write(*arguments)

    prepare_questions(streams(1), tmp_path, Nosy(), READER)
    prepare_questions(streams(2), tmp_path, ClozeTeacher(), READER)


def test_questions_belong_to_the_text_and_not_to_its_name(tmp_path):
    [instance] = streams(1)
    prepare_questions([instance], tmp_path, ClozeTeacher(), READER)
    renamed = dataclasses.replace(instance, instance_id="other", chunk_questions=None)
    assert with_questions([renamed], tmp_path)[0].chunk_questions
    chunk = Chunk(instance.chunks[0].text[:40], 9)
    cut = dataclasses.replace(instance, chunks=(chunk, *instance.chunks[1:]))
    with pytest.raises(ValueError, match="no questions for the text of instance .* cut in the sam"):
        with_questions([cut], tmp_path)


def test_several_recipes_need_a_choice(tmp_path):
    [instance] = streams(1)
    for k in (1, 3):
        prepare_questions([instance], tmp_path, ClozeTeacher(), READER, k=k)
    with pytest.raises(ValueError, match="by 2 recipes"):
        with_questions([instance], tmp_path)
    for k in (1, 3):
        key = recipe_of(ClozeTeacher(), READER, k=k).key
        [chosen] = with_questions([instance], tmp_path, key)
        assert max(map(len, chosen.chunk_questions)) == k


@pytest.mark.parametrize(
    ("teacher", "verifier", "k", "seed"),
    [
        (ClozeTeacher(max_words=9), READER, 5, 0),
        (ClozeTeacher(), ExtractiveReader(), 5, 0),
        (ClozeTeacher(), READER, 4, 0),
        (ClozeTeacher(), READER, 5, 1),
    ],
)
def test_every_setting_is_part_of_the_recipe(teacher, verifier, k, seed):
    assert recipe_of(teacher, verifier, k, seed).key != recipe_of(ClozeTeacher(), READER).key


def test_text_without_candidates_is_done_once(tmp_path):
    empty = Instance("e", "squad", "AR", (Chunk("???", 3),), (Question("q", "?", ("a",), "squad"),))
    counting = CountingTeacher()
    for _ in range(2):
        [made] = prepare_questions([empty], tmp_path, counting, READER)
    assert made.chunk_questions == ((),) and len(counting.asked) == 1
    assert stored_rows(tmp_path) == []


def test_text_that_utf8_cannot_carry_is_kept_without_it(tmp_path):
    class Odd(ClozeTeacher):
        def write(self, chunk_text, step, data_source, rng):
            return [Question("a", "Who \ud800 sails?", ("Ana\udfff",), "squad", step, (step,))]

    ocean = Instance("o", "squad", "AR", (Chunk("Ana\udfff sails.", 3),), ())
    [made] = prepare_questions([ocean], tmp_path, Odd(), READER)
    [row] = stored_rows(tmp_path)
    assert row["question"] == "Who \ufffd sails?" and row["answers"] == ["Ana\ufffd"]
    assert made.chunks == ocean.chunks


def test_a_broken_part_is_named(tmp_path):
    prepare_questions(streams(1), tmp_path, ClozeTeacher(), READER)
    [part] = tmp_path.glob("*.parquet")
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(ValueError, match=f"{part.name}: not readable.*remove it"):
        prepare_questions(streams(1), tmp_path, ClozeTeacher(), READER)


def test_a_store_that_is_no_folder_is_refused(tmp_path):
    loop, file = tmp_path / "loop", tmp_path / "file"
    loop.symlink_to(loop)
    file.touch()
    for folder in (loop, file):
        with pytest.raises(ValueError, match=f"{folder.name}: no folder .*another path"):
            prepare_questions(streams(1), folder, ClozeTeacher(), READER)
        with pytest.raises(ValueError, match=f"{folder.name}: holds no questions"):
            load_questions(streams(1), folder)
