"""Writing one side of a split as shards, counting as it goes."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np

from llmtrain.data.encoding import EncodedPart
from llmtrain.data.index import ShardFacts, SplitFacts, token_dtype
from llmtrain.data.split import Side
from llmtrain.data.stream import TokenArray


class SplitWriter:
    """Appends tokens to `<side>-00000.bin`, `<side>-00001.bin`, …, each full before the next."""

    def __init__(self, directory: Path, side: Side, vocab_size: int, shard_bytes: int) -> None:
        self.counts: TokenArray = np.zeros(vocab_size, dtype=np.int64)
        self._directory = directory
        self._side = side
        self._dtype = token_dtype(vocab_size)
        self._shard_tokens = max(1, shard_bytes // self._dtype.itemsize)
        self._text_bytes = 0
        self._documents = 0
        self._finished: list[ShardFacts] = []
        self._open: _OpenShard | None = None

    def append_batch(self, batch: list[EncodedPart]) -> None:
        """The parts of the batch that are on this side are written, in order."""
        mine = [encoded for encoded in batch if encoded.part.side == self._side]
        if mine:
            self.append(np.concatenate([encoded.ids for encoded in mine]))
        self._text_bytes += sum(encoded.part.text_bytes for encoded in mine)
        self._documents += sum(encoded.part.begins_piece for encoded in mine)

    def append(self, ids: TokenArray) -> None:
        """`ids`, all within the vocabulary, follow what was written."""
        self.counts += np.bincount(ids, minlength=len(self.counts))
        while len(ids):
            if self._open is None:
                self._open = _OpenShard(self._directory / self._next_name())
            room = self._shard_tokens - self._open.size_bytes // self._dtype.itemsize
            self._open.write(ids[:room].astype(self._dtype).tobytes())
            if len(ids) >= room:
                self._finish_shard()
            ids = ids[room:]

    def _next_name(self) -> str:
        return f"{self._side}-{len(self._finished):05d}.bin"

    def _finish_shard(self) -> None:
        if self._open is not None:
            self._finished.append(self._open.finish())
            self._open = None

    def finish(self) -> SplitFacts:
        """Every shard is on disk."""
        self._finish_shard()
        tokens = int(self.counts.sum())
        return SplitFacts(tokens, self._text_bytes, self._documents, tuple(self._finished))

    def __enter__(self) -> SplitWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._open is not None:
            self._open.close()


class _OpenShard:
    """A file that is hashed as it is written."""

    def __init__(self, path: Path) -> None:
        self.size_bytes = 0
        self._path = path
        self._digest = hashlib.sha256()
        self._file: BinaryIO = path.open("wb")

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.size_bytes += len(data)

    def finish(self) -> ShardFacts:
        """The file is on disk and closed."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return ShardFacts(self._path.name, self.size_bytes, self._digest.hexdigest())

    def close(self) -> None:
        self._file.close()
