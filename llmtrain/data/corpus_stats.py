"""Statistics of a corpus in one pass: number of documents, sizes and fingerprint."""

from __future__ import annotations

import hashlib
from array import array
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llmtrain.data.document import Document

_PART = b"part"
_HELD_OUT = b"held out"
LENGTH_SHARES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)  # of documents that are no longer


@dataclass(frozen=True, slots=True)
class CorpusStats:
    """The statistics of a corpus. The digests are of single documents."""

    documents: int
    text_bytes: int
    fingerprint: str
    lowest_digest: bytes
    highest_digest: bytes
    repeated_documents: int = 0  # that are equal to an earlier one
    repeated_bytes: int = 0  # of their text
    held_out_documents: int = 0  # from sources for validation
    held_out_bytes: int = 0
    length_bytes: tuple[int, ...] = ()  # of documents, at LENGTH_SHARES


class FingerprintBuilder:
    """sha256 over the sha256 of every document, in order.

    It depends on the text and where documents end, not on paths, times or compression, so the
    same text has the same fingerprint on every machine. Parts of a text that is too long for one
    document are hashed differently from documents, because they are split into train and validation
    in another way. So are documents of sources for validation.
    """

    def __init__(self) -> None:
        self.documents = 0
        self._digest = hashlib.sha256()

    def add(self, document: Document) -> bytes:
        """Add the document to the fingerprint; return its own digest."""
        digest = document.digest()
        self._digest.update(digest)
        if document.part_at is not None:
            self._digest.update(_PART)
        if document.held_out:
            self._digest.update(_HELD_OUT)
        self.documents += 1
        return digest

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


class CorpusStatsBuilder:
    """A builder of the statistics, document by document, in 16 bytes a document."""

    def __init__(self) -> None:
        self.text_bytes = 0
        self.held_out_documents = self.held_out_bytes = 0
        self._fingerprint = FingerprintBuilder()
        self._digests = array("Q")  # 8 bytes of 32: among 10^8 texts, two may collide
        self._sizes_bytes = array("Q")
        self._lowest, self._highest = b"\xff" * 32, b""

    @property
    def documents(self) -> int:
        return self._fingerprint.documents

    def add(self, document: Document) -> int:
        """Count the document; return the size of its text in bytes."""
        digest = self._fingerprint.add(document)
        size_bytes = len(document.text.encode())
        self._digests.append(int.from_bytes(digest[:8], "big"))
        self._sizes_bytes.append(size_bytes)
        self.text_bytes += size_bytes
        if document.held_out:
            self.held_out_documents += 1
            self.held_out_bytes += size_bytes
        self._lowest, self._highest = min(self._lowest, digest), max(self._highest, digest)
        return size_bytes

    def sizes_bytes(self) -> npt.NDArray[np.uint64]:
        """Return the sizes of all texts, in order."""
        return np.frombuffer(self._sizes_bytes, np.uint64)

    def repeats(self) -> npt.NDArray[np.bool_]:
        """Return True for each text that is equal to an earlier one."""
        _, firsts = np.unique(np.frombuffer(self._digests, np.uint64), return_index=True)
        flags = np.ones(self.documents, np.bool_)
        flags[firsts] = False
        return flags

    def facts(self) -> CorpusStats:
        """Return the statistics of all documents so far."""
        repeated = self.repeats()
        return CorpusStats(
            documents=self.documents,
            text_bytes=self.text_bytes,
            fingerprint=self._fingerprint.hexdigest(),
            lowest_digest=self._lowest,
            highest_digest=self._highest,
            held_out_documents=self.held_out_documents,
            held_out_bytes=self.held_out_bytes,
            repeated_documents=int(repeated.sum()),
            repeated_bytes=int(self.sizes_bytes()[repeated].sum()),
            length_bytes=self._lengths(),
        )

    def _lengths(self) -> tuple[int, ...]:
        if not self._sizes_bytes:
            return ()
        found = np.quantile(self.sizes_bytes(), LENGTH_SHARES, method="inverted_cdf")
        return tuple(int(size) for size in found)
