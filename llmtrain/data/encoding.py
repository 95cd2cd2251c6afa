"""From pieces of text to checked token ids, a few megabytes at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from llmtrain.data.split import Piece, Side, cut_at_line_ends
from llmtrain.data.stream import TokenArray
from llmtrain.errors import DataError


class TextEncoder(Protocol):
    """What a tokenizer has to offer. `encode_batch` adds no separators of its own."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def separator_id(self) -> int: ...

    @property
    def fingerprint(self) -> str: ...

    def encode_batch(self, texts: Sequence[str], threads: int) -> list[list[int]]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of a piece that is encoded at once."""

    side: Side
    text: str
    text_bytes: int
    origin: str
    begins_piece: bool


@dataclass(frozen=True, slots=True)
class EncodedPart:
    """The part, and its ids with the separator before them if it begins a piece."""

    part: Part
    ids: TokenArray


def encode_pieces(
    pieces: Iterable[Piece],
    encoder: TextEncoder,
    *,
    threads: int,
    batch_bytes: int,
    check_stop: Callable[[], None],
) -> Iterator[list[EncodedPart]]:
    """Batches of encoded parts, in order. Raises DataError for an id outside the vocabulary."""
    for batch in _batches(pieces, batch_bytes):
        check_stop()
        lists = encoder.encode_batch([part.text for part in batch], threads)
        yield [_encoded(part, ids, encoder) for part, ids in zip(batch, lists, strict=True)]


def _batches(pieces: Iterable[Piece], batch_bytes: int) -> Iterator[list[Part]]:
    batch: list[Part] = []
    room_bytes = batch_bytes
    for piece in pieces:
        for part in _parts(piece, batch_bytes):
            batch.append(part)
            room_bytes -= part.text_bytes
            if room_bytes <= 0:
                yield batch
                batch, room_bytes = [], batch_bytes
    if batch:
        yield batch


def _parts(piece: Piece, batch_bytes: int) -> Iterator[Part]:
    """The piece, cut at line ends if it is too long for the memory that a batch may take."""
    data = piece.document.text.encode()
    origin = piece.document.origin
    begins_piece = True
    for stretch in cut_at_line_ends(data, batch_bytes, 2 * batch_bytes):
        yield Part(piece.side, stretch.decode(), len(stretch), origin, begins_piece)
        begins_piece = False


def _encoded(part: Part, ids: list[int], encoder: TextEncoder) -> EncodedPart:
    separator = [encoder.separator_id] if part.begins_piece else []
    array = np.array([*separator, *ids], dtype=np.int64)
    require_in_vocabulary(array, encoder.vocab_size, part.origin)
    return EncodedPart(part, array)


def require_in_vocabulary(ids: TokenArray, vocab_size: int, origin: str) -> None:
    """Every id is one that a model with `vocab_size` embedding rows can look up."""
    outside = ids[(ids < 0) | (ids >= vocab_size)]
    if outside.size:
        message = f"the tokenizer gave id {outside[0]} for {origin}; its vocabulary is {vocab_size}"
        raise DataError(message, hint="train the tokenizer again: llmtrain tokenizer train --help")
