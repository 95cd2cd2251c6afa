"""Write one side of a split as shards, and count its tokens."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from llmtrain.data.shards.encode import EncodedBatch
from llmtrain.data.shards.index import ShardFacts, SplitFacts, token_dtype
from llmtrain.data.shards.journal import StaleJournalError
from llmtrain.data.shards.token_stream import TokenArray
from llmtrain.data.split import Side
from llmtrain.files import Closing

_PIECE_BYTES = 1 << 20  # a whole number of tokens


class SplitWriter(Closing):
    """A writer of `<side>-00000.bin`, `<side>-00001.bin`, …, each full before the next."""

    def __init__(
        self,
        directory: Path,
        side: Side,
        vocab_size: int,
        shard_bytes: int,
        written: SplitFacts | None = None,
    ) -> None:
        """Continue after `written`. Raises StaleJournalError if its shards are not on disk."""
        self.counts: TokenArray = np.zeros(vocab_size, dtype=np.int64)
        self._directory = directory
        self._side = side
        self._dtype = token_dtype(vocab_size)
        self._shard_tokens = max(1, shard_bytes // self._dtype.itemsize)
        self._text_bytes = 0
        self._documents = 0
        self._finished: list[ShardFacts] = []
        self._open: _OpenShard | None = None
        if written is not None:
            self._resume_after(written)

    def _resume_after(self, written: SplitFacts) -> None:
        """Read every shard again, count its tokens, and check that it is what was written."""
        self._text_bytes, self._documents = written.text_bytes, written.documents
        try:
            for shard in written.shards:
                self._finish_shard()
                self._reopen(shard)
        except FileNotFoundError as error:
            raise StaleJournalError(f"{error.filename} is gone") from error
        except BaseException:
            self.close()
            raise
        if self._open is not None and not self._room_tokens(self._open):
            self._finish_shard()

    def _reopen(self, shard: ShardFacts) -> None:
        path = self._directory / self._next_name()
        self._open = _OpenShard(path, shard.size_bytes)
        for data in self._open.read_back():
            ids = np.frombuffer(data, self._dtype, len(data) // self._dtype.itemsize)
            self.counts += np.bincount(ids, minlength=len(self.counts))[: len(self.counts)]
        if self._open.facts() != shard:
            raise StaleJournalError(f"{path} is not what was written")

    def append_batch(self, batch: EncodedBatch) -> None:
        """Write the parts of the batch that are on this side, in order."""
        mine = batch.of_side(self._side)
        self.append(mine.ids)
        self._text_bytes += mine.text_bytes
        self._documents += sum(part.begins_piece for part in mine.parts)

    def append(self, ids: TokenArray) -> None:
        """Write `ids`, all within the vocabulary."""
        self.counts += np.bincount(ids, minlength=len(self.counts))
        while len(ids):
            if self._open is None:
                self._open = _OpenShard(self._directory / self._next_name())
            room = self._room_tokens(self._open)
            self._open.write(ids[:room].astype(self._dtype).tobytes())
            if len(ids) >= room:
                self._finish_shard()
            ids = ids[room:]

    def _room_tokens(self, shard: _OpenShard) -> int:
        return self._shard_tokens - shard.size_bytes // self._dtype.itemsize

    def _next_name(self) -> str:
        return f"{self._side}-{len(self._finished):05d}.bin"

    def _finish_shard(self) -> None:
        if self._open is not None:
            self._open.sync()
            self._open.close()
            self._finished.append(self._open.facts())
            self._open = None

    def written(self) -> SplitFacts:
        """Sync the shards written so far to disk, and return their facts. More can follow."""
        shards = list(self._finished)
        if self._open is not None:
            self._open.sync()
            shards.append(self._open.facts())
        tokens = int(self.counts.sum())
        return SplitFacts(tokens, self._text_bytes, self._documents, tuple(shards))

    def finish(self) -> SplitFacts:
        """Finish the last shard; return the facts of all shards."""
        self._finish_shard()
        return self.written()

    def close(self) -> None:
        """Close an unfinished shard as it is."""
        if self._open is not None:
            self._open.close()


class _OpenShard:
    """A file that is hashed as it is written. Its first `kept_bytes` exist already."""

    def __init__(self, path: Path, kept_bytes: int | None = None) -> None:
        self.size_bytes = 0
        self._path = path
        self._kept_bytes = kept_bytes or 0
        self._digest = hashlib.sha256()
        self._file: BinaryIO = path.open("wb" if kept_bytes is None else "rb+")

    def read_back(self) -> Iterator[bytes]:
        """Yield the content to keep, in pieces; truncate what was written after it."""
        self._file.truncate(self._kept_bytes)
        while data := self._file.read(_PIECE_BYTES):
            self._digest.update(data)
            self.size_bytes += len(data)
            yield data

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.size_bytes += len(data)

    def sync(self) -> None:
        """Flush and sync the file."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def facts(self) -> ShardFacts:
        return ShardFacts(self._path.name, self.size_bytes, self._digest.hexdigest())

    def close(self) -> None:
        self._file.close()
