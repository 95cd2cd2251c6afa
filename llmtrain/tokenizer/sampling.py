"""A uniform sample of bounded size from a stream of documents."""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterator

_SEED = 20_240_601  # arbitrary, but constant, so that samples are reproducible
_SEGMENTS = 64  # a full sample has at least this many, so that no one document fills it


class ByteSample:
    """A uniform sample of the added documents, of at most `max_bytes` of UTF-8.

    Each document gets a random number, and those with the smallest numbers are kept: the bottom-k
    sample of Cohen and Kaplan (2007). Documents larger than 1/64 of `max_bytes` are cut into
    segments at line ends, which are sampled separately. The same documents give the same sample.
    Memory is bounded by `max_bytes` and the size of one document.
    """

    def __init__(self, max_bytes: int) -> None:
        self.documents = 0  # non-empty ones
        self.bytes_seen = 0
        self.bytes_used = 0
        self._max_bytes = max_bytes
        self._random = random.Random(_SEED)
        self._threshold = 1.0  # numbers from here on are rejected; below 1 once the sample is full
        self._kept: list[tuple[float, int, bytes]] = []  # heap, the largest number first
        self._drawn = 0

    def add(self, document: str) -> None:
        """Add `document` to the stream; whether it is kept is random."""
        if not document:
            return
        self.documents += 1
        for segment in _segments(document, max(1, self._max_bytes // _SEGMENTS)):
            self._draw(segment)

    def __iter__(self) -> Iterator[str]:
        """Yield the texts of the sample, in the order in which they were added."""
        for _, _, data in sorted(self._kept, key=lambda entry: entry[1]):
            yield data.decode()

    def _draw(self, segment: str) -> None:
        data = segment.encode()  # bytes, because the memory of a str depends on its script
        self.bytes_seen += len(data)
        self._drawn += 1
        draw = self._random.random()
        if draw >= self._threshold:
            return
        heapq.heappush(self._kept, (-draw, self._drawn, data))
        self.bytes_used += len(data)
        while self.bytes_used > self._max_bytes:
            negative_draw, _, dropped = heapq.heappop(self._kept)
            self._threshold = -negative_draw
            self.bytes_used -= len(dropped)


def _segments(document: str, max_bytes: int) -> Iterator[str]:
    """Yield `document` in segments of at most `max_bytes`, cut after line ends where possible."""
    if len(document.encode()) <= max_bytes:
        yield document
        return
    max_characters = max(1, max_bytes // 4)  # a character has at most four bytes
    start = 0
    while start < len(document):
        end = start + max_characters
        line_end = document.rfind("\n", start, end) + 1
        if end < len(document) and line_end > start:
            end = line_end
        yield document[start:end]
        start = end
