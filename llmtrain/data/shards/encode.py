"""Encode pieces of text to validated token ids, a few megabytes at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np

from llmtrain.data.shards.token_stream import TokenArray
from llmtrain.data.split import Side, SplitPart, cut_at_line_ends
from llmtrain.errors import DataError

# The ids of several texts, one after the other, and how many each text has.
Encoded: TypeAlias = tuple[TokenArray, TokenArray]
# Encodes batches of texts as UTF-8, in their order.
Encode: TypeAlias = Callable[[Iterable[Sequence[bytes]]], Generator[Encoded, None, None]]


class TextEncoder(Protocol):
    """The interface of a tokenizer. `encode_batch` adds no separators."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def separator_id(self) -> int: ...

    @property
    def end_id(self) -> int | None:
        """The id after each document's text; None: the next separator ends it."""

    @property
    def fingerprint(self) -> str: ...

    def encode_batch(self, texts: Sequence[str], threads: int) -> list[list[int]]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


class RefusedTextError(DataError):
    """A text that cannot be encoded; `index` is its position in the batch."""

    def __init__(self, message: str, index: int, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.index = index


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a piece, encoded in one call. `data` is its text as UTF-8."""

    side: Side
    data: bytes
    origin: str
    begins_piece: bool
    ends_piece: bool


@dataclass(frozen=True, slots=True)
class EncodedBatch:
    """Parts, and their ids one after the other, with what begins and ends each piece."""

    parts: Sequence[Part]
    ids: TokenArray
    counts: TokenArray  # ids of each part

    @property
    def text_bytes(self) -> int:
        """The bytes of text in all parts."""
        return sum(len(part.data) for part in self.parts)

    def of_side(self, side: Side) -> EncodedBatch:
        """Return the parts on one side of the split, in order."""
        mine = np.array([part.side == side for part in self.parts], dtype=bool)
        ids = self.ids[np.repeat(mine, self.counts)]
        return EncodedBatch(
            [part for part in self.parts if part.side == side], ids, self.counts[mine]
        )


def cut_into_parts(pieces: Iterable[SplitPart], batch_bytes: int) -> Iterator[Part]:
    """Yield every piece, cut at line ends if it is too long for one batch."""
    for piece in pieces:
        data = piece.document.text.encode()
        left_bytes = len(data)
        for stretch in cut_at_line_ends(data, batch_bytes, 2 * batch_bytes):
            begins, left_bytes = left_bytes == len(data), left_bytes - len(stretch)
            yield Part(piece.side, stretch, piece.document.origin, begins, left_bytes == 0)


def encode_parts(
    parts: Iterable[Part], encode: Encode, encoder: TextEncoder, batch_bytes: int
) -> Generator[EncodedBatch, None, None]:
    """Yield batches of encoded parts, in order.

    Raises DataError for an id outside the vocabulary, or for the separator within a text.
    """
    waiting: deque[list[Part]] = deque()

    def texts() -> Iterator[list[bytes]]:
        for batch in _batches(parts, batch_bytes):
            waiting.append(batch)
            yield [part.data for part in batch]

    with closing(encode(texts())) as encoded:
        try:
            for ids, counts in encoded:
                batch = waiting.popleft()
                _require_valid(ids, counts, batch, encoder)
                yield _with_separators(ids, counts, batch, encoder)
        except RefusedTextError as error:
            origin = waiting[0][error.index].origin
            raise DataError(f"{origin}: {error.message}", hint=error.hint) from None


def _batches(parts: Iterable[Part], batch_bytes: int) -> Iterator[list[Part]]:
    batch: list[Part] = []
    room_bytes = batch_bytes
    for part in parts:
        batch.append(part)
        room_bytes -= len(part.data)
        if room_bytes <= 0:
            yield batch
            batch, room_bytes = [], batch_bytes
    if batch:
        yield batch


def _require_valid(
    ids: TokenArray, counts: TokenArray, batch: Sequence[Part], encoder: TextEncoder
) -> None:
    """Raise DataError for an id outside the vocabulary, or a separator within a text."""
    wrong = (ids < 0) | (ids >= encoder.vocab_size) | (ids == encoder.separator_id)
    if encoder.end_id is not None:
        wrong |= ids == encoder.end_id
    if not wrong.any():
        return
    first = int(wrong.argmax())
    part = int(np.searchsorted(np.cumsum(counts), first, side="right"))
    require_in_vocabulary(ids[first : first + 1], encoder.vocab_size, batch[part].origin)
    raise DataError(
        f"the tokenizer gave the separator, id {ids[first]}, for text of "
        f"{batch[part].origin}: it would end the document there",
        hint="train the tokenizer again: llmtrain tokenizer train --help",
    )


def _with_separators(
    ids: TokenArray, counts: TokenArray, batch: Sequence[Part], encoder: TextEncoder
) -> EncodedBatch:
    begins = np.array([part.begins_piece for part in batch], dtype=np.int64)
    ends = np.zeros_like(begins)
    if encoder.end_id is not None:
        ends = np.array([part.ends_piece for part in batch], dtype=np.int64)
        ids = np.insert(ids, np.cumsum(counts)[ends == 1], encoder.end_id)
    counts = counts + ends
    starts = np.cumsum(counts) - counts
    ids = np.insert(ids, starts[begins == 1], encoder.separator_id)
    return EncodedBatch(batch, ids, counts + begins)


def require_in_vocabulary(ids: TokenArray, vocab_size: int, origin: str) -> None:
    """Raise DataError for an id that has no row among `vocab_size` embedding rows."""
    outside = ids[(ids < 0) | (ids >= vocab_size)]
    if outside.size:
        message = f"the tokenizer gave id {outside[0]} for {origin}; its vocabulary is {vocab_size}"
        raise DataError(message, hint="train the tokenizer again: llmtrain tokenizer train --help")
