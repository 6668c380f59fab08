"""Reading, teaching and judging with language models: on a real server, in process, and with faults
of the replies."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import re
import socket
import subprocess
import sys
import time
import urllib.request
from importlib.util import find_spec

import pytest

from finemem_lib.data.planted import planted_stream
from finemem_lib.data.questions import make_chunk_questions
from finemem_lib.managers.model import make_manager
from finemem_lib.managers.rollout import RolloutSettings, play
from finemem_lib.memory import FlatMemory
from finemem_lib.readers.local import LocalChat
from finemem_lib.readers.model_judge import ModelJudge, judged
from finemem_lib.readers.model_reader import ModelReader
from finemem_lib.readers.model_teacher import ModelTeacher
from finemem_lib.readers.prompts import load_prompt
from finemem_lib.readers.roles import Models, make_chat, reader_role
from finemem_lib.readers.server import ChatClient
from finemem_lib.readers.settings import ChatSettings
from finemem_lib.reading import Inquiry, Reading, ReadingTask, answer_questions
from finemem_lib.retrieval import BM25Retriever
from finemem_lib.trajectory import (
    AnsweredQuestion,
    Chunk,
    MemoryDelta,
    Operation,
    Question,
    Step,
    Trajectory,
)
from tests.helpers.fault_server import FaultServer, completion
from tests.helpers.paths import ROOT

pytest.importorskip("openai", reason="the server extra is not installed")

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}"
)
ITEMS = (("a1", "Mia lives in Oslo."), ("b2", "Mia moved to Rome."))
TASK = ReadingTask("Where does Mia live?", "squad", ITEMS, (1, 0))


def reader_of(options):
    return Models({"reader": reader_role(options)}).reader([])


def chat(server, **settings):
    return ChatClient(ChatSettings("m", base_url=server.base_url, backoff=0.01, **settings))


def said(request):
    return request["messages"][-1]["content"]


def reads(text, used=None):
    """Return an answer function for a reader that says a text, citing items where asked."""
    return text if used is None else json.dumps({"answer": text, "items": used})


@pytest.mark.parametrize(
    ("reply", "reading"),
    [
        (reads("Rome"), Reading("Rome", None)),
        (completion(None, refusal="no"), Reading(None, None)),
    ],
)
def test_a_reader_answers_or_says_that_it_failed(reply, reading):
    with FaultServer(lambda _: reply) as server:
        assert ModelReader(chat(server)).read([TASK]) == [reading]


@pytest.mark.parametrize(
    ("reply", "reading"),
    [
        (reads("Rome", [1]), Reading("Rome", ("b2",))),  # b2 was written first and so shown first
        (reads("Rome", [2, 1, 2]), Reading("Rome", ("a1", "b2"))),
        (reads("Rome", [0, 3, -1]), Reading("Rome", ())),
        (reads("", []), Reading("", ())),
        (reads("Rome"), Reading(None, None)),
        ('{"answer": null, "items": []}', Reading(None, None)),
    ],
)
def test_a_citing_reader_names_items_of_its_task(reply, reading):
    with FaultServer(lambda _: reply) as server:
        assert ModelReader(chat(server), cite=True).read([TASK]) == [reading]


def test_the_reader_is_shown_the_items_in_the_order_of_their_writes():
    with FaultServer() as server:
        reader = ModelReader(chat(server, concurrency=1))
        unknown = ReadingTask("Who? $items", "squad", (("x", "Costs $5 and $question."),))
        reader.read([TASK, unknown, ReadingTask("Who?", "squad", ())])
        first, second, third = map(said, server.requests)
        assert re.search(r"oldest first.*\[1\] Mia moved.*\[2\] Mia lives", first, re.DOTALL)
        assert "best match first" in second and "[1] Costs $5 and $question." in second
        assert "Who? $items" in second
        assert "(none)" in third


def test_a_failed_answer_is_not_scored_and_a_wrong_one_is_zero():
    memory, retriever = FlatMemory(), BM25Retriever()
    retriever.update(memory.apply([Operation("INSERT", "Mia lives in Rome.")], 1)[1])
    questions = [Question("q", "Where does Mia live?", ("Rome",), "squad")]
    for reply, score in ((completion(None, refusal="no"), None), ("Oslo", 0.0), ("Rome", 1.0)):
        with FaultServer(lambda _, reply=reply: reply) as server:
            ((one,),) = answer_questions(
                [Inquiry(questions, memory, retriever, 1)], ModelReader(chat(server)), 3
            )
            assert one.score == score and isinstance(one.answer, str)


def test_settings_tell_model_sampling_and_prompt_apart_and_not_the_address():
    with FaultServer() as server:
        reader = ModelReader(chat(server))
        others = [
            ModelReader(chat(server), cite=True),
            ModelReader(chat(server, temperature=0.5)),
            ModelTeacher(chat(server)),
            ModelTeacher(chat(server), number=4),
            ModelJudge(chat(server)),
        ]
        assert len({reader.settings, *(one.settings for one in others)}) == 6
        assert re.search(r'"read v1 [0-9a-f]{12}"', reader.settings)
        assert str(server.server_port) not in reader.settings


def teach(request):
    """Write the sentences of the chunk as questions with their last word as answer."""
    text = said(request).split(":\n\n")[1]
    pairs = re.findall(r"(\w[\w ]*) (\w+)\.", text)
    return json.dumps({"questions": [{"question": f"{a} what?", "answer": b} for a, b in pairs]})


def test_a_teacher_writes_from_the_chunk_alone_and_asks_for_many_chunks_at_once():
    with FaultServer(teach, gate=3) as server:
        teacher = ModelTeacher(chat(server), number=2)
        texts = ["Mia lives in Rome. Leo likes tea. Ana sails boats.", "Leo moved to Oslo.", "..."]
        teacher.prepare(texts)
        assert server.most_under_way == 3
        written = teacher.write(texts[0], 4, "booksum", random.Random(0))
        assert len(server.requests) == 3
        assert [(one.text, one.answers) for one in written] == [
            ("Mia lives in what?", ("Rome",)),
            ("Leo likes what?", ("tea",)),
        ]
        assert {(one.data_source, one.step, one.evidence_steps) for one in written} == {
            ("squad", 4, (4,))
        }
        assert teacher.write(texts[2], 1, "squad", random.Random(0)) == []
        assert all(
            request["messages"][0] == {"role": "system", "content": load_prompt("teach").system}
            for request in server.requests
        )


def test_teacher_and_verifier_make_chunk_questions():
    def answer(request):
        if said(request).startswith("Write"):
            return teach(request)
        [name] = re.findall(r"Question: (\w+)", said(request))
        found = re.findall(rf"\b{name} [\w ]* (\w+)\.", said(request))
        return found[0] if found else "unknown"

    instance = dataclasses.replace(planted_stream(seed=1), data_source="squad")
    instance = dataclasses.replace(
        instance, chunks=(Chunk("Mia lives in Rome. Leo likes tea.", 8),), chunk_questions=None
    )
    with FaultServer(answer) as server:
        made, audit = make_chunk_questions(
            instance, ModelTeacher(chat(server)), ModelReader(chat(server)), k=5
        )
        assert [one.answers for one in made.chunk_questions[0]] == [("Rome",), ("tea",)]
        assert [row.reply for row in audit] == ["Rome", "tea"]


def trajectory(*questions, steps=()):
    return Trajectory("i", "lme_train", "AR", "m", 0, tuple(steps), tuple(questions), "words")


def answered(answer, source="lme_train", score=None, answers=("Rome",)):
    question = Question(f"q-{answer}", "Where?", answers, source)
    return AnsweredQuestion(question, 1, (), answer, None, score)


def test_a_judge_scores_what_has_no_metric_and_nothing_else():
    def verdict(request):
        reply = said(request).rpartition("Reply: ")[2]
        return json.dumps({"verdict": reply == "in Rome"}) if reply != "?" else "yes"

    step = Step(1, Chunk("c", 1), "", (), MemoryDelta(), 0, (answered("in Rome"),))
    before = trajectory(
        answered("in Rome"),
        answered("Oslo"),
        answered("?"),
        answered(""),
        answered("in Rome", answers=()),
        answered("Oslo", "squad", 0.25),
        steps=[step],
    )
    with FaultServer(verdict) as server:
        (after,) = judged([before], ModelJudge(chat(server)))
        assert [one.score for one in after.questions] == [1.0, 0.0, None, None, None, 0.25]
        assert after.steps[0].chunk_questions[0].score == 1.0
        assert dataclasses.replace(after, questions=before.questions, steps=before.steps) == before


def test_a_rollout_is_the_same_with_faults_and_when_it_is_played_again(tmp_path):
    """The reader answers with the last word of the first item; 30 % of the calls fail."""

    def last_word(request):
        return re.search(r"\[1\] .*?(\w+)\.|\(none\)", said(request))[1] or "unknown"

    instance = planted_stream(seed=2)
    played = []
    for share in (0.0, 0.3):
        with FaultServer(last_word, ["drop", "error", "truncate", "garbage"], share) as server:
            settings = {
                "kind": "server",
                "model": "m",
                "base_url": server.base_url,
                "backoff": 0.01,
                "memo": str(tmp_path / f"{share}.sqlite"),
            }
            for _ in range(2):
                played.append(
                    play(
                        [instance],
                        make_manager("insert-all"),
                        RolloutSettings(num_generations=2),
                        reader_of(settings),
                        seed=0,
                    )
                )
            assert set(server.paid.values()) == {1}
    assert played[0] == played[1] == played[2] == played[3]
    assert '"read v1' in played[0][0][0].metadata["agent_settings"]


@pytest.mark.parametrize(
    ("settings", "said_"),
    [
        ({"kind": "server", "model": "m"}, "base_url is missing"),
        ({"kind": "server", "model": "m", "base_url": "http://h", "key": "x"}, "key: Unexpected"),
        ({"kind": "nearby", "model": "m"}, "'server' or 'local'"),
        (
            {"kind": "server", "model": "m", "cite": "no"},
            "cite is a str, expected true or false",
        ),
    ],
)
def test_reader_settings_that_cannot_be_are_refused_in_words(settings, said_):
    with pytest.raises(ValueError, match=said_):
        reader_role(settings)


def test_every_prompt_keeps_what_others_wrote_apart_and_has_a_version():
    names = [path.stem for path in (ROOT / "finemem_lib/prompts").iterdir()]
    assert len(names) == 4
    for name in names:
        prompt = load_prompt(name)
        assert prompt.version >= 1 and "$" not in prompt.system
        assert "written by others" in prompt.system or "were written by" in prompt.system


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    """A Qwen3 of two layers with random weights and a byte tokenizer with Qwen3's way of chat."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: n for n, token in enumerate([*special, *alphabet])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=special,
        chat_template=CHAT_TEMPLATE,
    )
    # Random weights repeat one token; a wide start gives texts that differ between prompts.
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(vocabulary),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            initializer_range=0.5,
            max_position_embeddings=8192,
            eos_token_id=2,
            pad_token_id=0,
            bos_token_id=None,
        )
    )
    folder = tmp_path_factory.mktemp("model")
    # A reply that does not end is no answer: every third token ends one.
    model.generation_config.eos_token_id = [2, *range(3, len(vocabulary), 3)]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def served(tiny_model, tmp_path_factory):
    """`transformers serve` on the tiny model; its address."""
    missing = [name for name in ("fastapi", "uvicorn") if find_spec(name) is None]
    if missing:
        pytest.skip(f"transformers serve needs {', '.join(missing)} (test extra)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (tmp_path_factory.mktemp("served") / "log.txt").open("w+")
    server = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from transformers.cli.transformers import main; main()",
            "serve",
            tiny_model,
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--device",
            "cpu",
        ],
        stdout=log,
        stderr=subprocess.STDOUT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    try:
        for _ in range(6000):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
                log.seek(0)
                assert server.poll() is None, log.read()
        else:
            pytest.fail("transformers serve did not answer within ten minutes")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        try:
            server.wait(timeout=20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        log.close()


def local(model, **settings):
    return ChatSettings(model, kind="local", **{"temperature": 0.0, "max_tokens": 12, **settings})


def talks(number):
    return [[{"role": "user", "content": f"question {n} {'and ' * n}"}] for n in range(number)]


def test_a_real_server_and_the_same_model_in_process_say_the_same(tiny_model, served):
    settings = dataclasses.replace(local(tiny_model), kind="server", base_url=served, concurrency=3)
    there, here = make_chat(settings), make_chat(local(tiny_model, batch_size=4))
    answers = here.ask(talks(6))
    assert there.ask(talks(6)) == answers and len(set(answers)) > 1
    assert there.usage.calls == here.usage.calls
    assert (there.usage.tokens_in, there.usage.tokens_out) == (
        here.usage.tokens_in,
        here.usage.tokens_out,
    )
    assert there.usage.unmetered == 0 and there.usage.tokens_out > 0


def test_a_real_server_reads_in_a_rollout_and_random_weights_are_malformed(tiny_model, served):
    options = {"kind": "server", "model": tiny_model, "base_url": served, "max_tokens": 4}
    instance = planted_stream(seed=3)
    instance = dataclasses.replace(
        instance,
        chunks=instance.chunks[:1],
        questions=instance.questions[:2],
        chunk_questions=None,
    )
    ((one,),) = play(
        [instance],
        make_manager("insert-all"),
        RolloutSettings(num_generations=1),
        reader_of(options),
        seed=0,
    )
    assert all(asked.used is None and asked.score in (0.0, 1.0, None) for asked in one.questions)
    citing = reader_of({**options, "cite": True})
    assert citing.read([TASK]) == [Reading(None, None)]
    assert citing.agent.chat.usage.malformed == citing.agent.chat.usage.calls == 2


def test_local_replies_do_not_depend_on_batch_or_order_and_sampling_is_seeded(tiny_model):
    import torch

    alone = LocalChat(local(tiny_model, batch_size=1)).ask(talks(5))
    together = LocalChat(local(tiny_model, batch_size=5))
    assert together.ask(talks(5)[::-1]) == alone[::-1]
    assert together.ask(talks(5)) == alone and together.usage.memo_hits == 5

    before = torch.random.get_rng_state()
    drawn = [
        LocalChat(local(tiny_model, temperature=1.0, seed=seed)).ask(talks(5)) for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_local_reply_that_does_not_end_is_malformed(tiny_model):
    one = LocalChat(local(tiny_model))
    one._model.generation_config.eos_token_id = 2  # which these weights do not write
    assert one.ask(talks(1)) == [None]
    assert (one.usage.malformed, one.usage.tokens_out) == (2, 24)


def test_thinking_is_off_unless_asked_for(tiny_model):
    counted = []
    for arguments in ({"enable_thinking": False}, None):
        one = LocalChat(local(tiny_model, chat_template_kwargs=arguments))
        one.ask(talks(1))
        counted.append(one.usage.tokens_in)
    assert counted[0] - counted[1] == len("<think>\n\n</think>\n\n")


def test_a_model_without_a_chat_template_is_refused(tiny_model, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    AutoModelForCausalLM.from_pretrained(tiny_model).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no chat template.*instruction-tuned"):
        LocalChat(local(str(tmp_path)))
