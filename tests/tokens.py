"""Token ids in memory, for what reads a stream of tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Ids:
    """A stream of tokens that is an array."""

    ids: NDArray[np.int64]

    @property
    def num_tokens(self) -> int:
        """Length of the array."""
        return len(self.ids)

    def read(self, start: int, count: int) -> NDArray[np.int64]:
        """Return `count` ids from `start` on."""
        return self.ids[start : start + count]


class PredictableIds:
    """A stream of tokens below 300, each predictable from the one before."""

    ids: NDArray[np.int64] = np.arange(4000, dtype=np.int64) * 7 % 300

    @property
    def num_tokens(self) -> int:
        """Length of the stream."""
        return len(self.ids)

    def read(self, start: int, count: int) -> NDArray[np.int64]:
        """Return `count` ids from `start` on."""
        return self.ids[start : start + count]
