"""The tokens of one split, across all of its shards."""

from __future__ import annotations

import mmap
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from llmtrain.errors import DataError
from llmtrain.files import Closing

TokenArray: TypeAlias = npt.NDArray[np.int64]


class TokenStream(Closing):
    """Token ids at any position, memory-mapped: pages are read on demand.

    Arrays that it returns are copies, so closing is possible at any time, on Windows too, where
    a mapped file cannot be removed.
    """

    def __init__(
        self, shards: Sequence[Path], dtype: np.dtype[np.unsignedinteger], vocab_size: int
    ) -> None:
        self._shards = tuple(shards)
        self._dtype = dtype
        self._vocab_size = vocab_size
        self._maps: list[mmap.mmap] = []
        try:
            for shard in shards:
                with shard.open("rb") as file:
                    self._maps.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except BaseException:
            self.close()
            raise
        sizes = (len(mapped) // dtype.itemsize for mapped in self._maps)
        self._starts = list(accumulate(sizes, initial=0))
        self.num_tokens = self._starts[-1]

    def read(self, start: int, count: int) -> TokenArray:
        """Return `count` ids from `start` on, all within the vocabulary.

        Raises IndexError beyond either end, and DataError for an id that no embedding has a row
        for: on a GPU it would abort the process.
        """
        if start < 0 or count < 0 or start + count > self.num_tokens:
            raise IndexError(f"tokens {start}..{start + count} of {self.num_tokens}")
        out = np.empty(count, dtype=np.int64)
        filled = 0
        while filled < count:
            filled += self._fill(out[filled:], start + filled)
        if count and int(out.max()) >= self._vocab_size:
            raise self._outside(start + int(out.argmax()), int(out.max()))
        return out

    def _outside(self, position: int, token: int) -> DataError:
        shard = bisect_right(self._starts, position) - 1
        return DataError(
            f"{self._shards[shard]} is damaged: token {position - self._starts[shard]} has id "
            f"{token}, and the vocabulary is {self._vocab_size}",
            hint="remove its directory from the cache, and continue with --resume auto",
        )

    def _fill(self, out: TokenArray, position: int) -> int:
        """Copy ids from the shard at `position` into `out`; return how many there were."""
        shard = bisect_right(self._starts, position) - 1
        count = min(len(out), self._starts[shard + 1] - position)
        offset = (position - self._starts[shard]) * self._dtype.itemsize
        out[:count] = np.frombuffer(self._maps[shard], self._dtype, count, offset)
        return count

    def close(self) -> None:
        """Unmap the files, so that they can be removed. Reading is not possible afterwards."""
        for mapped in self._maps:
            mapped.close()
