"""A cache of packings beside the shards, so that a long text is packed once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from llmtrain.data.batches.packing import Packed, Packing, pack
from llmtrain.data.shards.prepared import PreparedData
from llmtrain.data.shards.token_stream import TokenStream
from llmtrain.files import write_pieces_atomically
from llmtrain.untrusted import read_bytes

_VERSION = 1  # raised when the same text is packed differently
_DIGEST_BYTES = 32
_DTYPE = np.dtype("<u8")


def cached_packing(
    data: PreparedData, context: int, check_stop: Callable[[], None] = lambda: None
) -> Packing:
    """Return the packing of the training side: the one cached beside the shards, or a new one.

    A damaged file is replaced; a cache that cannot be written is ignored. Raises DataError.
    """
    path = data.directory / f"packing-{_VERSION}-{context}.bin"
    kept = _read(path, data.train)
    if kept is not None:
        return kept
    packing = pack(data.train, data.index.separator_id, context, check_stop=check_stop)
    _write(path, packing)
    return packing


def _read(path: Path, stream: TokenStream) -> Packing | None:
    most_numbers = 2 * stream.num_tokens + 2  # a window and a chunk for every token
    try:
        data = read_bytes(path, _DIGEST_BYTES + most_numbers * _DTYPE.itemsize, follow_links=True)
    except OSError:
        return None
    digest, payload = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    if hashlib.sha256(payload).digest() != digest:
        return None
    numbers: Packed = np.frombuffer(payload, _DTYPE)
    end = 2 + int(numbers[0])  # the number of windows, where each begins, and the end of the last
    return Packing(numbers[end:], numbers[1:end])


def _write(path: Path, packing: Packing) -> None:
    head = np.array([packing.num_windows], _DTYPE)
    parts = [part.astype(_DTYPE).tobytes() for part in (head, packing.windows, packing.chunks)]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    try:
        write_pieces_atomically(path, [digest.digest(), *parts])
    except OSError:
        return  # a cache that is full or not writable
