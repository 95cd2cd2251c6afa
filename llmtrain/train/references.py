"""Log-probabilities that the first model gives to pairs of answers: computed once, and kept.

They lie beside the shards, in a file whose name says for which model. While they are computed, each
block of it has its own digest: a process that is killed leaves whole blocks, and the next one goes
on after them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llmtrain.data.batches.preferences import (
    PackedPreferences,
    PreferenceReader,
    References,
    pack_preferences,
)
from llmtrain.data.batches.windows import Tokens
from llmtrain.data.chat.marks import Marks
from llmtrain.eval.preferences import answer_nats
from llmtrain.model.decoder import Decoder
from llmtrain.untrusted import read_bytes

_VERSION = 1  # raised when the same pairs get other values
_DIGEST_BYTES = 16
_ROW = np.dtype([("start", "<i8"), ("chosen", "<f8"), ("rejected", "<f8")])
_TOKENS_AT_ONCE = 4096  # of one forward

Rows = NDArray[np.void]


@dataclass(frozen=True, slots=True)
class ReferenceModel:
    """The model that training began with, where it is needed, and how it computes."""

    build: Callable[[], Decoder]
    autocast: Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True, slots=True)
class Work:
    """The stop check of the work, and the observer of its progress in bytes."""

    check_stop: Callable[[], None] = lambda: None
    on_progress: Callable[[int, int], None] = lambda done, total: None


def reference_file(directory: Path, side: str, model_key: str, context: int) -> Path:
    """Return the file with a model's values of one side of the shards in `directory`."""
    return directory / f"references-{_VERSION}-{side}-{context}-{model_key}.bin"


def read_references(path: Path, stream: Tokens, marks: Marks, context: int) -> References | None:
    """Return the values in a file; None unless those of all pairs are there."""
    packed = pack_preferences(stream, marks, context)
    blocks = _blocks(packed, context)
    known = list(_known(path, packed, blocks))
    return _references(known) if len(known) == len(blocks) else None


def ensure_references(
    path: Path | None,
    stream: Tokens,
    marks: Marks,
    context: int,
    model: ReferenceModel,
    work: Work,
) -> References:
    """Return the values of all pairs in a stream: those in the file, and what is missing.

    Without a `path` nothing is kept. Raises DataError if no pair fits into the context, OSError
    where the file cannot be written, and what `check_stop` raises.
    """
    packed = pack_preferences(stream, marks, context, check_stop=work.check_stop)
    blocks = _blocks(packed, context)
    known = [] if path is None else list(_known(path, packed, blocks))
    if len(known) == len(blocks):
        return _references(known)
    reader = PreferenceReader(stream, packed, marks, context, seed=0)
    total = len(packed.packing.chunks) * _ROW.itemsize
    decoder = model.build()
    with ExitStack() as stack:
        file = None
        if path is not None:
            file = stack.enter_context(path.open("r+b" if known else "wb"))
            file.seek(sum(_DIGEST_BYTES + rows.nbytes for rows in known))
            file.truncate()
        for windows in blocks[len(known) :]:
            work.check_stop()
            known.append(_computed(reader, windows, decoder, model))
            if file is not None:
                file.write(_digest(known[-1]) + known[-1].tobytes())
                file.flush()
            work.on_progress(sum(rows.nbytes for rows in known), total)
    return _references(known)


def _blocks(packed: PackedPreferences, context: int) -> list[range]:
    """Return the windows that are computed together."""
    windows, at_once = packed.packing.num_windows, max(1, _TOKENS_AT_ONCE // context)
    return [range(at, min(at + at_once, windows)) for at in range(0, windows, at_once)]


def _starts(packed: PackedPreferences, windows: range) -> list[int]:
    """Return where the pairs of these windows begin, in the order of their values."""
    return [start for window in windows for start, _ in packed.packing.chunks_of(window)]


def _computed(
    reader: PreferenceReader, windows: range, decoder: Decoder, model: ReferenceModel
) -> Rows:
    arrays = reader.read_windows(windows)
    found = next(answer_nats(decoder, [arrays], autocast=model.autocast, check_stop=lambda: None))
    starts = [start for window in windows for start in reader.pairs_of(window)]
    rows = np.empty(len(starts), dtype=_ROW)
    rows["start"], rows["chosen"], rows["rejected"] = starts, -found.nats[0::2], -found.nats[1::2]
    return rows


def _known(path: Path, packed: PackedPreferences, blocks: Sequence[range]) -> Iterator[Rows]:
    """Yield the whole blocks at the beginning of a file that are of these pairs."""
    expected = [_starts(packed, windows) for windows in blocks]
    most = sum(_DIGEST_BYTES + len(starts) * _ROW.itemsize for starts in expected)
    try:
        data = read_bytes(path, most, follow_links=True)
    except OSError:
        return
    at = 0
    for starts in expected:
        begin, at = at + _DIGEST_BYTES, at + _DIGEST_BYTES + len(starts) * _ROW.itemsize
        if at > len(data):
            return
        rows = np.frombuffer(data[begin:at], _ROW)
        is_whole = data[begin - _DIGEST_BYTES : begin] == _digest(rows)
        if not is_whole or rows["start"].tolist() != starts:
            return
        yield rows


def _digest(rows: Rows) -> bytes:
    return hashlib.sha256(rows.tobytes()).digest()[:_DIGEST_BYTES]


def _references(blocks: Sequence[Rows]) -> References:
    rows = np.concatenate(blocks)
    rows = rows[np.argsort(rows["start"])]
    values = np.stack([rows["chosen"], rows["rejected"]], axis=1)
    return References(rows["start"].astype(np.int64), values)
