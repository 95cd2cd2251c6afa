"""A report counts what the tokenizer did to the sample."""

import pytest

from llmtrain.tokenizer import Tokenizer, inspect_tokenizer


def test_rates_are_what_counting_gives(tokenizer: Tokenizer, documents: list[str]) -> None:
    sample = documents[:20]
    report = inspect_tokenizer(tokenizer, sample)
    tokens = [token for text in sample for token in tokenizer.encode(text)]
    assert report.sample_tokens == len(tokens)
    assert report.sample_bytes == sum(len(text.encode()) for text in sample)
    assert report.bytes_per_token == report.sample_bytes / len(tokens)
    assert report.unused_text_pieces == len(set(range(258, tokenizer.vocab_size)) - set(tokens))


def test_bytes_are_counted_as_fallback(tokenizer: Tokenizer) -> None:
    assert inspect_tokenizer(tokenizer, ["\U0001f98a" * 5]).byte_fallback_rate == 1.0
    assert inspect_tokenizer(tokenizer, ["import os"]).byte_fallback_rate == 0.0
    mixed = inspect_tokenizer(tokenizer, ["x\U0001f98a"]).byte_fallback_rate
    assert mixed == pytest.approx(4 / 5)


def test_the_longest_pieces_come_first(tokenizer: Tokenizer) -> None:
    longest = inspect_tokenizer(tokenizer, []).longest_pieces
    lengths = [len(text) for text in longest]
    assert len(longest) == 10
    assert lengths == sorted(lengths, reverse=True)
    texts = [piece.text for piece in tokenizer.pieces() if piece.kind == "text"]
    assert lengths[0] == max(map(len, texts))


def test_an_empty_sample_has_no_rates(tokenizer: Tokenizer) -> None:
    report = inspect_tokenizer(tokenizer, [])
    assert report.bytes_per_token is report.byte_fallback_rate is None
    assert report.unused_text_pieces == tokenizer.vocab_size - 258
    assert report.fingerprint == tokenizer.fingerprint
