"""A real server, `transformers serve`, and the same model in this process."""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import sys
import time
import urllib.request
from importlib.util import find_spec

import pytest

from finemem_lib.data.planted import planted_stream
from finemem_lib.managers.model import make_manager
from finemem_lib.managers.rollout import RolloutSettings, play
from finemem_lib.readers.roles import make_chat
from finemem_lib.reading import Reading
from tests.helpers.chat_models import TASK, local, reader_of, talks

pytest.importorskip("openai", reason="the server extra is not installed")


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
