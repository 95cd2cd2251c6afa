"""How much of the held-out text also occurs in the training text.

Looked for among whole documents, or among the blocks into which few documents are split. Of a large
corpus in a sample of both sides, chosen by digest, which takes at most 110 MB: a copy is then found
as often as its original is in the sample, and the count is scaled up by that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

from llmtrain.data.corpus import Corpus
from llmtrain.data.corpus_stats import CorpusStats
from llmtrain.data.quality.minhash import MinHasher
from llmtrain.data.quality.near_duplicates import Flags, copied_from
from llmtrain.data.reading import Document
from llmtrain.data.split import BlockSplit, GivenSplit, Side, Split, cut_at_line_ends, plan_split

_MOST_UNITS = 100_000  # of a side that are compared
_MOST_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Leakage:
    """Held-out documents or blocks that are near copies of what is trained on, equal ones too."""

    units: Literal["documents", "blocks"]
    held_out: int  # that were compared
    copies: int  # of those, that a copy was found of
    train_share: float  # of what is trained on, that they were compared with

    @property
    def share(self) -> float:
        """Of what is held out, 0 to 1: an estimate where not all was compared."""
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
    """Yield what is compared: documents, or blocks of equal size where documents are cut.

    A copy is cut elsewhere than its original. Train is cut twice, half a block apart, so that some
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
