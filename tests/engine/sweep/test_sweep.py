"""A sweep ends with the same results however often it is killed."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from llmtrain.engine.sweep import trial as module
from llmtrain.engine.sweep.plan import SweepPlan
from llmtrain.engine.sweep.results import TrialResult
from llmtrain.engine.sweep.sweep import SweepRequest, run_sweep
from llmtrain.errors import InterruptedRunError, UsageError
from tests.checkout import ROOT
from tests.engine.sweep import driver


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials are fake trainings."""
    monkeypatch.setattr(module.TrialRunner, "_command", driver.command)


def swept(directory: Path, workers: int = 1) -> list[TrialResult]:
    return run_sweep(
        SweepRequest(driver.plan(), directory, workers), lambda result: None, lambda: None
    )


def lines(directory: Path) -> list[dict[str, Any]]:
    text = (directory / "results.jsonl").read_text()
    found = [json.loads(line) for line in text.splitlines()]
    return [{k: v for k, v in each.items() if k != "run"} for each in found]


def test_every_trial_is_trained_ranked_and_accounted_for(fake: None, tmp_path: Path) -> None:
    results = swept(tmp_path / "sweep")
    assert len(results) == len(driver.RATES)
    assert driver.RATES[results[0].trial] == 0.3
    by_rate = {driver.RATES[each.trial]: each for each in results}
    assert {rate for rate, each in by_rate.items() if each.outcome == "stopped early"} >= {2.0, 3.0}
    assert by_rate[0.31].outcome == "done"
    assert by_rate[-1.0].outcome == "diverged"
    assert by_rate[-1.0].reason == "the loss is not finite"
    assert (tmp_path / "sweep" / "trial-007.log").exists()
    assert not (tmp_path / "sweep" / "trial-000.log").exists()
    again = swept(tmp_path / "sweep")
    assert again == results


@pytest.mark.slow
def test_killed_five_times_is_as_good_as_undisturbed(fake: None, tmp_path: Path) -> None:
    swept(tmp_path / "undisturbed")
    draw = random.Random(1)
    command = [sys.executable, "-m", "tests.engine.sweep.driver", str(tmp_path / "killed")]
    for _ in range(5):
        process = subprocess.Popen(command, cwd=ROOT)
        time.sleep(1.5 + draw.uniform(0, 0.7))
        process.kill()
        process.wait()
    subprocess.run(command, cwd=ROOT, check=True, timeout=120)
    assert lines(tmp_path / "killed") == lines(tmp_path / "undisturbed")


def test_a_sweep_continues_after_a_trial_whose_evaluations_are_null(
    fake: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "RATES", (math.nan, 0.3))
    results = swept(tmp_path / "sweep")
    assert [(each.trial, each.val_bpb) for each in results] == [(1, 1.25), (0, None)]
    assert swept(tmp_path / "sweep") == results


def test_several_workers_find_the_same_best(fake: None, tmp_path: Path) -> None:
    assert driver.RATES[swept(tmp_path / "sweep", workers=3)[0].trial] == 0.3


def test_a_stop_request_ends_the_trials_and_the_next_call_continues(
    fake: None, tmp_path: Path
) -> None:
    asked: list[int] = []

    def stop() -> None:
        asked.append(1)
        if len(asked) > 20:
            raise InterruptedRunError("stopped by SIGTERM")

    request = SweepRequest(driver.plan(), tmp_path / "sweep", 2)
    with pytest.raises(InterruptedRunError):
        run_sweep(request, lambda result: None, stop)
    assert len(swept(tmp_path / "sweep")) == len(driver.RATES)


def test_another_plan_does_not_continue_a_sweep(fake: None, tmp_path: Path) -> None:
    swept(tmp_path / "sweep")
    other = SweepPlan(profile="cpu-tiny", grid={driver.KEY: (0.9,)})
    with pytest.raises(UsageError, match="of another plan"):
        run_sweep(SweepRequest(other, tmp_path / "sweep"), lambda r: None, lambda: None)
