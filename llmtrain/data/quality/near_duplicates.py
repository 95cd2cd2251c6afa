"""Find near-duplicate texts by their MinHash signatures.

Texts that agree in all places of a band of their signatures are compared (locality-sensitive
hashing; Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets", chapter 3). Of 64 bands of 4
places, texts of similarity s share one with the probability 1 - (1 - s^4)^64: 99% for s = 0.52,
87% for 0.42, 0.6% for 0.1. Texts that share a band are near copies only if their whole signatures
are similar.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from operator import itemgetter
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from llmtrain.data.quality.minhash import PLACES, Signatures

# Texts of at least this similarity are near copies. If 5% of its characters changed, a text has
# 0.5 with the original, a little less if shingles repeat; the estimate errs by 0.03.
NEAR = 0.42
_BAND_PLACES = 4  # 16 bits each: a band is a 64-bit number
_BANDS = PLACES // _BAND_PLACES
_AT_ONCE = 512  # signatures that one is compared with in one go

Flags: TypeAlias = npt.NDArray[np.bool_]


def repeats(signatures: Signatures, check_stop: Callable[[], None]) -> Flags:
    """Return True for each near copy of an earlier text that is not flagged itself.

    So every flagged text has a similar unflagged one, and of a chain of small changes not all but
    the first text are flagged.
    """
    flags = np.zeros(len(signatures), np.bool_)
    kept: dict[int, list[int]] = defaultdict(list)  # unflagged texts by bucket
    for text, buckets in _buckets_by_text(signatures):
        check_stop()
        if _any_near(signatures, text, (kept[bucket] for bucket in buckets)):
            flags[text] = True
        else:
            for bucket in buckets:
                kept[bucket].append(text)
    return flags


def copied_from(signatures: Signatures, is_source: Flags, check_stop: Callable[[], None]) -> Flags:
    """Return True for each text outside the sources that is a near copy of one of them."""
    flags = np.zeros(len(signatures), np.bool_)
    sources: dict[int, list[int]] = defaultdict(list)
    rest = []
    for text, buckets in _buckets_by_text(signatures):
        if is_source[text]:
            for bucket in buckets:
                sources[bucket].append(text)
        else:
            rest.append((text, buckets))
    for text, buckets in rest:
        check_stop()
        flags[text] = _any_near(signatures, text, (sources[bucket] for bucket in buckets))
    return flags


def _buckets_by_text(signatures: Signatures) -> Iterator[tuple[int, list[int]]]:
    """Yield, in order, each text that shares buckets with others, and those buckets.

    A bucket is known by the number of its band and its first text.
    """
    bands = np.ascontiguousarray(signatures).view(np.uint64)  # (texts, _BANDS)
    pairs = [_shared(bands[:, band], band) for band in range(_BANDS)]
    texts, buckets = (np.concatenate(column) for column in zip(*pairs, strict=True))
    order = np.argsort(texts, kind="stable")
    pairs_in_order = zip(texts[order].tolist(), buckets[order].tolist(), strict=True)
    for text, mine in groupby(pairs_in_order, key=itemgetter(0)):
        yield text, [bucket for _, bucket in mine]


def _shared(keys: npt.NDArray[np.uint64], band: int) -> tuple[npt.NDArray[np.int64], ...]:
    """Return the texts that share their key with another, and the bucket of each."""
    _, firsts, inverse, counts = np.unique(
        keys, return_index=True, return_inverse=True, return_counts=True
    )
    texts = np.flatnonzero(counts[inverse] > 1)
    return texts, firsts[inverse[texts]] * _BANDS + band


def _any_near(signatures: Signatures, text: int, buckets: Iterable[list[int]]) -> bool:
    """Return whether any text in the buckets is a near copy. Stops at the first."""
    compared: set[int] = set()
    for bucket in buckets:
        for start in range(0, len(bucket), _AT_ONCE):
            some = [o for o in bucket[start : start + _AT_ONCE] if o not in compared]
            if some and (signatures[some] == signatures[text]).mean(axis=1).max() >= NEAR:
                return True
            compared.update(some)
    return False
