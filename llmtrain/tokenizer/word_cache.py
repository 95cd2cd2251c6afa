"""Encoding word by word, each word once: text says the same words again and again.

Of a byte-pair vocabulary in which no piece goes on into the next word, the ids of a text are those
of its words: no merge crosses the border of two, and merges on one side of it do not matter for
those on the other.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Sequence
from itertools import chain
from typing import TypeAlias

from sentencepiece import SentencePieceProcessor

from llmtrain.tokenizer.escape import escape
from llmtrain.tokenizer.tokenizer import Tokenizer

# Texts to their ids, each id an int32 as the machine has it.
EncodeToBytes: TypeAlias = Callable[[Sequence[str]], list[bytes]]

ID_BYTES = array("i").itemsize
_WORD = re.compile(" *[^ ]+| +")
_MOST_WORDS = 1 << 18  # about 70 MB; a text's most frequent ones are far fewer
_MOST_CHARACTERS = 1 << 24  # of these words


def fastest_encoder(tokenizer: Tokenizer) -> EncodeToBytes:
    """What encodes as the tokenizer does."""
    if _has_words(tokenizer):
        return EncodedWords(tokenizer.model)
    return lambda texts: [_id_bytes(ids) for ids in tokenizer.encode_batch(texts, threads=1)]


def _has_words(tokenizer: Tokenizer) -> bool:
    """Whether no piece goes on into the next word, as in own ones, and pieces have ranks, as
    merges do."""
    has_ranks = all(piece.score.is_integer() for piece in tokenizer.pieces())
    return tokenizer.kind.name == "own" and has_ranks


class EncodedWords:
    """Words and their ids, as far as there is room for them. Called with texts."""

    def __init__(self, model: bytes, most_words: int = _MOST_WORDS) -> None:
        """`model` is one that a Tokenizer accepts."""
        self._processor = SentencePieceProcessor()
        self._processor.LoadFromSerializedProto(model)
        self._most_words = most_words
        self._ids: dict[str, bytes] = {}
        self._characters = 0

    def __call__(self, texts: Sequence[str]) -> list[bytes]:
        """The ids of each text."""
        if len(self._ids) > self._most_words or self._characters > _MOST_CHARACTERS:
            self._ids, self._characters = {}, 0
        split = [_WORD.findall(escape(text)) for text in texts]
        self._learn(list(set(chain.from_iterable(split)) - self._ids.keys()))
        ids_of = self._ids.__getitem__
        return [b"".join(map(ids_of, words)) for words in split]

    def _learn(self, words: list[str]) -> None:
        encoded = self._processor.encode(words, num_threads=1)
        for word, ids in zip(words, encoded, strict=True):
            self._ids[word] = _id_bytes(ids)
            self._characters += len(word)


def _id_bytes(ids: Sequence[int]) -> bytes:
    return array("i", ids).tobytes()
