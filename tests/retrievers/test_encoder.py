from __future__ import annotations

import numpy as np
import pytest

from finemem_lib.retrievers import encoder
from finemem_lib.retrievers.encoder import FETCHED, TOLERANCE, embeddings, load_encoder
from tests.helpers.encoders import count_letters, fake_encoder, save_small_encoder
from tests.helpers.paths import ROOT

MINILM = ROOT / FETCHED
TEXTS = ["mia lives in rome", "ana sails", "cats", "", "leo owns cats in rome", "ana", "mia"]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return save_small_encoder(tmp_path_factory.mktemp("encoders") / "small")


def test_a_vector_is_the_mean_of_the_last_hidden_states_at_length_1(small):
    import torch

    loaded = load_encoder(str(small))
    ids = torch.tensor([loaded.tokenizer("ana sails")["input_ids"]])
    hidden = loaded.model(input_ids=ids).last_hidden_state[0].detach().numpy()
    mean = hidden.mean(axis=0)
    [vector] = loaded.encode(["ana sails"])
    assert vector == pytest.approx(mean / np.linalg.norm(mean), abs=TOLERANCE)


@pytest.mark.parametrize("folder", ["small", pytest.param(str(MINILM), id="minilm")])
def test_the_batch_changes_a_vector_by_less_than_the_tolerance(folder, small):
    if folder == "small":
        folder = str(small)
    elif not MINILM.is_dir():
        pytest.skip("all-MiniLM-L6-v2 is not there; `finemem fetch minilm` gets it")
    loaded = load_encoder(folder)
    texts = [*TEXTS, " ".join(TEXTS), *(f"{text} {text} {text}" for text in TEXTS)]
    together = loaded.encode(texts)
    alone = np.concatenate([loaded.encode([text]) for text in texts])
    assert np.abs(together - alone).max() < TOLERANCE
    assert np.linalg.norm(together, axis=1) == pytest.approx(np.ones(len(texts)), abs=1e-6)


def test_what_lies_beyond_the_longest_text_does_not_count(small):
    seven = "mia " * 8  # [CLS], six words and [SEP] are eight tokens
    first, second = load_encoder(str(small)).encode([seven, seven + "cats"])
    assert np.array_equal(first, second)


def test_every_text_is_embedded_once_per_model(monkeypatch):
    fake = fake_encoder(monkeypatch, count_letters)
    embeddings("any", ["a", "b", "a"])
    found = embeddings("any", ["b", "i", "a"])
    assert fake.read == ["a", "b", "i"]
    assert found[2] == pytest.approx(count_letters("a"), abs=1e-6)
    other = fake_encoder(monkeypatch, lambda text: np.ones(2))
    assert embeddings("any", ["a"])[0].tolist() == [1.0, 1.0] and other.read == ["a"]


def test_only_so_many_vectors_are_kept(monkeypatch):
    monkeypatch.setattr(encoder, "MAX_CACHED", 2)
    fake = fake_encoder(monkeypatch, count_letters)
    assert len(embeddings("any", ["a", "i", "s"])) == 3
    embeddings("any", ["s", "i"])
    embeddings("any", ["a"])
    assert fake.read == ["a", "i", "s", "a"]


def test_the_hash_follows_the_weights_and_not_the_folder(small, tmp_path):
    same = save_small_encoder(tmp_path / "same")
    assert load_encoder(str(same)).model_hash == load_encoder(str(small)).model_hash
    shorter = save_small_encoder(tmp_path / "shorter")
    (shorter / "sentence_bert_config.json").write_text('{"max_seq_length": 4}')
    assert load_encoder(str(shorter)).model_hash != load_encoder(str(small)).model_hash


def test_a_model_that_cannot_be_used_is_refused_with_a_remedy(tmp_path):
    with pytest.raises(ValueError, match="could not be loaded .* `finemem fetch minilm`"):
        load_encoder(str(tmp_path / "nothing"))
    first_token = save_small_encoder(tmp_path / "cls", pooling_mode_mean_tokens=False)
    with pytest.raises(ValueError, match="pools otherwise than by the mean"):
        load_encoder(str(first_token))
