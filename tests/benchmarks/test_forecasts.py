"""The arithmetic of `forecasts`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import pytest

from tests.benchmarks import forecasts
from tests.benchmarks.forecasts import CASES, HELD_BACK, Result, result_of

RECORDED: dict[str, Any] = {
    "trained_tokens_per_step": 4096,
    "step_s": 2.0,
    "predicted_tokens_per_s": 2253.0,
    "seconds": 100.0,
    "predicted_seconds": 90.0,
    "waited_share": 0.01,
}


def found(**changes: Any) -> Result:
    return result_of("tiny", "eager", RECORDED | changes)


def test_errors_are_those_of_the_forecast() -> None:
    result = found()
    assert result.tokens_per_s == 2048
    assert result.errors == pytest.approx((0.1, -0.1), abs=1e-3)
    row = "| tiny | eager | 2,253 | 2,048 | 90 s | 100 s | +10% | -10% | 1% |"
    assert result.row() == row


def test_no_error_is_shown_of_a_busy_machine() -> None:
    assert "| busy | busy | 40% |" in found(waited_share=0.4).row()
    assert not found(waited_share=None).is_contended


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({}, 0),
        ({"step_s": 3.0}, 1),
        ({"step_s": 1.0}, 1),
        ({"step_s": 3.0, "waited_share": 0.5}, 0),
    ],
)
def test_what_is_off_on_an_idle_machine_fails(
    changes: dict[str, Any],
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def results(_: argparse.Namespace) -> Iterator[Result]:
        yield found(**changes)

    monkeypatch.setattr(forecasts, "_results", results)
    assert forecasts.main(["--tolerance", "0.12"]) == code
    lines = capsys.readouterr().out.splitlines()
    assert "held back: mini, small, wide-vocabulary, long-context" in lines[0]
    assert len(lines) == 5


def test_all_cases_but_the_one_looked_at_are_held_back() -> None:
    assert {*HELD_BACK, "tiny"} == set(CASES)
