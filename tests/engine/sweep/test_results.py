from __future__ import annotations

import math
from pathlib import Path

import pytest

from llmtrain.engine.sweep.results import SweepResults, TrialResult
from llmtrain.errors import UsageError


def result(trial: int, bits: float | None = 1.0, outcome: str = "done") -> TrialResult:
    return TrialResult(trial, f"t{trial}", {"a": trial}, outcome, bits, 1, 2, 3.0, "")  # type: ignore[arg-type]


def test_results_are_read_back_and_ranked(tmp_path: Path) -> None:
    results = SweepResults(tmp_path)
    for each in (result(0, 2.0), result(1, 1.0), result(2, 0.5, "stopped early"), result(3, None)):
        results.add(each)
    again = SweepResults(tmp_path)
    assert again.by_trial == results.by_trial
    assert [each.trial for each in again.ranked()] == [1, 0, 3, 2]


def test_a_line_that_a_kill_cut_is_removed(tmp_path: Path) -> None:
    SweepResults(tmp_path).add(result(0))
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"trial": 1, "ru')
    results = SweepResults(tmp_path)
    results.add(result(1))
    assert list(SweepResults(tmp_path).by_trial) == [0, 1]


def test_no_result_is_written_that_could_not_be_read_back(tmp_path: Path) -> None:
    results = SweepResults(tmp_path)
    with pytest.raises(ValueError, match="not JSON compliant"):
        results.add(result(0, math.nan))
    assert SweepResults(tmp_path).by_trial == {}


def test_results_of_another_plan_are_refused(tmp_path: Path) -> None:
    results = SweepResults(tmp_path)
    results.add(result(0))
    results.require_settings(0, {"a": 0})
    results.require_settings(1, {"a": 5})
    with pytest.raises(UsageError, match="of another plan"):
        results.require_settings(0, {"a": 5})


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(UsageError, match="not the results of a sweep"):
        SweepResults(tmp_path)
