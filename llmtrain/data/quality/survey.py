"""Statistics of documents in one pass: lengths, copies, languages, tokens and examples.

Memory is bounded, apart from 16 bytes a document, and 512 more to find near copies."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llmtrain.data.corpus import Corpus
from llmtrain.data.corpus_stats import CorpusStats, CorpusStatsBuilder
from llmtrain.data.document import Document
from llmtrain.data.quality.languages import LanguageDetector
from llmtrain.data.quality.minhash import MinHasher
from llmtrain.data.quality.near_duplicates import repeats
from llmtrain.data.shards.encode import TextEncoder
from llmtrain.data.split import cut_at_line_ends

_SEED = 20_240_601  # arbitrary, but it must never change
_DRAWN = 1000  # documents whose languages are detected; some of them are examples
_DRAWN_CHARACTERS = 4000  # of each
_BATCH_BYTES = 2 << 20  # ids take many times the text


@dataclass(frozen=True, slots=True)
class LengthBin:
    """A bin of the histogram: documents of at least so many bytes, and fewer than twice as many."""

    from_bytes: int
    documents: int
    text_bytes: int


@dataclass(frozen=True, slots=True)
class Copies:
    """Documents that repeat an earlier one, and the bytes of their text."""

    documents: int
    text_bytes: int


@dataclass(frozen=True, slots=True)
class SampledDocument:
    """A document of the random sample."""

    origin: str
    beginning: str
    text_bytes: int


@dataclass(frozen=True, slots=True)
class Survey:
    """The statistics of the documents."""

    facts: CorpusStats
    characters: int
    lengths: tuple[LengthBin, ...]  # without gaps, the shortest first
    longest: SampledDocument
    equal: Copies
    near: Copies | None  # without the equal ones; None: not counted
    tokens: int | None  # with a separator a document; None: not counted
    drawn: tuple[SampledDocument, ...]  # in no order
    languages: dict[str, int] | None  # of the sample, the most frequent first


def survey(
    corpus: Corpus,
    *,
    encoder: TextEncoder | None,
    threads: int,
    minhasher: MinHasher | None,
    detector: LanguageDetector | None,
    check_stop: Callable[[], None],
) -> Survey:
    """Survey the corpus in one pass; None disables a measure. Raises DataError without text."""
    stats, reservoir = CorpusStatsBuilder(), _Reservoir()
    counter = _TokenCounter(encoder, threads) if encoder is not None else None
    characters, longest = 0, SampledDocument("", "", 0)
    for document in corpus.documents():
        check_stop()
        size_bytes = stats.add(document)
        characters += len(document.text)
        if size_bytes > longest.text_bytes:
            longest = _beginning_of(document, size_bytes)
        reservoir.add(document, size_bytes)
        if counter is not None:
            counter.add(document.text)
        if minhasher is not None:
            minhasher.add(document.text)
    facts = corpus.facts(stats)
    languages = (
        Counter(detector.language(d.beginning) for d in reservoir.drawn) if detector else None
    )
    return Survey(
        facts=facts,
        characters=characters,
        lengths=_lengths(stats.sizes_bytes()),
        longest=longest,
        equal=Copies(facts.repeated_documents, facts.repeated_bytes),
        near=_near(stats, minhasher, check_stop) if minhasher is not None else None,
        tokens=counter.total() if counter is not None else None,
        drawn=tuple(reservoir.drawn),
        languages=dict(languages.most_common()) if languages is not None else None,
    )


def _near(
    stats: CorpusStatsBuilder, minhasher: MinHasher, check_stop: Callable[[], None]
) -> Copies:
    flags = repeats(minhasher.signatures(), check_stop) & ~stats.repeats()
    return Copies(int(flags.sum()), int(stats.sizes_bytes()[flags].sum()))


def _lengths(sizes_bytes: npt.NDArray[np.uint64]) -> tuple[LengthBin, ...]:
    """Return the histogram of the sizes, none of them 0, in bins of doubling width."""
    _, bits = np.frexp(sizes_bytes.astype(np.float64))  # so many bits has the integer
    documents, text_bytes = np.bincount(bits), np.bincount(bits, sizes_bytes)
    every = range(int(bits.min()), len(documents))
    return tuple(LengthBin(1 << (n - 1), int(documents[n]), int(text_bytes[n])) for n in every)


class _Reservoir:
    """A uniform random sample of the documents (Vitter 1985, algorithm R)."""

    def __init__(self) -> None:
        self.drawn: list[SampledDocument] = []
        self._random = random.Random(_SEED)
        self._seen = 0

    def add(self, document: Document, size_bytes: int) -> None:
        self._seen += 1
        if len(self.drawn) < _DRAWN:
            self.drawn.append(_beginning_of(document, size_bytes))
            return
        place = self._random.randrange(self._seen)
        if place < _DRAWN:
            self.drawn[place] = _beginning_of(document, size_bytes)


def _beginning_of(document: Document, size_bytes: int) -> SampledDocument:
    return SampledDocument(document.origin, document.text[:_DRAWN_CHARACTERS], size_bytes)


class _TokenCounter:
    """A counter of tokens that encodes a batch at a time, without keeping it."""

    def __init__(self, encoder: TextEncoder, threads: int) -> None:
        self._encoder = encoder
        self._threads = threads
        self._tokens = 0
        self._batch: list[str] = []
        self._room_bytes = _BATCH_BYTES

    def add(self, text: str) -> None:
        self._tokens += 1 if self._encoder.end_id is None else 2  # what begins and ends it
        for part in cut_at_line_ends(text.encode(), _BATCH_BYTES, 2 * _BATCH_BYTES):
            self._batch.append(part.decode())
            self._room_bytes -= len(part)
            if self._room_bytes <= 0:
                self._count(self._batch)

    def total(self) -> int:
        self._count(self._batch)
        return self._tokens

    def _count(self, texts: Sequence[str]) -> None:
        self._tokens += sum(map(len, self._encoder.encode_batch(texts, self._threads)))
        self._batch, self._room_bytes = [], _BATCH_BYTES
