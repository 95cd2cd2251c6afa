"""A cache of encoded words, which makes encoding faster because most words repeat.

In a BPE vocabulary in which no piece crosses into the next word, the ids of a text are the
concatenated ids of its words: no merge crosses a word boundary, and merges in one word do not
affect those in another.
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

# From texts to their ids; each id is an int32 in native byte order.
EncodeToBytes: TypeAlias = Callable[[Sequence[str]], list[bytes]]

ID_BYTES = array("i").itemsize
_WORD = re.compile(" *[^ ]+| +")
_MOST_WORDS = 1 << 18  # about 70 MB; far more than the frequent words of a text
_MOST_CHARACTERS = 1 << 24  # in cached words


def fastest_encoder(tokenizer: Tokenizer) -> EncodeToBytes:
    """Return the fastest function that gives the tokenizer's ids."""
    if _has_words(tokenizer):
        return EncodedWords(tokenizer.model)
    return lambda texts: [_id_bytes(ids) for ids in tokenizer.encode_batch(texts, threads=1)]


def _has_words(tokenizer: Tokenizer) -> bool:
    """Return whether words can be encoded separately.

    That holds for llmtrain's own BPE models: no piece crosses into the next word, and scores are
    the integer ranks of merges.
    """
    has_ranks = all(piece.score.is_integer() for piece in tokenizer.pieces())
    return tokenizer.kind.name == "own" and has_ranks


class EncodedWords:
    """An encoder with a bounded cache of words and their ids."""

    def __init__(self, model: bytes, most_words: int = _MOST_WORDS) -> None:
        """Load a serialized model, which must be valid."""
        self._processor = SentencePieceProcessor()
        self._processor.LoadFromSerializedProto(model)
        self._most_words = most_words
        self._ids: dict[str, bytes] = {}
        self._characters = 0

    def __call__(self, texts: Sequence[str]) -> list[bytes]:
        """Return the ids of each text, as int32 in native byte order."""
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
