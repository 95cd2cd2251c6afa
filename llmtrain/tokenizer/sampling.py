"""A sample of a stream of documents, of bounded size, from all over it."""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterator

_SEED = 20_240_601  # any number does, as long as it never changes
_SEGMENTS = 64  # a sample has at least this many, so that no one document fills it


class ByteSample:
    """Documents, whole, chosen evenly from all that were added, in at most `max_bytes` of UTF-8.

    Each document draws a number, and those that drew the smallest stay: the bottom-k sample of
    Cohen and Kaplan (2007). A document over 1/64 of `max_bytes` is cut into segments at line ends,
    and each is drawn for by itself. The same documents give the same sample. Memory is bounded by
    `max_bytes` and the document at hand.
    """

    def __init__(self, max_bytes: int) -> None:
        self.documents = 0  # with text in them
        self.bytes_seen = 0
        self.bytes_used = 0
        self._max_bytes = max_bytes
        self._random = random.Random(_SEED)
        self._threshold = 1.0  # drawing this much or more is too much: the sample is full
        self._kept: list[tuple[float, int, bytes]] = []  # heap, the largest draw in front
        self._drawn = 0

    def add(self, document: str) -> None:
        """Offer `document` to the sample."""
        if not document:
            return
        self.documents += 1
        for segment in _segments(document, max(1, self._max_bytes // _SEGMENTS)):
            self._draw(segment)

    def __iter__(self) -> Iterator[str]:
        """The texts of the sample, in the order in which they were added."""
        for _, _, data in sorted(self._kept, key=lambda entry: entry[1]):
            yield data.decode()

    def _draw(self, segment: str) -> None:
        data = segment.encode()  # which takes no more than it says, whatever the script
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
    """`document` in parts of at most `max_bytes`, cut after a line end where there is one."""
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
