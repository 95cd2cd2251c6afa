"""Curves of a run, thinned for a plot, and the events that are marked on them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from llmtrain.train.run_directory.history import RunHistory

_MOST_POINTS = 800
_SMOOTHED_SHARE = 0.02  # of all logged steps, in a running mean


@dataclass(frozen=True, slots=True)
class Curve:
    """Points of a line, with finite coordinates."""

    name: str
    xs: tuple[float, ...]
    ys: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Mark:
    """An event at a number of tokens."""

    kind: str  # resumed, skipped or rewound
    tokens: float


def curve(name: str, xs: Sequence[float], ys: Sequence[float]) -> Curve:
    """Return the curve through the finite points, thinned to at most 800.

    Of each bucket of neighbours the lowest and the highest point stay, so that no spike is lost.
    """
    points = [(x, y) for x, y in zip(xs, ys, strict=True) if math.isfinite(x) and math.isfinite(y)]
    if len(points) > _MOST_POINTS:
        buckets = _MOST_POINTS // 2
        bounds = [len(points) * i // buckets for i in range(buckets + 1)]
        kept = set[int]()
        for begin, end in pairwise(bounds):
            rows = range(begin, end)
            kept |= {min(rows, key=lambda i: points[i][1]), max(rows, key=lambda i: points[i][1])}
        points = [points[i] for i in sorted(kept | {0, len(points) - 1})]
    return Curve(name, tuple(x for x, _ in points), tuple(y for _, y in points))


def smoothed(values: Sequence[float]) -> list[float]:
    """Return a centred running mean over 2% of the values; what is not finite counts nothing."""
    found = np.asarray(values, dtype=np.float64)
    half = max(1, round(len(found) * _SMOOTHED_SHARE / 2))
    is_known = np.isfinite(found)
    sums, counts = (
        np.concatenate([[0.0], np.cumsum(each)])
        for each in (np.where(is_known, found, 0), is_known)
    )
    rows = np.arange(len(found))
    begins, ends = np.maximum(0, rows - half), np.minimum(len(found), rows + half + 1)
    with np.errstate(invalid="ignore"):
        mean = (sums[ends] - sums[begins]) / (counts[ends] - counts[begins])
    return [float(value) for value in mean]


def marks(history: RunHistory, record: Mapping[str, Any]) -> tuple[Mark, ...]:
    """Return where the run was resumed, skipped updates and was rewound."""
    sessions = [each for each in record.get("sessions") or [] if isinstance(each, Mapping)]
    resumed = [session.get("from_step", 0) for session in sessions]
    events = [
        *(("resumed", step) for step in resumed if isinstance(step, int) and step > 0),
        *(("skipped", step) for step in history.skipped),
        *(("rewound", rewind.to_step) for rewind in history.rewinds),
    ]
    known = [0, *(each.step for each in history.steps)]
    tokens = [0.0, *(each.tokens for each in history.steps)]
    return tuple(Mark(kind, float(np.interp(step, known, tokens))) for kind, step in events)
