"""Text encoded word by word has the ids of the whole."""

from __future__ import annotations

import shutil
from array import array
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtrain.tokenizer import Tokenizer
from llmtrain.tokenizer.words import EncodedWords, quickest_encoder
from tests.data.fixed import TOKENIZER, fixed_texts

MODEL = (TOKENIZER / "tokenizer.model").read_bytes()
LIKELY = st.text(st.sampled_from("ab c  ▁\u2581\n\t\U000f25810é1_"))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(TOKENIZER)


def ids_of(encoded: list[bytes]) -> list[list[int]]:
    return [array("i", data).tolist() for data in encoded]


@given(texts=st.lists(LIKELY | st.text()))
def test_ids_are_those_of_the_whole(tokenizer: Tokenizer, texts: list[str]) -> None:
    assert ids_of(EncodedWords(MODEL)(texts)) == tokenizer.encode_batch(texts, threads=1)


def test_forgetting_words_changes_nothing(tokenizer: Tokenizer) -> None:
    texts, encode = fixed_texts(), EncodedWords(MODEL, most_words=20)
    for start in range(0, len(texts), 10):
        batch = texts[start : start + 10]
        assert ids_of(encode(batch)) == tokenizer.encode_batch(batch, threads=1)
    assert len(encode._ids) < 3000


def test_only_what_is_known_to_keep_words_apart_is_cut(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    assert isinstance(quickest_encoder(tokenizer, TOKENIZER), EncodedWords)
    whole = quickest_encoder(tokenizer, tmp_path)
    assert not isinstance(whole, EncodedWords)
    texts = fixed_texts()[:5]
    assert ids_of(whole(texts)) == tokenizer.encode_batch(texts, threads=1)
    shutil.copy(TOKENIZER / "tokenizer.model", tmp_path)
    with (tmp_path / "tokenizer.model").open("ab") as file:
        file.write(b"\n\x00")
    assert not isinstance(quickest_encoder(tokenizer, tmp_path), EncodedWords)
