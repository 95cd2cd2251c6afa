"""Counting equal texts in little memory."""

from __future__ import annotations

from array import array

import numpy as np
import numpy.typing as npt


class Repeats:
    """A record of which texts equal earlier ones, in 16 bytes a text."""

    def __init__(self) -> None:
        self._digests = array("Q")  # 8 bytes of 32: among 10^8 texts, two may collide
        self._sizes_bytes = array("Q")

    def add(self, digest: bytes, size_bytes: int) -> None:
        """Add a text."""
        self._digests.append(int.from_bytes(digest[:8], "big"))
        self._sizes_bytes.append(size_bytes)

    def flags(self) -> npt.NDArray[np.bool_]:
        """Return True for each text that is equal to an earlier one."""
        _, firsts = np.unique(np.frombuffer(self._digests, np.uint64), return_index=True)
        flags = np.ones(len(self._digests), np.bool_)
        flags[firsts] = False
        return flags

    def sizes_bytes(self) -> npt.NDArray[np.uint64]:
        """Return the sizes of all texts."""
        return np.frombuffer(self._sizes_bytes, np.uint64)
