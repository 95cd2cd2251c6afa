"""Packing of documents into windows: only documents longer than the context are cut.

Best-fit-decreasing packing (Ding et al. 2024, "Fewer Truncations Improve Language Modeling"): a
document longer than the context is cut into chunks of its length and a rest; then, longest first,
each chunk goes into the fullest window that has room for it. A fixed number of chunks in a
row is packed at a time, so that a window's documents are from one region of the text. The rest of
a window is padding.

Every token but the first is a target exactly once an epoch, as without packing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llmtrain.data.batches.permutation import permuted_index
from llmtrain.data.batches.windows import Tokens
from llmtrain.data.shards.token_stream import TokenArray
from llmtrain.errors import DataError

IGNORED = -1  # a target that does not count
HORIZON_CHUNKS = 1 << 18
_LENGTH_BITS = 24
_LONGEST_CONTEXT = (1 << _LENGTH_BITS) - 1
_SCANNED_TOKENS = 1 << 22

Packed = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Packing:
    """The assignment of chunks to windows, in eight bytes a chunk and eight a window.

    `chunks`: window by window, where each begins in the text, and its length in the low 24 bits.
    `windows`: where each window's chunks begin among them, and the end.
    """

    chunks: Packed
    windows: Packed

    @property
    def num_windows(self) -> int:
        return len(self.windows) - 1

    def fills(self) -> npt.NDArray[np.uint32]:
        """Return the number of tokens in each window."""
        lengths = self.chunks & np.uint64(_LONGEST_CONTEXT)
        return np.add.reduceat(lengths, self.windows[:-1].astype(np.int64)).astype(np.uint32)

    def chunks_of(self, window: int) -> Iterator[tuple[int, int]]:
        """Yield the first token and the length of each chunk."""
        start, end = self.windows[window : window + 2].tolist()
        for chunk in self.chunks[start:end].tolist():
            yield chunk >> _LENGTH_BITS, chunk & _LONGEST_CONTEXT


def pack(
    stream: Tokens,
    separator_id: int,
    context: int,
    *,
    check_stop: Callable[[], None] = lambda: None,
    horizon_chunks: int = HORIZON_CHUNKS,
) -> Packing:
    """Return the packing of tokens whose documents begin with the separator. Reads all of them.

    Raises DataError if there is no target, or the context is longer than 2²⁴ − 1.
    """
    if context > _LONGEST_CONTEXT:
        message = f"data.packing best_fit: context {context} is longer than {_LONGEST_CONTEXT}"
        raise DataError(message, hint="--set data.packing=concatenate")
    if stream.num_tokens < 2:
        message = f"{stream.num_tokens} tokens of text have nothing to predict"
        raise DataError(message, hint="add text with --data")
    starts, lengths = _chunks(_borders(stream, separator_id, check_stop), context)
    chunks, counts = list[Packed](), list[Packed]()
    for begin in range(0, len(starts), horizon_chunks):
        check_stop()
        some = slice(begin, begin + horizon_chunks)
        window_of = best_fit(lengths[some], context)
        part = packing_of(starts[some], lengths[some], window_of)
        chunks.append(part.chunks)
        counts.append(np.diff(part.windows))
    ends = np.cumsum(np.concatenate([np.zeros(1, np.uint64), *counts]), dtype=np.uint64)
    return Packing(np.concatenate(chunks), ends)


def packing_of(starts: TokenArray, lengths: TokenArray, window_of: TokenArray) -> Packing:
    """Return the packing in which each chunk is in the window that `window_of` says."""
    order = np.argsort(window_of, kind="stable")
    chunks = starts.astype(np.uint64) << np.uint64(_LENGTH_BITS) | lengths.astype(np.uint64)
    counts = np.concatenate([np.zeros(1, np.uint64), np.bincount(window_of).astype(np.uint64)])
    return Packing(chunks[order], np.cumsum(counts, dtype=np.uint64))


def _borders(stream: Tokens, separator_id: int, check_stop: Callable[[], None]) -> TokenArray:
    """Return the positions of document starts, and of the last token, which is only a target."""
    last = stream.num_tokens - 1
    found = [np.zeros(1, dtype=np.int64)]
    for start in range(1, last, _SCANNED_TOKENS):
        check_stop()
        tokens = stream.read(start, min(_SCANNED_TOKENS, last - start))
        found.append(np.flatnonzero(tokens == separator_id) + start)
    return np.concatenate([*found, np.array([last])])


def _chunks(borders: TokenArray, context: int) -> tuple[TokenArray, TokenArray]:
    """Return first tokens and lengths of all chunks, in the order of the text."""
    sizes = np.diff(borders)
    counts = -(-sizes // context)
    first_chunks = np.cumsum(counts) - counts
    within = np.arange(int(counts.sum())) - np.repeat(first_chunks, counts)
    starts = np.repeat(borders[:-1], counts) + within * context
    return starts, np.minimum(np.repeat(borders[1:], counts) - starts, context)


def best_fit(lengths: TokenArray, context: int) -> TokenArray:
    """Return the window of each chunk: longest first, into the fullest window with room.

    Chunks of one length are placed together, with the same result as one by one: the fullest
    window with room for one takes as many as fit, then the next. Of equally full windows the
    first opened comes first.
    """
    order = np.argsort(-lengths, kind="stable")
    window_of = np.empty(len(lengths), dtype=np.int64)
    bins = _Windows(context)
    cuts = np.flatnonzero(np.diff(lengths[order])) + 1
    for alike in np.split(order, cuts):
        window_of[alike] = bins.place(int(lengths[alike[0]]), len(alike))
    return window_of


class _Windows:
    """Open windows by their remaining room."""

    def __init__(self, context: int) -> None:
        self._context = context
        self._opened = 0
        self._by_room: dict[int, TokenArray] = {}
        self._rooms = 0  # bit r is set if there are windows with room r

    def place(self, length: int, count: int) -> TokenArray:
        """Return the windows that take `count` chunks of one length."""
        placed = list[TokenArray]()
        while count:
            room = self._least_room(length, count)
            each, windows = room // length, self._by_room[room]
            used = min(len(windows), -(-count // each))
            taken, rest = windows[:used], windows[used:]
            into = np.repeat(taken, each)[:count]
            in_last = len(into) - (used - 1) * each
            self._put(room, rest, replace=True)
            self._put(room - each * length, taken[:-1])
            self._put(room - in_last * length, taken[-1:])
            placed.append(into)
            count -= len(into)
        return np.concatenate(placed)

    def _least_room(self, length: int, count: int) -> int:
        """Return the room of the fullest windows that take one chunk; open new ones if none do."""
        fitting = self._rooms >> length
        if fitting:
            return length + (fitting & -fitting).bit_length() - 1
        needed = -(-count // (self._context // length))
        opened = np.arange(self._opened, self._opened + needed)
        self._opened += needed
        self._put(self._context, opened)
        return self._context

    def _put(self, room: int, windows: TokenArray, *, replace: bool = False) -> None:
        """Record that the windows have this much room; with `replace`, no others have."""
        if not replace and room in self._by_room:
            windows = np.sort(np.concatenate([self._by_room[room], windows]))
        if room and len(windows):
            self._by_room[room] = windows
            self._rooms |= 1 << room
        else:
            self._by_room.pop(room, None)
            self._rooms &= ~(1 << room)


class PackedReader:
    """Windows of whole documents in permuted order, determined by the position alone.

    Padding inputs are separators, and padding targets are IGNORED.
    """

    def __init__(
        self, stream: Tokens, packing: Packing, separator_id: int, context: int, seed: int
    ) -> None:
        self._stream = stream
        self._packing = packing
        self._separator_id = separator_id
        self._context = context
        self._seed = seed
        self._fills = packing.fills()
        self.num_windows = packing.num_windows

    def read(self, first_position: int, count: int) -> tuple[TokenArray, TokenArray]:
        """Return inputs and targets of `count` windows, each int64 of shape (count, context)."""
        inputs = np.full((count, self._context), self._separator_id, dtype=np.int64)
        targets = np.full_like(inputs, IGNORED)
        for row in range(count):
            filled = 0
            for start, length in self._packing.chunks_of(self._window(first_position + row)):
                tokens = self._stream.read(start, length + 1)
                inputs[row, filled : filled + length] = tokens[:-1]
                targets[row, filled : filled + length] = tokens[1:]
                filled += length
        return inputs, targets

    def place(self, position: int) -> str:
        """Return a description, for messages, of where in the text the window at `position` is."""
        chunks = list(self._packing.chunks_of(self._window(position)))
        documents = "1 document" if len(chunks) == 1 else f"{len(chunks)} documents"
        return f"{documents} of the training text, the first from token {chunks[0][0]} on"

    def count_targets(self, first_position: int, count: int) -> int:
        """Return the number of targets in that many windows, without the padding."""
        positions = range(first_position, first_position + count)
        return sum(int(self._fills[self._window(position)]) for position in positions)

    def _window(self, position: int) -> int:
        return permuted_index(position, self.num_windows, self._seed)[1]
