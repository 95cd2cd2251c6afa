"""The loss of a text, stretch by stretch: what a bootstrap draws from.

A segment is at most 4,096 bytes of one document. Two models with different tokenizers have the
same segments of the same text, up to a token at their ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmtrain.errors import DataError

SEGMENT_BYTES = 4096


@dataclass(frozen=True, slots=True)
class SegmentLosses:
    """Loss and size of each segment, in order of the text."""

    documents: NDArray[np.int64]  # the number of the document that each is of
    segments: NDArray[np.int64]  # its own number in that document
    nats: NDArray[np.float64]
    tokens: NDArray[np.int64]
    bytes: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.documents)


class SegmentMeter:
    """Adds up the losses of tokens by segment, while a text is evaluated in order."""

    def __init__(self, vocab_size: int, separator_id: int, spell: Callable[[int], bytes]) -> None:
        """Separators end documents; `spell` returns the bytes that a token is in a text."""
        self._bytes_of = np.array([len(spell(token)) for token in range(vocab_size)])
        self._separator_id = separator_id
        self._document = self._offset = self._begin = 0
        self._parts: list[SegmentLosses] = []

    def add(self, targets: NDArray[np.int64], nats: NDArray[np.float64]) -> None:
        """Add the next tokens of the text and the loss of each."""
        sizes = self._bytes_of[targets]
        is_end = targets == self._separator_id
        documents = self._document + np.cumsum(is_end) - is_end
        ends = self._offset + np.cumsum(sizes)
        is_first = np.concatenate([[False], is_end[:-1]])
        begins = np.maximum.accumulate(np.where(is_first, ends - sizes, self._begin))
        segments = np.maximum(0, ends - begins - 1) // SEGMENT_BYTES
        self._parts.append(_summed(documents, segments, nats, np.ones_like(targets), sizes))
        self._document, self._offset = int(documents[-1] + is_end[-1]), int(ends[-1])
        self._begin = self._offset if is_end[-1] else int(begins[-1])

    def losses(self) -> SegmentLosses:
        """Return all segments so far. Raises DataError if nothing was added."""
        names = ("documents", "segments", "nats", "tokens", "bytes")
        if not self._parts:
            raise DataError(
                "there is no text to evaluate", hint="--data with text that is not empty"
            )
        return _summed(
            *(np.concatenate([getattr(part, name) for part in self._parts]) for name in names)
        )


def _summed(
    documents: NDArray[np.int64],
    segments: NDArray[np.int64],
    nats: NDArray[np.float64],
    tokens: NDArray[np.int64],
    sizes: NDArray[np.int64],
) -> SegmentLosses:
    """Return one row for each run of rows of the same segment."""
    is_new = (np.diff(documents) != 0) | (np.diff(segments) != 0)
    starts = np.concatenate([[0], np.flatnonzero(is_new) + 1])
    return SegmentLosses(
        documents[starts],
        segments[starts],
        *(np.add.reduceat(values, starts) for values in (nats, tokens, sizes)),
    )


def aligned(losses: Iterable[SegmentLosses]) -> list[SegmentLosses]:
    """Return the losses of one text by several models, with a row for every segment of any.

    Tokenizers that spell a text with a few bytes more or less may have a last segment more.
    """
    several = list(losses)
    keys = [np.stack([each.documents, each.segments], axis=1) for each in several]
    union = np.unique(np.concatenate(keys), axis=0)
    return [_at(each, key, union) for each, key in zip(several, keys, strict=True)]


def _at(losses: SegmentLosses, keys: NDArray[np.int64], union: NDArray[np.int64]) -> SegmentLosses:
    rows = np.flatnonzero(np.isin(_joined(union), _joined(keys)))

    def spread(values: NDArray[Any]) -> NDArray[Any]:
        out = np.zeros(len(union), dtype=values.dtype)
        out[rows] = values
        return out

    values = (spread(each) for each in (losses.nats, losses.tokens, losses.bytes))
    return SegmentLosses(union[:, 0], union[:, 1], *values)


def _joined(keys: NDArray[np.int64]) -> NDArray[np.int64]:
    joined: NDArray[np.int64] = (keys[:, 0] << 32) | keys[:, 1]
    return joined
