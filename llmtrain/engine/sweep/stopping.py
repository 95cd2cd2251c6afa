"""When a trial is hopeless: a rule on validation curves alone, so that it can be replayed.

1. From a quarter of its run on, a trial is compared with the best of the trials that are done, at
   the same number of tokens.
2. It is stopped if its bits per byte are more than 5% above. At least three trials have to be done.

The risk: a setting that starts slowly and wins late is lost if it is that far behind. In three
recorded sweeps (tests/engine/sweep/test_stopping.py) the eventual best was at most 2.9% behind
after a quarter of the tokens, and what the rule stops ended at least 0.5% worse
(docs/guides/experiments.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MARGIN = 0.05
FROM_SHARE = 0.25
FEWEST_DONE = 3


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """An evaluation: the share of the run that was over, tokens by then, and bits per byte."""

    share: float
    tokens: float
    bits_per_byte: float


@dataclass(frozen=True, slots=True)
class Hopeless:
    """The evaluation at which a trial is stopped, and why."""

    index: int
    reason: str


def first_hopeless(
    curve: Sequence[CurvePoint], done: Sequence[Sequence[CurvePoint]]
) -> Hopeless | None:
    """Return the first evaluation at which the trial is hopeless beside those that are done."""
    if len(done) < FEWEST_DONE:
        return None
    for index, point in enumerate(curve):
        if point.share < FROM_SHARE or point.share >= 1:
            continue
        others = [bits for each in done if (bits := _at(each, point.tokens)) is not None]
        if len(others) < FEWEST_DONE:
            continue
        best = min(others)
        if not point.bits_per_byte <= best * (1 + MARGIN):
            return Hopeless(
                index,
                f"{point.bits_per_byte:.4f} bits per byte at {point.share:.0%} of the run, more "
                f"than {MARGIN:.0%} above the best, {best:.4f}",
            )
    return None


def _at(curve: Sequence[CurvePoint], tokens: float) -> float | None:
    """Return a curve's value at a number of tokens; None outside of it."""
    known = [point for point in curve if math.isfinite(point.bits_per_byte)]
    if not known or not known[0].tokens <= tokens <= known[-1].tokens:
        return None
    return float(np.interp(tokens, [p.tokens for p in known], [p.bits_per_byte for p in known]))
