"""A report counts what the tokenizer did to the sample."""

import base64
from pathlib import Path

import pytest

from llmtrain.tokenizer import Tokenizer, inspect_tokenizer, train_tokenizer
from llmtrain.tokenizer.well_known import well_known_tokenizers


def test_rates_are_what_counting_gives(tokenizer: Tokenizer, documents: list[str]) -> None:
    sample = documents[:20]
    report = inspect_tokenizer(tokenizer, {"a": sample})
    tokens = [token for text in sample for token in tokenizer.encode(text)]
    assert report.sample_tokens == len(tokens)
    assert report.sample_bytes == sum(len(text.encode()) for text in sample)
    assert report.bytes_per_token == report.sample_bytes / len(tokens)
    assert report.unused_text_pieces == len(set(range(258, tokenizer.vocab_size)) - set(tokens))


def test_bytes_are_counted_as_fallback(tokenizer: Tokenizer) -> None:
    assert inspect_tokenizer(tokenizer, {"a": ["\U0001f98a" * 5]}).byte_fallback_rate == 1.0
    assert inspect_tokenizer(tokenizer, {"a": ["import os"]}).byte_fallback_rate == 0.0
    mixed = inspect_tokenizer(tokenizer, {"a": ["x\U0001f98a"]}).byte_fallback_rate
    assert mixed == pytest.approx(4 / 5)


def test_the_longest_pieces_come_first(tokenizer: Tokenizer) -> None:
    longest = inspect_tokenizer(tokenizer, {}).longest_pieces
    lengths = [len(text) for text in longest]
    assert len(longest) == 10
    assert lengths == sorted(lengths, reverse=True)
    texts = [piece.text for piece in tokenizer.pieces() if piece.kind == "text"]
    assert lengths[0] == max(map(len, texts))


def test_an_empty_sample_has_no_rates(tokenizer: Tokenizer) -> None:
    report = inspect_tokenizer(tokenizer, {})
    assert report.bytes_per_token is report.byte_fallback_rate is None
    assert report.unused_text_pieces == tokenizer.vocab_size - 258
    assert report.fingerprint == tokenizer.fingerprint


def test_each_source_and_each_other_tokenizer_is_counted(
    tokenizer: Tokenizer, documents: list[str]
) -> None:
    small = train_tokenizer(documents[:9], vocab_size=500).tokenizer
    samples = {"one": documents[:5], "two": documents[5:9], "none": []}
    report = inspect_tokenizer(tokenizer, samples, {"small": small})
    for source, texts in zip(report.sources, samples.values(), strict=True):
        assert source.tokens == sum(len(tokenizer.encode(text)) for text in texts)
        assert source.bytes == sum(len(text.encode()) for text in texts)
    assert report.sources[2].bytes_per_token is None
    assert report.sample_tokens == sum(source.tokens for source in report.sources)
    (other,) = report.beside
    assert other.tokens == sum(len(small.encode(text)) for text in documents[:9])
    assert other.bytes == report.sample_bytes


def test_the_rarest_pieces_are_those_that_were_needed_least(tokenizer: Tokenizer) -> None:
    report = inspect_tokenizer(tokenizer, {"a": ["import os\n" * 5, "def\n"]})
    rarest = {each.piece: each.times for each in report.rarest_pieces}
    assert rarest.pop("def") == 1
    assert list(rarest.values()) == sorted(rarest.values())


def test_digits_and_spaces_are_spelt_out(tokenizer: Tokenizer) -> None:
    spellings = {each.text: each.pieces for each in inspect_tokenizer(tokenizer, {}).spellings}
    assert spellings["1234567"] == tuple("1234567")
    assert "".join(spellings["    return x"]) == "▁▁▁▁return▁x"


def test_what_others_left_here_is_found(
    documents: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "ranks"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert well_known_tokenizers() == {}
    snapshot = tmp_path / "hub" / "models--openai-community--gpt2" / "snapshots" / "a"
    train_tokenizer(documents[:9], vocab_size=500).tokenizer.save(snapshot)
    (tmp_path / "ranks").mkdir()
    # The name that tiktoken itself gives to its copy.
    name = "9b5ad71b2ce5302211f9c61530b329a4922fc6a4"
    ranks = b"".join(base64.b64encode(bytes([n])) + b" %d\n" % n for n in range(256))
    (tmp_path / "ranks" / name).write_bytes(ranks)
    broken = tmp_path / "hub" / "models--Qwen--Qwen3-8B" / "snapshots" / "a"
    broken.mkdir(parents=True)
    (broken / "tokenizer.json").write_text("{}")
    found = well_known_tokenizers()
    assert set(found) == {"cl100k_base", "openai-community/gpt2"}
    assert found["cl100k_base"].encode("né") == list("né".encode())
