"""How much a loss depends on the text it is measured on: bootstrap over documents.

1. A validation text is a sample. Another one of the same size and kind would give another loss; the
   interval says how far off.
2. Whole documents are drawn with replacement, and the loss is that of all drawn together: a ratio
   of sums, as bits per byte are. Tokens of a document depend on each other, documents do not.
3. Where there are few documents, or a few hold most of the text, contiguous blocks of it are drawn
   instead (Künsch 1989). `unit` says which.
4. The ends are percentiles of 2,000 draws, expanded for a small number of units (Hesterberg 2015,
   "What Teachers Should Know About the Bootstrap", section 5.3); units of unequal size count as
   fewer.
5. Two models are compared on the same draws: what makes a text hard for both cancels.

None of this knows how much a second training by another seed would differ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from llmtrain.eval.segments import SegmentLosses, aligned
from llmtrain.eval.student import student_quantile

Unit = Literal["document", "block"]
LEVEL = 0.95  # that of `student_quantile`
_DRAWS = 2000
_FEWEST_DOCUMENTS = 30  # in effect: as many of equal size would be as good
_BLOCKS = 100
_MOST_UNITS = 5000
_DRAWN_AT_ONCE = 2_000_000  # counts in memory


@dataclass(frozen=True, slots=True)
class Interval:
    """A confidence interval in bits per byte, and what was drawn for it."""

    low: float
    high: float
    level: float
    unit: Unit
    units: int

    @property
    def contains_zero(self) -> bool:
        """True unless both ends are on the same side of 0."""
        return self.low <= 0 <= self.high


@dataclass(frozen=True, slots=True)
class Difference:
    """Bits per byte of a model less those of another, on the same text."""

    bits_per_byte: float
    interval: Interval

    @property
    def is_seen(self) -> bool:
        """True if the interval leaves out 0."""
        return math.isfinite(self.bits_per_byte) and not self.interval.contains_zero


def bits_per_byte_interval(losses: SegmentLosses) -> Interval:
    """Return the confidence interval of the bits per byte of a text."""
    unit, starts = _units(losses)
    nats, sizes = (np.add.reduceat(v, starts) for v in (losses.nats, losses.bytes))
    return _interval(nats / math.log(2), sizes, unit)


def paired_difference(first: SegmentLosses, second: SegmentLosses) -> Difference:
    """Return how much more bits per byte the second model needs than the first."""
    one, other = aligned((first, second))
    unit, starts = _units(one)
    sizes = np.add.reduceat(one.bytes, starts)
    bits = [np.add.reduceat(each.nats, starts) / math.log(2) for each in (one, other)]
    difference = bits[1] - bits[0]
    total = float(difference.sum() / sizes.sum())
    return Difference(total, _interval(difference, sizes, unit))


def _units(losses: SegmentLosses) -> tuple[Unit, NDArray[np.int64]]:
    """Return what is drawn, and the first segment of each unit."""
    firsts = np.concatenate([[0], np.flatnonzero(np.diff(losses.documents)) + 1])
    if _effective_number(np.add.reduceat(losses.bytes, firsts)) >= _FEWEST_DOCUMENTS:
        return "document", firsts[_evenly(len(firsts), _MOST_UNITS)]
    return "block", _evenly(len(losses), _BLOCKS)


def _effective_number(sizes: NDArray[np.int64]) -> float:
    """Return how many units of equal size would vary as little (Kish 1965)."""
    weights = sizes.astype(np.float64)
    return float(weights.sum() ** 2 / max(1.0, (weights**2).sum()))


def _evenly(length: int, most: int) -> NDArray[np.int64]:
    """Return at most `most` evenly spaced positions from 0 on; neighbours are one unit."""
    count = min(length, most)
    return np.arange(count) * length // count


def _interval(bits: NDArray[np.float64], sizes: NDArray[np.int64], unit: Unit) -> Interval:
    if len(bits) < 2 or not np.isfinite(bits).all():
        return Interval(math.nan, math.nan, LEVEL, unit, len(bits))
    drawn = _drawn_ratios(bits, sizes)
    share = _expanded_share(max(2.0, _effective_number(sizes)))
    low, high = np.quantile(drawn, [share, 1 - share])
    return Interval(float(low), float(high), LEVEL, unit, len(bits))


def _drawn_ratios(bits: NDArray[np.float64], sizes: NDArray[np.int64]) -> NDArray[np.float64]:
    units = len(bits)
    generator, ratios = np.random.default_rng(0), []
    at_once = max(1, _DRAWN_AT_ONCE // units)
    for start in range(0, _DRAWS, at_once):
        draws = min(at_once, _DRAWS - start)
        counts = generator.multinomial(units, np.full(units, 1 / units), size=draws)
        ratios.append((counts @ bits) / np.maximum(1, counts @ sizes))
    return np.concatenate(ratios)


def _expanded_share(units: float) -> float:
    """Return the share of draws below the interval, so that few units do not make it too narrow."""
    tail = math.sqrt(units / (units - 1)) * student_quantile(units - 1)
    return NormalDist().cdf(-tail)
