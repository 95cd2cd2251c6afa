"""The share of the held-out text that also occurs in the training text.

Whole documents are compared, or the blocks into which few documents are split. Of a large
corpus, a sample of each side is compared, chosen by digest, in at most 110 MB: a copy is then found
only if its original is in the sample, so the count is divided by the sampled share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

from llmtrain.data.corpus import Corpus
from llmtrain.data.corpus_stats import CorpusStats
from llmtrain.data.document import Document
from llmtrain.data.quality.minhash import MinHasher
from llmtrain.data.quality.near_duplicates import Flags, copied_from
from llmtrain.data.split import BlockSplit, GivenSplit, Side, Split, cut_at_line_ends, plan_split

_MOST_UNITS = 100_000  # of a side that are compared
_MOST_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Leakage:
    """The count of held-out documents or blocks that are near or exact copies of training text."""

    units: Literal["documents", "blocks"]
    held_out: int  # that were compared
    copies: int  # of those, with a copy in the training text
    train_share: float  # of the training text, that they were compared with

    @property
    def share(self) -> float:
        """The leaked share of the held-out text, 0 to 1; of a sample, an estimate."""
        found = self.copies / max(1, self.held_out)
        return min(1.0, found / self.train_share)

    def document(self) -> dict[str, object]:
        """Return the same, ready for JSON."""
        return {**asdict(self), "share": self.share}


def find_leakage(
    corpus: Corpus,
    stats: CorpusStats,
    validation_fraction: float,
    check_stop: Callable[[], None],
) -> Leakage:
    """Compare the two sides of the split. Reads all of the corpus; raises DataError."""
    split = plan_split(corpus, stats, validation_fraction)
    share = validation_fraction
    if isinstance(split, GivenSplit):
        share = stats.held_out_documents / stats.documents
    rates: dict[Side, float] = {
        "train": _rate(stats, 1 - share),
        "validation": _rate(stats, share),
    }
    minhasher, is_source = MinHasher(), []
    for side, unit in _units(split, corpus.documents()):
        check_stop()
        if _is_chosen(unit, rates[side]):
            minhasher.add(unit.text)
            is_source.append(side == "train")
    sources: Flags = np.array(is_source, np.bool_)
    copies = copied_from(minhasher.signatures(), sources, check_stop)
    return Leakage(
        units="blocks" if isinstance(split, BlockSplit) else "documents",
        held_out=int((~sources).sum()),
        copies=int(copies.sum()),
        train_share=rates["train"],
    )


def _rate(stats: CorpusStats, share: float) -> float:
    """Return the fraction to compare of a side that is `share` of the corpus."""
    return min(
        1.0,
        _MOST_UNITS / max(1.0, share * stats.documents),
        _MOST_BYTES / max(1.0, share * stats.text_bytes),
    )


def _is_chosen(unit: Document, rate: float) -> bool:
    """Return whether to compare `unit`, by the end of its digest (the split uses the beginning)."""
    return rate >= 1 or int.from_bytes(unit.digest()[-8:], "big") < rate * 2**64


def _units(split: Split, documents: Iterator[Document]) -> Iterator[tuple[Side, Document]]:
    """Yield the units of comparison: documents, or blocks of equal size if documents are cut.

    A copy is cut at other places than its original. Train is cut twice, half a block apart: some
    block of it has three quarters of the copy or more.
    """
    for piece in split.assign(documents):
        if not isinstance(split, BlockSplit):
            yield piece.side, piece.document
            continue
        data, origin = piece.document.text.encode(), piece.document.origin
        yield from ((piece.side, Document(b.decode(), origin)) for b in _blocks(split, data))
        if piece.side == "train":
            half = split.block_bytes // 2 + 1
            skipped = next(cut_at_line_ends(data, half, max(half, split.longest_bytes)))
            rest = data[len(skipped) :]
            yield from ((piece.side, Document(b.decode(), origin)) for b in _blocks(split, rest))


def _blocks(split: BlockSplit, data: bytes) -> Iterator[bytes]:
    return cut_at_line_ends(data, split.block_bytes, split.longest_bytes)
