"""Deterministic weighted interleaving of several sources.

Of any N positions the first source has

    ⌊N·w/W + 1/2⌋

where w is its weight and W the sum of all weights. The others share the rest in the same way, each
with the W of itself and those after it, and the last has the remainder. Such a count grows by 0 or
1 with N, so a position belongs to one source and is its
n-th: this is computed, not sampled, and needs no state. What N positions hold of
a source differs from its share of N by at most half the number of sources, for every N.

The n-th window of a source is the n-th of an order of its own, as if there were no other source:
every window comes once before any comes again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from math import lcm

import numpy as np

from llmtrain.data.batches.windows import Tokens, WindowReader, Windows
from llmtrain.data.corpus import Corpus
from llmtrain.data.shards.token_stream import TokenArray
from llmtrain.data.split import Split
from llmtrain.errors import DataError

_SCANNED_TOKENS = 1 << 20


@dataclass(frozen=True, slots=True)
class MixedSource:
    """A source, its weight in the mixture, and its range of tokens in the training stream.

    The tokens begin with a separator and end with the one after its last document, with which the
    next source begins.
    """

    spec: str
    weight: float
    first_token: int
    tokens: int


class Interleaving:
    """The assignment of positions to sources by weight, evenly and exactly: see the module."""

    def __init__(self, weights: Sequence[float]) -> None:
        exact = [Fraction(repr(weight)) for weight in weights]  # 0.1 is a tenth
        scale = lcm(*(weight.denominator for weight in exact))
        self._weights = [int(weight * scale) for weight in exact]
        self._sums = list(accumulate(reversed(self._weights)))[::-1]

    def locate(self, position: int) -> tuple[int, int]:
        """Return the source at `position`, and how many positions before were its own."""
        for source, (weight, of_all) in enumerate(zip(self._weights, self._sums, strict=True)):
            before = _rounded_share(position, weight, of_all)
            if _rounded_share(position + 1, weight, of_all) > before:
                return source, before
            position -= before
        raise AssertionError("the last source has all that the others leave")


def _rounded_share(count: int, weight: int, of_all: int) -> int:
    return (2 * count * weight + of_all) // (2 * of_all)


class TokenRange:
    """A contiguous part of a stream, as a stream of its own."""

    def __init__(self, stream: Tokens, first_token: int, num_tokens: int) -> None:
        """Raise DataError if the stream does not have that part."""
        if first_token < 0 or num_tokens < 0 or first_token + num_tokens > stream.num_tokens:
            raise DataError(
                f"a source has the tokens from {first_token} to {first_token + num_tokens}, and "
                f"there are {stream.num_tokens} in all",
                hint="run.yaml was changed; start a new run",
            )
        self._stream = stream
        self.first_token = first_token
        self.num_tokens = num_tokens

    def read(self, start: int, count: int) -> TokenArray:
        """Return `count` ids from `start` of this part on. Raises IndexError beyond either end."""
        if start < 0 or count < 0 or start + count > self.num_tokens:
            raise IndexError(f"tokens {start}..{start + count} of {self.num_tokens}")
        return self._stream.read(self.first_token + start, count)


class MixedBatches:
    """Windows of several sources, determined by the position alone, as in BatchReader."""

    def __init__(
        self,
        stream: Tokens,
        sources: Sequence[MixedSource],
        seed: int,
        reader_of: Callable[[Tokens, int], WindowReader],
    ) -> None:
        """Make a reader of each source with `reader_of`, each with its own seed.

        Raises DataError for a source that is shorter than a window.
        """
        self._specs = [source.spec for source in sources]
        self._interleaving = Interleaving([source.weight for source in sources])
        self._readers = [
            _reader(stream, source, _own_seed(seed, index), reader_of)
            for index, source in enumerate(sources)
        ]
        # An epoch is as many windows as all sources have together, whichever it has.
        self.num_windows = sum(reader.num_windows for reader in self._readers)

    def read(self, first_position: int, count: int) -> Windows:
        """Return the arrays of `count` windows, each of shape (count, context)."""
        turns = map(self._interleaving.locate, range(first_position, first_position + count))
        rows = [self._readers[source].read(turn, 1) for source, turn in turns]
        return tuple(np.concatenate(arrays) for arrays in zip(*rows, strict=True))

    def place(self, position: int) -> str:
        """Return a description, for messages, of where in the text the window at `position` is."""
        source, turn = self._interleaving.locate(position)
        return f"{self._specs[source]}: {self._readers[source].place(turn)}"

    def count_targets(self, first_position: int, count: int) -> int:
        """Return the number of targets in that many windows."""
        turns = map(self._interleaving.locate, range(first_position, first_position + count))
        return sum(self._readers[source].count_targets(turn, 1) for source, turn in turns)


def _reader(
    stream: Tokens,
    source: MixedSource,
    seed: int,
    reader_of: Callable[[Tokens, int], WindowReader],
) -> WindowReader:
    tokens = TokenRange(stream, source.first_token, source.tokens)
    try:
        return reader_of(tokens, seed)
    except DataError as error:
        raise DataError(f"{source.spec}: {error.message}", hint=error.hint) from None


def _own_seed(seed: int, source: int) -> int:
    """Return a seed per source, so that sources of equal length are in different orders."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{source}".encode()).digest()[:8], "big")


def locate_sources(
    corpus: Corpus, split: Split, train: Tokens, separator_id: int, weights: Sequence[float]
) -> tuple[MixedSource, ...]:
    """Return each source of `corpus` with its range of tokens.

    Reads the text again, because tokens do not record their source. Raises DataError
    for a source that has no text to train on.
    """
    firsts = _first_pieces(corpus, split)
    starts = _nth_separators(train, separator_id, firsts)
    found = []
    for index, (source, weight) in enumerate(zip(corpus.sources, weights, strict=True)):
        if firsts[index] == firsts[index + 1]:
            raise DataError(
                f"{source.spec} has a weight and no text to train on: it is empty, held out, or "
                "what an earlier source has already",
                hint="leave it out of data.sources",
            )
        tokens = starts[index + 1] - starts[index] + 1
        found.append(MixedSource(source.spec, weight, starts[index], tokens))
    return tuple(found)


def _first_pieces(corpus: Corpus, split: Split) -> list[int]:
    """Return the number of training pieces before each source, and in all."""
    firsts: list[int] = []
    pieces = 0

    def source_begins() -> None:
        firsts.append(pieces)

    for piece in split.assign(corpus.documents(source_begins)):
        pieces += piece.side == "train"
    return [*firsts, pieces]


def _nth_separators(stream: Tokens, separator_id: int, ordinals: Sequence[int]) -> list[int]:
    """Return the positions of the separators with these ascending numbers, counted from 0.

    Raises DataError if the last one does not end the stream.
    """
    found: list[int] = []
    seen = 0
    for start in range(0, stream.num_tokens, _SCANNED_TOKENS):
        ids = stream.read(start, min(_SCANNED_TOKENS, stream.num_tokens - start))
        places = np.flatnonzero(ids == separator_id)
        while len(found) < len(ordinals) and ordinals[len(found)] < seen + len(places):
            found.append(start + int(places[ordinals[len(found)] - seen]))
        seen += len(places)
    if len(found) < len(ordinals) or found[-1] != stream.num_tokens - 1:
        raise DataError("the text changed while it was being read", hint="run the command again")
    return found
