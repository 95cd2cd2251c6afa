from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from llmtrain.cli.loss_plot import loss_plot
from llmtrain.train.run_directory.history import LoggedEvaluation, LoggedStep, RunHistory
from tests.cli.conftest import Command


def history(steps: int, evaluations: int = 3) -> RunHistory:
    return RunHistory(
        tuple(
            LoggedStep(n, 1000.0 * n, n, 2 + 5 * math.exp(-n / 20), 1, 1, 1, 1)
            for n in range(1, steps + 1)
        ),
        tuple(LoggedEvaluation(n * 10, 10_000.0 * n, n, 3.0, 1.0) for n in range(evaluations)),
        (),
        (),
    )


@pytest.mark.parametrize("columns", [60, 100, 200])
def test_a_plot_fits_its_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmtrain.cli.loss_plot._can_draw", lambda: True)
    found = loss_plot(history(100), columns)
    assert found is not None
    lines = found.plain.splitlines()
    assert max(map(len, lines)) <= columns
    assert re.search(r"\| 0 +\d+\.?\d*k ", found.plain)
    assert re.search(r"[\u2801-\u28ff]", found.plain)
    assert lines[-1].endswith("o validation")


@pytest.mark.parametrize(("steps", "columns"), [(0, 100), (1, 100), (100, 30)])
def test_without_points_or_room_there_is_none(steps: int, columns: int) -> None:
    assert loss_plot(history(steps), columns) is None


def test_a_level_loss_and_no_evaluation_can_be_drawn() -> None:
    level = tuple(LoggedStep(n, 10.0 * n, n, 2.0, 1, 1, 1, 1) for n in (1, 2, 3))
    found = loss_plot(RunHistory(level, (), (), ()), 80)
    assert found is None or "validation" not in found.plain


def test_show_draws_the_curves(
    llmtrain: Command, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmtrain.cli.loss_plot._can_draw", lambda: True)
    out = llmtrain("runs", "show", trained).out
    assert "(loss)" in out
    assert "\x1b" not in out
    monkeypatch.setattr("llmtrain.cli.loss_plot._can_draw", lambda: False)
    assert "(loss)" not in llmtrain("runs", "show", trained).out
