"""What a run came to is kept for the next one by the same plan, and for no other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmtrain.device.choice import Choice
from llmtrain.device.facts import RunFigures
from llmtrain.engine.calibration import calibrate, keep_run, kept_run
from llmtrain.engine.planning import Planned, plan_run
from llmtrain.errors import LlmtrainError
from llmtrain.profile.load import load_profile
from llmtrain.train.events import TrainResult

WISHES = ["device.kind=cpu", "device.threads=1", "device.precision=fp32", "device.compile=false"]


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Planned:
    """A plan of this machine; the cache is empty."""
    monkeypatch.setenv("LLMTRAIN_CACHE_DIR", str(tmp_path / "cache"))
    profile = load_profile("cpu-tiny", environment={}, assignments=WISHES).profile
    return plan_run(profile)


def result(**changes: Any) -> TrainResult:
    values = {
        "run": Path("run"),
        "checkpoint": None,
        "steps": 9,
        "tokens": 9 * 4096,
        "seconds": 12.0,
        "tokens_per_s": 3000.0,
        "train_loss": 1.0,
        "val_loss": 1.0,
        "val_bpb": 1.0,
        "peak_memory_bytes": 123_456_789,
        "predicted_peak_bytes": None,
        "stopped": "done",
        "trained_steps": 9,
        "step_s": 0.5,
    }
    return TrainResult(**values | changes)


def test_the_next_run_by_the_same_plan_is_told(planned: Planned) -> None:
    facts, needs, plan = planned.facts, planned.needs, planned.plan
    assert kept_run(facts, needs, plan) is None
    keep_run(facts, needs, plan, result())
    rate = needs.tokens_per_step / 0.5
    assert kept_run(facts, needs, plan) == RunFigures(rate, 123_456_789.0, 9.0)


@pytest.mark.parametrize("change", ["plan", "needs", "shape", "machine"])
def test_another_run_is_not(planned: Planned, change: str) -> None:
    facts, needs, plan = planned.facts, planned.needs, planned.plan
    keep_run(facts, needs, plan, result())
    if change == "plan":
        plan = replace(plan, micro_batch=Choice(2, "another"))
    elif change == "needs":
        needs = replace(needs, tokens_per_step=2 * needs.tokens_per_step)
    elif change == "shape":
        needs = replace(needs, shape=replace(needs.shape, tie_embeddings=False))
    else:
        facts = replace(facts, cpu=replace(facts.cpu, model="another"))
    assert kept_run(facts, needs, plan) is None


@pytest.mark.parametrize("changes", [{"trained_steps": 4}, {"step_s": None}])
def test_what_says_nothing_of_the_next_is_not_kept(
    planned: Planned, changes: dict[str, Any]
) -> None:
    keep_run(planned.facts, planned.needs, planned.plan, result(**changes))
    assert kept_run(planned.facts, planned.needs, planned.plan) is None


def test_why_a_measured_run_failed_is_told(planned: Planned) -> None:
    with pytest.raises(LlmtrainError, match=r"no/such/text\.txt") as failed:
        calibrate(
            ["--profile=cpu-tiny", "--data=no/such/text.txt"],
            planned.facts,
            planned.needs,
            planned.plan,
        )
    assert failed.value.hint
