"""llama.cpp computes what the model computes; what is written wrongly is found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llmtrain.errors import LlmtrainError, UsageError
from llmtrain.export import gguf_tensors, verify
from llmtrain.export.encoding import Encoding
from llmtrain.export.gguf_vocabulary import vocabulary_of
from llmtrain.export.pre_tokenizer import PRE_TOKENIZERS
from llmtrain.model.decoder import Decoder
from llmtrain.tokenizer import Tokenizer
from tests.export.conftest import ByteLevel, Exporter, model_of

pytest.importorskip("xllamacpp")

FORMS: dict[str, dict[str, object]] = {
    "qwen3": {},
    "llama": {"qk_norm": False},
    "untied": {"tie_embeddings": False},
    "grouped": {"num_kv_heads": 2, "qk_norm": False, "tie_embeddings": False},
    "wide-heads": {"head_dim": 32, "num_kv_heads": 1},
}


@pytest.mark.parametrize("form", FORMS)
def test_llama_cpp_computes_the_same(
    form: str, exporter: Exporter, own_tokenizer: Tokenizer
) -> None:
    # More rows than pieces, as after a small corpus.
    model = model_of(512, **FORMS[form])

    found = exporter.verify(exporter.write(model, own_tokenizer), model, own_tokenizer)

    assert found.texts == 222
    assert found.greedy_tokens == 64 + 9 * 4
    assert found.largest_difference_nats <= 1e-4
    assert len(found.known_differences) == 1
    assert "▁" in found.known_differences[0]


@pytest.mark.parametrize("pre", ["gpt-2", "qwen2", "gpt-4o", "dbrx"])
def test_llama_cpp_gives_the_ids_of_byte_level_tokenizers(
    pre: str, exporter: Exporter, byte_level: ByteLevel
) -> None:
    tokenizer = byte_level(PRE_TOKENIZERS[pre].patterns[0])
    model = model_of(tokenizer.vocab_size)

    found = exporter.verify(exporter.write(model, tokenizer), model, tokenizer)

    assert (found.texts, found.known_differences) == (222, ())


def swap_gate_and_up(model: Decoder) -> None:
    gate, up = (getattr(model.model.layers[1].mlp, name) for name in ("gate_proj", "up_proj"))
    gate.weight, up.weight = up.weight, gate.weight


def read_back(path: Path, model: Decoder) -> Decoder:
    read = Decoder(model.shape).eval()
    weights = gguf_tensors.read_weights(path, model.shape)
    read.load_state_dict({name: torch.from_numpy(values) for name, values in weights})
    return read


@pytest.mark.parametrize("encoding", ["f16", "bf16", "q8_0", "q5_0", "q4_0"])
def test_other_encodings_compute_what_their_rounded_weights_do(
    encoding: Encoding, exporter: Exporter, own_tokenizer: Tokenizer
) -> None:
    model = model_of(512, qk_norm=False)
    path = exporter.write(model, own_tokenizer, encoding)
    read = read_back(path, model)

    exporter.verify(path, read, own_tokenizer, encoding)

    swap_gate_and_up(model)
    with pytest.raises(LlmtrainError, match="other probabilities"):
        exporter.verify(
            exporter.write(model, own_tokenizer, encoding), read, own_tokenizer, encoding
        )


def test_rows_without_a_permutation_are_found(
    exporter: Exporter, own_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(512, **FORMS["grouped"])
    monkeypatch.setattr(gguf_tensors, "interleave_halves", lambda rows, heads: rows)

    with pytest.raises(LlmtrainError, match="other probabilities: at token 0 after prompt 0"):
        exporter.verify(exporter.write(model, own_tokenizer), model, own_tokenizer)


def test_swapped_tensors_are_found(exporter: Exporter, own_tokenizer: Tokenizer) -> None:
    model, other = model_of(512), model_of(512)
    swap_gate_and_up(other)

    with pytest.raises(LlmtrainError, match="other probabilities"):
        exporter.verify(exporter.write(other, own_tokenizer), model, own_tokenizer)


def test_a_wrong_split_of_text_is_found(exporter: Exporter, byte_level: ByteLevel) -> None:
    tokenizer = byte_level(PRE_TOKENIZERS["qwen2"].patterns[0])
    model = model_of(tokenizer.vocab_size)
    wrong = replace(vocabulary_of(tokenizer, model.shape.vocab_size), pre="gpt-2")

    with pytest.raises(LlmtrainError, match=r"other ids to \d+ of 222 texts: in '.*' token \d+ is"):
        exporter.verify(exporter.write(model, tokenizer, vocabulary=wrong), model, tokenizer)


def test_a_space_before_each_text_is_found(exporter: Exporter, own_tokenizer: Tokenizer) -> None:
    model = model_of(512)
    wrong = replace(vocabulary_of(own_tokenizer, 512), adds_space_prefix=True)

    with pytest.raises(LlmtrainError, match="other ids"):
        exporter.verify(
            exporter.write(model, own_tokenizer, vocabulary=wrong), model, own_tokenizer
        )


def test_a_file_that_is_cut_off_is_an_error(exporter: Exporter, own_tokenizer: Tokenizer) -> None:
    model = model_of(512)
    path = exporter.write(model, own_tokenizer)
    path.write_bytes(path.read_bytes()[:-4096])

    with pytest.raises(LlmtrainError, match=r"llama\.cpp cannot read the exported model: .*error"):
        exporter.verify(path, model, own_tokenizer)


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "find_spec", lambda name: None)

    with pytest.raises(UsageError, match=r"llama\.cpp to read the model") as caught:
        verify.require_reader("gguf")
    assert caught.value.hint == "pip install 'llmtrain[llama]'"


def test_there_are_more_than_two_hundred_texts_of_any_sample() -> None:
    for sample in ("short", "a longer one. " * 2000):
        texts = verify.verification_texts(sample)
        assert len([text for text in texts if "▁" not in text]) > 222
        assert any(sample[:5] in text for text in texts)
