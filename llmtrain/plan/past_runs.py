"""Record the speed and memory of runs, which predict those of the next run by the same plan."""

from __future__ import annotations

from dataclasses import asdict

from llmtrain.files import cache_directory
from llmtrain.machine.facts import CONTENDED_SHARE, Facts, RunFigures
from llmtrain.machine.measurement_cache import (
    MeasurementKey,
    load_measurement,
    measurement_key,
    remove_measurement,
    save_measurement,
)
from llmtrain.plan.planner import Plan
from llmtrain.plan.workload import Workload

_FEWEST_STEPS = 5  # that give a representative rate
_NEAR = 0.7, 1.5  # a rate within these shares of the predicted one needs no remark


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
    waited_share: float | None = None,
) -> None:
    """Save a run's figures, unless it trained too few steps to be representative.

    Those of a run that shared its cores do not replace those of one that did not.
    """
    if not step_s or steps < _FEWEST_STEPS:
        return
    figures = RunFigures(
        tokens_per_s=workload.tokens_per_step / step_s,
        peak_memory_bytes=float(peak_memory_bytes),
        steps=float(steps),
        ran_share=max(1e-6, 1 - (waited_share or 0.0)),
    )
    before = last_run(facts, workload, plan)
    if figures.is_contended and before is not None and not before.is_contended:
        return
    save_measurement(cache_directory(), _key(facts, workload, plan), figures)


def replace_run(facts: Facts, workload: Workload, plan: Plan, figures: RunFigures | None) -> None:
    """Save figures as those of the last run; None forgets it."""
    key = _key(facts, workload, plan)
    if figures is None:
        remove_measurement(cache_directory(), key)
    else:
        save_measurement(cache_directory(), key, figures)


def rate_remark(
    tokens_per_s: float, predicted_per_s: float, waited_share: float | None
) -> str | None:
    """Return a remark on a rate that is far from the predicted one; None if it is near."""
    if not predicted_per_s or _NEAR[0] <= tokens_per_s / predicted_per_s <= _NEAR[1]:
        return None
    remark = f"{tokens_per_s / predicted_per_s:.0%} of the predicted rate"
    if waited_share is not None and waited_share > CONTENDED_SHARE:
        return (
            f"{remark}; threads waited for a core {waited_share:.0%} of the time (other programs, "
            "or more threads than cores), so the next forecast does not use this rate"
        )
    return f"{remark}; the next forecast uses the measured one"


def _key(facts: Facts, workload: Workload, plan: Plan) -> MeasurementKey:
    decided = {name: str(value) for name, value in plan.numerics().items() if name != "threads"}
    shape = {name: str(value) for name, value in asdict(workload.shape).items()}
    names = ",".join(gpu.name for gpu in facts.accelerators)
    if workload.mask_documents:
        decided["documents"] = "masked"
    if workload.sync_every > 1:
        decided["sync_every"] = str(workload.sync_every)
        decided["sync"] = f"{workload.sync_precision} {workload.sync_shares}"
        if workload.sync_delay:
            decided["sync_delay"] = str(workload.sync_delay)
    if workload.lora is not None:
        decided["lora"] = f"{workload.lora.rank} {' '.join(workload.lora.targets)}"
    return measurement_key(
        facts,
        "run",
        plan.threads.value,
        **{**shape, **decided, "optimizer": workload.optimizer, "accelerators": names},
        tokens_per_step=workload.tokens_per_step,
    )
