"""Record the speed and memory of runs, which predict those of the next run by the same plan."""

from __future__ import annotations

from dataclasses import asdict

from llmtrain.files import cache_directory
from llmtrain.machine.facts import Facts, RunFigures
from llmtrain.machine.measurement_cache import (
    MeasurementKey,
    load_measurement,
    measurement_key,
    save_measurement,
)
from llmtrain.plan.planner import Plan
from llmtrain.plan.workload import Workload

_FEWEST_STEPS = 5  # that give a representative rate


def last_run(facts: Facts, workload: Workload, plan: Plan) -> RunFigures | None:
    """Return the figures of the last run by this plan on this machine; None: there is none."""
    return load_measurement(cache_directory(), _key(facts, workload, plan), RunFigures)


def record_run(
    facts: Facts,
    workload: Workload,
    plan: Plan,
    *,
    step_s: float | None,
    steps: int,
    peak_memory_bytes: int,
) -> None:
    """Save a run's figures, unless it trained too few steps to be representative."""
    if not step_s or steps < _FEWEST_STEPS:
        return
    figures = RunFigures(
        tokens_per_s=workload.tokens_per_step / step_s,
        peak_memory_bytes=float(peak_memory_bytes),
        steps=float(steps),
    )
    save_measurement(cache_directory(), _key(facts, workload, plan), figures)


def _key(facts: Facts, workload: Workload, plan: Plan) -> MeasurementKey:
    decided = {name: str(value) for name, value in plan.numerics().items() if name != "threads"}
    shape = {name: str(value) for name, value in asdict(workload.shape).items()}
    names = ",".join(gpu.name for gpu in facts.accelerators)
    if workload.mask_documents:
        decided["documents"] = "masked"
    return measurement_key(
        facts,
        "run",
        plan.threads.value,
        **{**shape, **decided, "optimizer": workload.optimizer, "accelerators": names},
        tokens_per_step=workload.tokens_per_step,
    )
