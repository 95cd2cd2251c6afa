"""The split into training and held-out text: a pure function of the text and the fraction."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from llmtrain.data.corpus import Corpus
from llmtrain.data.corpus_stats import CorpusStats
from llmtrain.data.document import Document
from llmtrain.errors import DataError, UsageError
from llmtrain.units import counted

Side = Literal["train", "validation"]
BLOCKS = 100
_DIGEST_VALUES = 2**256


@dataclass(frozen=True, slots=True)
class SplitPart:
    """A document, or a contiguous part of one, with its side of the split."""

    side: Side
    document: Document


@dataclass(frozen=True, slots=True)
class DocumentSplit:
    """A split by document: held out if its sha256, read as a number, is below a threshold.

    Equal documents are on the same side, the order does not matter, and a larger fraction holds out
    all documents that a smaller one does, and more.
    """

    held_out_below: int

    def assign(self, documents: Iterable[Document]) -> Iterator[SplitPart]:
        """Yield every document, whole, with its side."""
        for document in documents:
            held_out = _number(document.digest()) < self.held_out_below
            yield SplitPart("validation" if held_out else "train", document)


@dataclass(frozen=True, slots=True)
class BlockSplit:
    """A split of few documents: about 100 blocks cut at line ends, every n-th of them held out.

    The `held_out` blocks are evenly spaced over all of the text, beginning half a distance in, so
    that they represent each part of it. Neighbours on the same side stay one piece: a document is
    cut no more often than necessary.
    """

    block_bytes: int
    longest_bytes: int
    blocks: int
    held_out: int

    def assign(self, documents: Iterable[Document]) -> Iterator[SplitPart]:
        """Yield every document in contiguous pieces that alternate between sides."""
        first_block = 0
        for document in documents:
            blocks = list(_blocks(document, self.block_bytes, self.longest_bytes))
            yield from self._pieces(document, blocks, first_block)
            first_block += len(blocks)

    def _pieces(
        self, document: Document, blocks: list[bytes], first_block: int
    ) -> Iterator[SplitPart]:
        offset = 0
        numbered = enumerate(blocks, start=first_block)
        for side, group in groupby(numbered, key=lambda pair: self._side(pair[0])):
            data = b"".join(block for _, block in group)
            yield SplitPart(side, Document(data.decode(), document.place(offset)))
            offset += len(data)

    def _side(self, block: int) -> Side:
        """Return validation if the running sum of `held_out / blocks` passes a half here."""
        half = self.blocks // 2
        before = (block * self.held_out + half) // self.blocks
        after = ((block + 1) * self.held_out + half) // self.blocks
        return "validation" if after > before else "train"


@dataclass(frozen=True, slots=True)
class GivenSplit:
    """A split that holds out exactly the documents of sources for validation."""

    def assign(self, documents: Iterable[Document]) -> Iterator[SplitPart]:
        """Yield every document, whole, with its side."""
        for document in documents:
            yield SplitPart("validation" if document.held_out else "train", document)


Split = DocumentSplit | BlockSplit | GivenSplit


def plan_split(corpus: Corpus, stats: CorpusStats, fraction: float) -> Split:
    """Return the split that holds out about `fraction` of the corpus; no side is empty.

    If the corpus has validation text of its own, exactly that is held out. Else from 100
    documents on, by document: the expected share of documents is the fraction.
    Under 100 documents, or if all are equal, by block: ⌈fraction × blocks⌉ are held out;
    conversations are never cut. Raises DataError if the text is a single character, or if all
    conversations are equal.
    """
    if not 0 < fraction < 1:
        message = f"data.validation_fraction is {fraction}; it has to be above 0 and below 1"
        raise UsageError(message, hint="--set data.validation_fraction=0.05")
    if corpus.has_validation:
        return _given_split(stats)
    if stats.documents >= BLOCKS and stats.lowest_digest != stats.highest_digest:
        return _document_split(stats, fraction)
    if corpus.options.rows != "text":
        return _conversation_split(stats, fraction)
    return _block_split(corpus, stats, fraction)


def _given_split(stats: CorpusStats) -> GivenSplit:
    if not stats.held_out_documents:
        raise DataError("the validation text is empty", hint="--set data.validation=FILE")
    if stats.held_out_documents == stats.documents:
        raise DataError(
            "there is no text to train on: all of it is validation text, or equal to it",
            hint="name other text with --data",
        )
    return GivenSplit()


def _conversation_split(stats: CorpusStats, fraction: float) -> DocumentSplit:
    """Return the split of few conversations. Raises DataError if there is only one."""
    if stats.lowest_digest == stats.highest_digest:
        raise DataError(
            "there is only one conversation, or all are equal, so none can be held back",
            hint="add rows with --data, or name others to validate on: --set data.validation=FILE",
        )
    return _document_split(stats, fraction)


def _document_split(stats: CorpusStats, fraction: float) -> DocumentSplit:
    """Return a threshold between the lowest and the highest digest, so no side is empty."""
    lowest, highest = _number(stats.lowest_digest), _number(stats.highest_digest)
    return DocumentSplit(min(max(int(fraction * _DIGEST_VALUES), lowest + 1), highest))


def _block_split(corpus: Corpus, stats: CorpusStats, fraction: float) -> BlockSplit:
    block_bytes = math.ceil(stats.text_bytes / BLOCKS)
    longest_bytes = max(block_bytes, stats.text_bytes // 10)
    documents = corpus.documents()
    blocks = sum(1 for each in documents for _ in _blocks(each, block_bytes, longest_bytes))
    if blocks < 2:
        message = (
            f"{counted(stats.text_bytes, 'byte')} of text cannot be split into train and validation"
        )
        raise DataError(message, hint="add text with --data")
    held_out = min(math.ceil(fraction * blocks), blocks - 1)
    return BlockSplit(block_bytes, longest_bytes, blocks, held_out)


def _blocks(document: Document, block_bytes: int, longest_bytes: int) -> Iterator[bytes]:
    data = document.text.encode()
    if document.part_at is not None:
        # Of equal size: a short rest at the end of every part would be held out always or never.
        block_bytes = math.ceil(len(data) / max(1, round(len(data) / block_bytes)))
    return cut_at_line_ends(data, block_bytes, max(block_bytes, longest_bytes))


def cut_at_line_ends(data: bytes, target_bytes: int, longest_bytes: int) -> Iterator[bytes]:
    """Yield contiguous pieces that join to `data`, each of `target_bytes` or a little more.

    A piece ends at the first line end after that. If there is none before `longest_bytes`
    (at least `target_bytes`), it ends between two characters. Only the last piece may be shorter.
    """
    start = 0
    while start < len(data):
        end = data.find(b"\n", start + target_bytes - 1, start + longest_bytes) + 1
        if not end:
            is_last = len(data) - start <= longest_bytes
            end = len(data) if is_last else _character_boundary(data, start + target_bytes)
        yield data[start:end]
        start = end


def _character_boundary(data: bytes, position: int) -> int:
    """Return the first place from `position` on where a character begins, or the end."""
    while position < len(data) and data[position] & 0xC0 == 0x80:
        position += 1
    return position


def _number(digest: bytes) -> int:
    return int.from_bytes(digest, "big")
