"""Dropping documents from a corpus: filters, copies and near copies. No text is changed.

One pass decides; the result is a bit a document. Memory during the pass: for exact copies about 100
bytes a document that is kept, for near copies 512 more, so about 0.6 GB a million documents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from llmtrain.data.corpus import Corpus
from llmtrain.data.document import Document
from llmtrain.data.quality.dropped import DropCount, DroppedDocuments
from llmtrain.data.quality.filters import Filter
from llmtrain.data.quality.minhash import MinHasher, require_minhash
from llmtrain.data.quality.near_duplicates import repeats
from llmtrain.errors import DataError
from llmtrain.profile.schema import Duplicates

EXACT = "equal to an earlier document"
NEAR_COPY = "near copy of an earlier document"
_DIGEST_BYTES = 16  # of 32; two of 10^12 texts are equal in them with a chance of 10^-15


@dataclass(frozen=True, slots=True)
class Cleaned:
    """The remaining corpus, and the dropped documents by reason, in the order of the rules."""

    corpus: Corpus
    left_out: tuple[DropCount, ...]


def clean(
    corpus: Corpus,
    filters: Sequence[Filter],
    duplicates: Duplicates,
    check_stop: Callable[[], None],
) -> Cleaned:
    """Return the corpus without the documents that the rules drop; it is not read without rules.

    A document is dropped by the first rule that it breaks, and of copies the first is kept. Raises
    DataError if nothing is left, UsageError if a library is missing.
    """
    if not filters and duplicates == "keep":
        return Cleaned(corpus, ())
    pass_ = _Pass(filters, duplicates)
    for document in corpus.documents():
        check_stop()
        pass_.decide(document)
    if pass_.signer is not None:
        pass_.decide_near(pass_.signer, corpus, check_stop)
    tallies = tuple(tally for tally in pass_.tallies if tally.documents)
    if pass_.is_dropped and all(pass_.is_dropped):
        reasons = "; ".join(f"{tally.documents} {tally.reason}" for tally in tallies)
        raise DataError(
            f"data.filters leave out every document: {reasons}",
            hint="llmtrain data inspect shows lengths, languages and samples",
        )
    return Cleaned(replace(corpus, dropped=pass_.dropped()), tallies)


class _Pass:
    """The decisions of one pass over a corpus."""

    def __init__(self, filters: Sequence[Filter], duplicates: Duplicates) -> None:
        self.is_dropped = bytearray()
        self.characters = 0
        self.signer: MinHasher | None = None
        if duplicates == "drop_near":
            require_minhash("data.duplicates=drop_near")
            self.signer = MinHasher()
        self._filters = [(each, DropCount(each.reason)) for each in filters]
        self._exact = DropCount(EXACT)
        self._near = DropCount(NEAR_COPY)
        self._seen: set[bytes] | None = None if duplicates == "keep" else set()

    @property
    def tallies(self) -> list[DropCount]:
        """The counts, one per rule, in the order in which the rules are applied."""
        return [*(tally for _, tally in self._filters), self._exact, self._near]

    def decide(self, document: Document) -> None:
        """Decide by all rules except near copies."""
        tally = self._reason(document)
        self.is_dropped.append(tally is not None)
        self.characters += len(document.text)
        if tally is not None:
            tally.add(document)
        elif self.signer is not None:
            self.signer.add(document.text)

    def _reason(self, document: Document) -> DropCount | None:
        for each, tally in self._filters:
            if each.drops(document):
                return tally
        if self._seen is None:
            return None
        digest = document.digest()[:_DIGEST_BYTES]
        if digest in self._seen:
            return self._exact
        self._seen.add(digest)
        return None

    def decide_near(
        self, signer: MinHasher, corpus: Corpus, check_stop: Callable[[], None]
    ) -> None:
        """Drop near copies too. Reads the corpus again, to count them."""
        self._seen = None
        flags = repeats(signer.signatures(), check_stop).tolist()
        kept = [place for place, is_dropped in enumerate(self.is_dropped) if not is_dropped]
        for document, flag in zip(self.dropped().filter(corpus.documents()), flags, strict=True):
            check_stop()
            if flag:
                self._near.add(document)
        for place, flag in zip(kept, flags, strict=True):
            self.is_dropped[place] = flag

    def dropped(self) -> DroppedDocuments:
        """Return the decisions so far."""
        bits = np.packbits(np.frombuffer(self.is_dropped, np.uint8), bitorder="little").tobytes()
        return DroppedDocuments(len(self.is_dropped), self.characters, bits)
