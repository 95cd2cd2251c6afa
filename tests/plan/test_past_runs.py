"""What a run came to is kept for the next one by the same plan, and for no other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmtrain.choice import Choice
from llmtrain.engine.calibrate import calibrate
from llmtrain.engine.plan_run import plan_run
from llmtrain.errors import LlmtrainError
from llmtrain.machine.facts import RunFigures
from llmtrain.plan.forecast import forecast
from llmtrain.plan.past_runs import last_run, rate_remark, record_run
from llmtrain.plan.planned import Planned
from llmtrain.profile.load import load_profile

WISHES = ["device.kind=cpu", "device.threads=1", "device.precision=fp32", "device.compile=false"]


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Planned:
    """A plan of this machine; the cache is empty."""
    monkeypatch.setenv("LLMTRAIN_CACHE_DIR", str(tmp_path / "cache"))
    profile = load_profile("cpu-tiny", environment={}, assignments=WISHES).profile
    return plan_run(profile)


FIGURES: dict[str, Any] = {"step_s": 0.5, "steps": 9, "peak_memory_bytes": 123_456_789}


def test_the_next_run_by_the_same_plan_is_told(planned: Planned) -> None:
    facts, workload, plan = planned.facts, planned.workload, planned.plan
    assert last_run(facts, workload, plan) is None
    record_run(facts, workload, plan, **FIGURES)
    rate = workload.tokens_per_step / 0.5
    assert last_run(facts, workload, plan) == RunFigures(rate, 123_456_789.0, 9.0)


@pytest.mark.parametrize("change", ["plan", "workload", "shape", "machine"])
def test_another_run_is_not(planned: Planned, change: str) -> None:
    facts, workload, plan = planned.facts, planned.workload, planned.plan
    record_run(facts, workload, plan, **FIGURES)
    if change == "plan":
        plan = replace(plan, micro_batch=Choice(2, "another"))
    elif change == "workload":
        workload = replace(workload, tokens_per_step=2 * workload.tokens_per_step)
    elif change == "shape":
        workload = replace(workload, shape=replace(workload.shape, tie_embeddings=False))
    else:
        facts = replace(facts, cpu=replace(facts.cpu, model="another"))
    assert last_run(facts, workload, plan) is None


def test_rounds_of_another_kind_are_another_run(planned: Planned) -> None:
    facts, plan = planned.facts, planned.plan
    workload = replace(planned.workload, sync_every=30)
    record_run(facts, workload, plan, **FIGURES)
    assert last_run(facts, workload, plan) is not None
    assert last_run(facts, replace(workload, sync_every=10), plan) is None
    assert last_run(facts, replace(workload, sync_precision="bf16"), plan) is None
    assert last_run(facts, replace(workload, sync_shares="speed"), plan) is None


def test_the_workload_has_what_the_profile_says_of_rounds() -> None:
    asked = ["train.sync_every=30", "train.sync_precision=bf16", "train.sync_shares=speed"]
    profile = load_profile("cpu-tiny", environment={}, assignments=[*WISHES, *asked]).profile
    workload = plan_run(profile, measure=False).workload
    found = (workload.sync_every, workload.sync_precision, workload.sync_shares)
    assert found == (30, "bf16", "speed")


@pytest.mark.parametrize("changes", [{"steps": 4}, {"step_s": None}])
def test_what_says_nothing_of_the_next_is_not_kept(
    planned: Planned, changes: dict[str, Any]
) -> None:
    record_run(planned.facts, planned.workload, planned.plan, **FIGURES | changes)
    assert last_run(planned.facts, planned.workload, planned.plan) is None


def test_a_contended_run_is_not_the_rate_of_the_next_forecast(planned: Planned) -> None:
    facts, workload, plan = planned.facts, planned.workload, planned.plan
    busy = FIGURES | {"step_s": 2.0, "waited_share": 0.5}
    record_run(facts, workload, plan, **busy)
    recorded = last_run(facts, workload, plan)
    assert recorded is not None
    options = ["train.tokens_per_step=4096"]
    profile = load_profile("cpu-tiny", environment={}, assignments=options).profile
    rate = forecast(profile, replace(planned, last_run=recorded))
    assert rate.tokens_per_s is not None
    assert rate.tokens_per_s.source == "estimated"

    record_run(facts, workload, plan, **FIGURES | {"waited_share": 0.01})
    alone = last_run(facts, workload, plan)
    record_run(facts, workload, plan, **busy)
    assert last_run(facts, workload, plan) == alone


@pytest.mark.parametrize(
    ("rate", "waited", "remark"),
    [
        (90.0, 0.5, None),
        (40.0, 0.5, "other programs"),
        (40.0, None, "40% of the predicted"),
        (200.0, 0.0, "200% of the predicted rate; the next forecast uses"),
    ],
)
def test_a_rate_far_from_the_forecast_is_remarked_on(
    rate: float, waited: float | None, remark: str | None
) -> None:
    found = rate_remark(rate, 100.0, waited)
    assert found is None if remark is None else remark in str(found)


def test_why_a_measured_run_failed_is_told(planned: Planned) -> None:
    with pytest.raises(LlmtrainError, match=r"no/such/text\.txt") as failed:
        calibrate(
            ["--profile=cpu-tiny", "--data=no/such/text.txt"],
            planned.facts,
            planned.workload,
            planned.plan,
        )
    assert failed.value.hint
