from __future__ import annotations

import math

import pytest

from llmtrain.report.curves import Mark, curve, marks, smoothed
from llmtrain.train.run_directory.history import LoggedStep, Rewind, RunHistory


def test_a_long_curve_keeps_its_ends_and_every_spike() -> None:
    ys = [1.0] * 10_000
    ys[777], ys[5_000] = 50.0, -50.0
    found = curve("a", list(range(10_000)), ys)
    assert len(found.xs) <= 802
    assert (found.xs[0], found.xs[-1]) == (0, 9_999)
    assert {(777, 50.0), (5_000, -50.0)} <= set(zip(found.xs, found.ys, strict=True))
    assert list(found.xs) == sorted(found.xs)


def test_what_is_not_finite_is_not_drawn() -> None:
    found = curve("a", [0, 1, 2, math.inf], [1.0, math.nan, math.inf, 1.0])
    assert (found.xs, found.ys) == ((0,), (1.0,))


def test_smoothing_keeps_a_level_and_bridges_what_is_unknown() -> None:
    assert smoothed([2.0] * 500) == pytest.approx([2.0] * 500)
    assert smoothed([1.0, math.nan, 3.0]) == pytest.approx([1.0, 2.0, 3.0])
    assert smoothed([]) == []


def test_marks_are_placed_by_tokens() -> None:
    steps = tuple(LoggedStep(n, 100.0 * n, n, 1, 1, 1, 1, 1) for n in (10, 20))
    history = RunHistory(steps, (), (12,), (Rewind(19, 15),))
    record = {"sessions": [{"from_step": 0}, {"from_step": 16}, {"from_step": "x"}, {}]}
    assert marks(history, record) == (
        Mark("resumed", 1600),
        Mark("skipped", 1200),
        Mark("rewound", 1500),
    )
