"""MinHash signatures of texts (Broder 1997, "On the resemblance and containment of documents").

The similarity of two texts is that of their sets of shingles, stretches of `SHINGLE` characters
after whitespace is removed and letters are lowercased: shared shingles ÷ all shingles. Two
signatures agree in about that share of their places. With 5% of the words replaced it is about
0.82, with 5% of the characters replaced 0.57; unrelated prose stays below 0.2.

rensa makes the signatures. Its index is not used: that takes several kilobytes a document, and
names candidates without saying how similar they are.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from llmtrain.errors import UsageError

SHINGLE = 6  # characters
PLACES = 256  # of a signature; two agree to within 0.03, one standard deviation
_SEED = 20_240_601  # arbitrary, but it must never change
_BATCH_CHARACTERS = 1 << 20
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd: 2^64 divided by the golden ratio

Signatures: TypeAlias = npt.NDArray[np.uint16]  # (texts, PLACES)
_Hashes: TypeAlias = npt.NDArray[np.uint64]


def has_minhash() -> bool:
    """Return whether the library that computes signatures is installed."""
    return find_spec("rensa") is not None


def require_minhash(asked_by: str) -> None:
    """Raise UsageError, with how to install the library, if it is missing."""
    if not has_minhash():
        message = f"{asked_by} needs the library rensa, which is not installed"
        raise UsageError(message, hint="pip install 'llmtrain[dedup]'")


class MinHasher:
    """A builder of signatures. It holds a batch of hashes, and 512 bytes for each text."""

    def __init__(self) -> None:
        self._signed = bytearray()  # grows in place; a list of arrays would be joined by copying
        self._hashes: list[_Hashes] = []  # of stretches of texts, without signatures yet
        self._texts: list[int] = []  # to which text of the batch each stretch belongs
        self._pending = 0  # texts in the batch
        self._room = _BATCH_CHARACTERS

    def add(self, text: str) -> None:
        """Add a text; it gets a signature even if it is only whitespace."""
        bare = "".join(text.lower().split())
        for start in range(0, max(1, len(bare)), _BATCH_CHARACTERS):
            stretch = bare[start : start + _BATCH_CHARACTERS + SHINGLE - 1]
            if start == 0 or len(stretch) >= SHINGLE:
                self._hashes.append(shingle_hashes(stretch))
                self._texts.append(self._pending)
        self._pending += 1
        self._room -= len(bare) + SHINGLE
        if self._room <= 0:
            self._sign_batch()

    def signatures(self) -> Signatures:
        """Return the signatures of all texts, in order."""
        if self._pending:
            self._sign_batch()
        return np.frombuffer(self._signed, np.uint16).reshape(-1, PLACES)

    def _sign_batch(self) -> None:
        minima = _minima(self._hashes)
        first_stretches = np.searchsorted(self._texts, np.arange(self._pending))
        of_texts = np.minimum.reduceat(minima, first_stretches, axis=0)
        # Half of the bits suffice: unrelated places agree once in 65,536.
        self._signed += of_texts.astype(np.uint16).tobytes()
        self._hashes, self._texts = [], []
        self._pending, self._room = 0, _BATCH_CHARACTERS


def shingle_hashes(bare: str) -> _Hashes:
    """Return a hash for each shingle of a text without whitespace; at least one."""
    points = np.frombuffer(bare.encode("utf-32-le"), np.uint32).astype(np.uint64)
    if len(points) < SHINGLE:
        points = np.pad(points, (0, SHINGLE - len(points)))
    count = len(points) - SHINGLE + 1
    hashes = np.zeros(count, np.uint64)
    for offset in range(SHINGLE):
        hashes = hashes * _MULTIPLIER + points[offset : offset + count]
    hashes ^= hashes >> np.uint64(32)
    hashes *= _MULTIPLIER
    return hashes


def _minima(stretches: list[_Hashes]) -> npt.NDArray[np.uint32]:
    """Return for each stretch the minimum of its hashes under each permutation."""
    from rensa import RMinHash

    offsets = np.cumsum([0, *map(len, stretches)], dtype=np.uint64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(
        np.concatenate(stretches), offsets, PLACES, _SEED
    )
    return np.asarray(matrix.to_rows(), dtype=np.uint32)
