"""Asking language models: every reply once, whatever goes wrong on the way."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass

import pytest

from finemem_lib.readers.chat import ModelError
from finemem_lib.readers.memo import Memo, Reply
from finemem_lib.readers.server import ChatClient
from finemem_lib.readers.settings import ChatSettings, chat_settings
from finemem_lib.readers.structured import structured, without_thinking
from tests.helpers.fault_server import FAULTS, FaultServer, completion
from tests.helpers.patience import LAST_RESORT

pytest.importorskip("openai", reason="the server extra is not installed")

SECRET = "sk-SECRETsecret0123456789"


@dataclass(frozen=True)
class Capital:
    city: str


def client(server, **settings):
    """Return a client of a server with quick retries."""
    return ChatClient(
        ChatSettings(
            "m", base_url=server.base_url, **{"backoff": 0.01, "timeout": LAST_RESORT, **settings}
        )
    )


def talks(number):
    return [[{"role": "user", "content": f"question {n}"}] for n in range(number)]


def echo(request):
    return f"answer to {request['messages'][0]['content']}"


def as_json(request):
    return json.dumps({"city": request["messages"][0]["content"]})


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("structure", [None, Capital])
def test_with_faults_the_results_are_those_without_and_nothing_is_paid_twice(
    structure, seed, tmp_path
):
    answer = as_json if structure else echo
    with FaultServer(answer) as sound:
        expected = client(sound).ask(talks(40), structure)
    assert None not in expected
    with FaultServer(answer, FAULTS, share=0.3, seed=seed) as server:
        chat = client(server, memo=str(tmp_path / "memo.sqlite"))
        assert chat.ask(talks(40), structure) == expected
        assert set(server.paid.values()) == {1} and len(server.paid) == 40
        assert server.failed.total() == chat.usage.retries > 5
        assert server.early == 0
        before = len(server.requests)
        assert (
            client(server, memo=str(tmp_path / "memo.sqlite")).ask(talks(40), structure) == expected
        )
        assert len(server.requests) == before


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(20))
def test_with_more_faults_the_results_are_those_without(seed):
    with FaultServer(echo, FAULTS, share=0.5, seed=seed, delay=0.01) as server:
        chat = client(server, attempts=25)
        assert chat.ask(talks(100)) == [f"answer to question {n}" for n in range(100)]
        assert set(server.paid.values()) == {1}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_survived_on_its_own(fault):
    with FaultServer(echo, [fault], share=0.6, seed=3) as server:
        chat = client(server, attempts=15)
        assert chat.ask(talks(6)) == [f"answer to question {n}" for n in range(6)]
        assert chat.usage.retries == server.failed[fault] > 0


def test_a_reply_that_trickles_is_given_up_in_time():
    with FaultServer(echo, ["trickle"], share=1.0) as server:
        started = time.monotonic()
        with pytest.raises(ModelError, match="no reply in 0.3 s"):
            client(server, timeout=0.3, attempts=2).ask(talks(1))
        assert time.monotonic() - started < 100


def test_no_more_calls_are_under_way_than_allowed_and_as_many_as_that():
    with FaultServer(echo, gate=4, delay=0.01) as server:
        client(server, concurrency=4).ask(talks(24))
        assert server.most_under_way == 4


def test_equal_questions_are_asked_once_and_others_are_told_apart(tmp_path):
    with FaultServer(echo) as server:
        chat = client(server, memo=str(tmp_path / "memo.sqlite"))
        assert chat.ask([*talks(2), *talks(2)])[2:] == chat.ask(talks(2))
        assert len(server.requests) == 2
        assert (chat.usage.calls, chat.usage.memo_hits) == (2, 4)
        for other in (
            {"temperature": 0.9},
            {"seed": 7},
            {"max_tokens": 9},
            {"chat_template_kwargs": None},
        ):
            client(server, memo=chat.settings.memo, **other).ask(talks(1))
        assert len(server.requests) == 6
        moved = dataclasses.replace(chat.settings, base_url="http://127.0.0.1:9/v1", concurrency=1)
        assert ChatClient(moved).ask(talks(1)) == ["answer to question 0"]  # from the memo


def test_what_is_sent_is_what_the_settings_say():
    with FaultServer(as_json) as server:
        client(server, max_tokens=50, seed=3).ask(talks(1), Capital)
        client(server, temperature=None, seed=None, chat_template_kwargs=None, schema=False).ask(
            talks(1), Capital
        )
        full, bare = server.requests
        assert (full["max_tokens"], full["seed"], full["temperature"]) == (50, 3, 0.1)
        assert full["chat_template_kwargs"] == {"enable_thinking": False}
        schema = full["response_format"]["json_schema"]["schema"]
        assert (schema["required"], list(schema["properties"])) == (["city"], ["city"])
        assert set(bare) == {"model", "messages", "max_tokens"}


def test_tokens_and_cost_are_counted():
    with FaultServer(echo) as server:
        chat = client(server, price_in=2.0, price_out=10.0)
        chat.ask(talks(4))
        assert (chat.usage.tokens_in, chat.usage.tokens_out) == (40, 20)
        assert chat.usage.cost == pytest.approx((40 * 2 + 20 * 10) / 1e6)
        assert chat.usage.unmetered == 0
    with FaultServer(lambda _: {**completion("yes"), "usage": None}) as server:
        chat = client(server)
        chat.ask(talks(1))
        assert (chat.usage.unmetered, chat.usage.tokens_in) == (1, 0)


@pytest.mark.parametrize(
    ("bad", "refused", "malformed"),
    [
        (completion(None, refusal="I will not"), 1, 0),
        (completion('{"town": "Rome"}'), 0, 1),
        (completion("Rome"), 0, 1),
        (completion(""), 0, 1),
        (completion(None), 0, 1),
        (completion("<think>never ends"), 0, 1),
    ],
)
def test_a_refused_or_malformed_reply_is_asked_for_once_more(bad, refused, malformed, tmp_path):
    memo = str(tmp_path / "memo.sqlite")
    with FaultServer(lambda r: bad if r["seed"] == 0 else as_json(r)) as server:
        chat = client(server, memo=memo)
        assert chat.ask(talks(1), Capital) == [Capital("question 0")]
        assert (chat.usage.refused, chat.usage.malformed) == (refused, malformed)
        assert (chat.usage.calls, chat.usage.unanswered) == (2, 0)
        again = client(server, memo=memo)
        assert again.ask(talks(1), Capital) == [Capital("question 0")]
        assert again.usage.calls == 0
    with FaultServer(lambda r: bad) as server:
        chat = client(server, memo=str(tmp_path / "other.sqlite"))
        assert chat.ask(talks(1), Capital) == chat.ask(talks(1), Capital) == [None]
        assert (chat.usage.calls, chat.usage.memo_hits, chat.usage.unanswered) == (2, 1, 2)


def test_a_text_that_was_cut_off_is_malformed_and_a_whole_object_is_not(tmp_path):
    def cut(text):
        return completion(text) | {
            "choices": [completion(text)["choices"][0] | {"finish_reason": "length"}]
        }

    memo = str(tmp_path / "memo.sqlite")
    with FaultServer(lambda r: cut("Rome is the") if r["seed"] == 0 else "Rome") as server:
        chat = client(server, memo=memo)
        assert chat.ask(talks(1)) == ["Rome"]
        assert (chat.usage.malformed, chat.usage.calls) == (1, 2)
        assert client(server, memo=memo).ask(talks(1)) == ["Rome"]
        server.answer = lambda r: cut("Rome is the")
        assert chat.ask(talks(2)[1:]) == [None] and chat.usage.unanswered == 1
        server.answer = lambda r: cut('{"city": "Rome"} which is')
        assert chat.ask(talks(1), Capital) == [Capital("Rome")]


def test_a_call_that_fails_for_good_keeps_what_arrived_and_says_so(tmp_path):
    def answer(request):
        return completion("yes") if "question 1" in str(request) else 1 / 0  # the handler dies

    memo = str(tmp_path / "memo.sqlite")
    with FaultServer(answer) as server:
        with pytest.raises(ModelError, match=r"m at http://127.0.0.1.*attempt 3 of 3.*memo.sqlite"):
            client(server, attempts=3, memo=memo, concurrency=2).ask([talks(2)[1], *talks(30)])
        assert len(server.came) <= 4  # the others did not begin
        server.answer = echo
        client(server, memo=memo).ask(talks(2))
        assert set(server.paid.values()) == {1}


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (401, f'{{"error": {{"message": "wrong key {SECRET}"}}}}', r"wrong key \*\*\*"),
        (404, '{"error": {"message": "no such model"}}', "no such model"),
        (400, '{"error": {"message": "unknown field"}}', "unknown field"),
        (429, '{"error": {"message": "pay first", "code": "insufficient_quota"}}', "pay first"),
    ],
)
def test_what_will_not_pass_is_not_tried_again(status, body, said, monkeypatch):
    monkeypatch.setenv("TEST_KEY", SECRET)
    with FaultServer(status=status, body=body) as server:
        with pytest.raises(ModelError, match=said):
            client(server, key_env="TEST_KEY").ask(talks(1))
        assert len(server.requests) == 1


def test_a_server_that_asks_for_hours_is_not_waited_for(monkeypatch):
    monkeypatch.setattr("tests.helpers.fault_server.RETRY_AFTER", 7200)
    with FaultServer(echo, ["limit"], share=1.0) as server:
        with pytest.raises(ModelError, match="asks to wait 7200 s"):
            client(server).ask(talks(1))


@pytest.mark.parametrize("place", range(100, 420, 20))
def test_a_key_is_masked_wherever_the_message_is_cut(place, monkeypatch):
    monkeypatch.setenv("TEST_KEY", SECRET)
    body = json.dumps({"error": {"message": f"{'x' * place} {SECRET} is wrong"}})
    with FaultServer(status=401, body=body) as server:
        with pytest.raises(ModelError) as caught:
            client(server, key_env="TEST_KEY").ask(talks(1))
    assert SECRET[:8] not in "".join(traceback.format_exception(caught.value))


def test_nobody_at_the_address_is_said_soon_and_in_words():
    with FaultServer() as server:
        address = server
    started = time.monotonic()
    with pytest.raises(
        ModelError,
        match=r"m at http://127.0.0.1:\d+/v1: attempt 3 of 3 .*Connect"
        ".*no server answers there: start it, or correct base_url, then run again",
    ):
        client(address, backoff=0.5).ask(talks(40))
    assert time.monotonic() - started < 100
    with pytest.raises(ModelError, match="attempt 2 of 2"):
        client(address, attempts=2).ask(talks(1))


def test_a_server_that_answered_once_is_waited_for_as_long_as_asked():
    with FaultServer(echo) as server:
        chat = client(server, attempts=5)
        chat.ask(talks(1))
    with pytest.raises(ModelError, match="attempt 5 of 5 .*check server and settings"):
        chat.ask(talks(2))


def test_an_address_that_takes_no_connection_is_given_up_soon(monkeypatch):
    monkeypatch.setattr("finemem_lib.readers.server.CONNECT_WAIT", 0.2)
    with socket.socket() as full:  # its queue is full: further connections are not taken
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        with contextlib.ExitStack() as waiting:
            for _ in range(2):
                one = waiting.enter_context(socket.socket())
                one.setblocking(False)
                one.connect_ex(address)
            settings = ChatSettings("m", base_url=f"http://127.0.0.1:{address[1]}/v1", backoff=0.01)
            started = time.monotonic()
            with pytest.raises(ModelError, match="attempt 3 of 3 .*no server answers there"):
                ChatClient(settings).ask(talks(1))
            assert time.monotonic() - started < 100


def test_the_key_is_sent_and_stands_nowhere(monkeypatch, tmp_path, caplog, capfd):
    monkeypatch.setenv("TEST_KEY", f"{SECRET}\n")
    caplog.set_level(logging.DEBUG)
    said = []
    with FaultServer(echo, FAULTS, share=0.3) as server:
        chat = client(server, key_env="TEST_KEY", memo=str(tmp_path / "memo.sqlite"))
        chat.ask(talks(20))
        assert server.authorizations == {f"Bearer {SECRET}"}
        server.status, server.body = 401, json.dumps({"error": {"message": f"denied: {SECRET}"}})
        try:
            chat.ask([[{"role": "user", "content": "new"}]])
        except ModelError as error:
            said += traceback.format_exception(error)
    assert any("denied: ***" in line for line in said)
    said += [
        repr(chat),
        repr(chat.settings),
        repr(vars(chat)),
        chat.settings.identity,
        caplog.text,
        *capfd.readouterr(),
    ]
    said += [path.read_bytes().decode("latin-1") for path in tmp_path.iterdir()]
    assert len(list(tmp_path.iterdir())) >= 1 and "HTTP" in caplog.text
    assert not any(SECRET in text for text in said)


def test_a_key_in_the_wrong_place_is_refused_without_repeating_it(monkeypatch):
    for wrong in (
        {"key_env": SECRET},
        {"api_key": SECRET},
        {"base_url": f"http://user:{SECRET}@host/v1"},
        {"base_url": f"http://host/v1?key={SECRET}"},
    ):
        with pytest.raises(ValueError) as caught:
            chat_settings({"model": "m", "base_url": "http://host/v1", **wrong})
        assert SECRET not in "".join(traceback.format_exception(caught.value))
    monkeypatch.delenv("TEST_KEY", raising=False)
    settings = ChatSettings("m", base_url="http://host/v1", key_env="TEST_KEY")
    with pytest.raises(ValueError, match="TEST_KEY is not set"):
        ChatClient(settings)
    monkeypatch.setenv("TEST_KEY", f"{SECRET}\nsk-2")
    with pytest.raises(ValueError, match="TEST_KEY is no key") as caught:
        ChatClient(settings)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model": ""}, "model is empty"),
        ({}, "model: Missing required argument|model: Field required"),
        ({"model": "m"}, "base_url is missing"),
        ({"model": "m", "base_url": "host:80/v1"}, "base_url is missing or no address"),
        ({"model": "m", "base_url": "http://h", "concurrency": 0}, "concurrency is 0"),
        ({"model": "m", "base_url": "http://h", "temperature": float("nan")}, "temperature is nan"),
        ({"model": "m", "base_url": "http://h", "timeout": 0}, "timeout is 0"),
        ({"model": "m", "base_url": "http://h", "attempts": "many"}, "attempts: .*integer"),
        ({"model": "m", "kind": "cloud"}, "kind: .*'server' or 'local'"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_words(options, said):
    with pytest.raises(ValueError, match=said):
        chat_settings(options)


def test_it_works_where_an_event_loop_is_running():
    async def cell():
        with FaultServer(echo) as server:
            return client(server).ask(talks(3))

    assert asyncio.run(cell()) == [f"answer to question {n}" for n in range(3)]


def test_text_that_utf8_cannot_carry_comes_back_replaced(tmp_path):
    with FaultServer(lambda _: "a\ud800b") as server:
        assert client(server, memo=str(tmp_path / "memo.sqlite")).ask(talks(1)) == ["a\ufffdb"]


ASKING = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what the background started
from finemem_lib.readers.server import ChatClient
from finemem_lib.readers.settings import ChatSettings
chat = ChatClient(ChatSettings("m", base_url=sys.argv[1], memo=sys.argv[2], concurrency=4))
chat.ask([[{"role": "user", "content": f"question {n}"}] for n in range(60)])
"""


def stopped(server, memo, number, at):
    """Start a process that asks, send it a signal once `at` replies were handed over."""
    process = subprocess.Popen(
        [sys.executable, "-c", ASKING, server.base_url, memo], stderr=subprocess.DEVNULL
    )
    try:
        with server.changed:
            assert server.changed.wait_for(lambda: server.paid.total() >= at, LAST_RESORT)
        process.send_signal(number)
        process.wait(timeout=LAST_RESORT)
    finally:
        process.kill()
        process.wait()


def assert_goes_on(server, memo, at):
    """Ask again in this process: what the memo holds is not asked, all the rest is."""
    with sqlite3.connect(memo) as file:
        kept = file.execute("SELECT count(*) FROM replies").fetchone()[0]
    # Only the four on their way when the process died may have been handed over and not received.
    assert at - 4 <= kept < 60
    chat = ChatClient(ChatSettings("m", base_url=server.base_url, memo=memo, concurrency=4))
    assert chat.ask(talks(60)) == [f"answer to question {n}" for n in range(60)]
    assert chat.usage.calls == 60 - kept and chat.usage.memo_hits == kept
    assert max(server.paid.values()) <= 2 and server.paid.total() <= 64


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_process_that_is_stopped_loses_no_reply(number, tmp_path):
    memo = str(tmp_path / "memo.sqlite")
    with FaultServer(echo, delay=0.05) as server:
        stopped(server, memo, number, at=12)
        assert_goes_on(server, memo, 12)


@pytest.mark.nightly
@pytest.mark.parametrize("at", range(1, 40, 4))
def test_a_process_killed_at_any_moment_loses_no_reply(at, tmp_path):
    memo = str(tmp_path / "memo.sqlite")
    with FaultServer(echo, FAULTS, share=0.3, seed=at, delay=0.03) as server:
        stopped(server, memo, signal.SIGKILL, at)
        assert_goes_on(server, memo, at)


FILLING = """
import sys
from finemem_lib.readers.memo import Memo, Reply
memo, worker = Memo(sys.argv[1]), sys.argv[2]
for number in range(100):
    memo.put(f"shared {number}", 1, Reply(f"from {worker}"))
    memo.put(f"{worker}: {number}", 1, Reply(str(number)))
    assert memo.get(f"{worker}: {number}", 1) == Reply(str(number))
"""


def test_processes_share_a_memo_and_the_first_reply_stays(tmp_path):
    path = str(tmp_path / "new" / "memo.sqlite")
    workers = [
        subprocess.Popen([sys.executable, "-c", FILLING, path, str(number)]) for number in range(3)
    ]
    assert [worker.wait() for worker in workers] == [0, 0, 0]
    memo = Memo(path)
    first = memo.get("shared 7", 1)
    memo.put("shared 7", 1, Reply("late"))
    assert memo.get("shared 7", 1) == first and first.text.startswith("from ")
    assert memo.get("2: 99", 1) == Reply("99") and memo.get("2: 99", 2) is None


def test_a_file_that_is_no_memo_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("my notes, which are long enough to be no empty database" * 50)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="notes.txt.*choose another path"):
        Memo(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("text", "city"),
    [
        ('{"city": "Rome"}', "Rome"),
        ('```json\n{"city": "Rome"}\n```', "Rome"),
        ('Sure! {"city": "R}{"} Anything else?', "R}{"),
        ('{"city": ["Rome"]}', None),
        ('{"city": "Rome"', None),
        ("}{", None),
        ("[" * 100_000, None),
        ('{"city":' * 10_000 + "}", None),
    ],
)
def test_structured_answers_are_taken_only_where_they_fit(text, city):
    assert structured(text, Capital) == (None if city is None else Capital(city))


def test_thinking_is_cut_off():
    assert without_thinking("<think>\n\n</think>\n\nRome") == "Rome"
    assert without_thinking("  Rome ") == "Rome"
