"""Text encoded word by word has the ids of the whole."""

from __future__ import annotations

from array import array
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtrain.tokenizer import Tokenizer, train_tokenizer
from llmtrain.tokenizer.word_cache import EncodedWords, fastest_encoder
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


def test_only_what_is_known_to_keep_words_apart_is_cut(tokenizer: Tokenizer) -> None:
    assert isinstance(fastest_encoder(tokenizer), EncodedWords)
    anothers = Tokenizer.read_as(replace(tokenizer.kind, name="sentencepiece"), tokenizer.model)
    whole = fastest_encoder(anothers)
    assert not isinstance(whole, EncodedWords)
    texts = fixed_texts()[:5]
    assert ids_of(whole(texts)) == anothers.encode_batch(texts, threads=1)


def test_pieces_with_likelihoods_are_not_merged_by_rank() -> None:
    texts = [text[:2000] for text in fixed_texts()]
    unigram = train_tokenizer(texts, vocab_size=600, kind="unigram").tokenizer
    assert not isinstance(fastest_encoder(unigram), EncodedWords)
