"""A plan with what it implies: predicted memory, the limit, what was measured for it."""

from __future__ import annotations

from dataclasses import dataclass

from llmtrain.machine.facts import CpuTimes, Facts, RunFigures
from llmtrain.plan.decisions import memory_limit_bytes
from llmtrain.plan.memory import MemoryPrediction
from llmtrain.plan.planner import Plan, predict
from llmtrain.plan.throughput import product_flops_per_s, step_work
from llmtrain.plan.workload import Workload


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan, and what it was made from."""

    plan: Plan
    workload: Workload
    facts: Facts
    prediction: MemoryPrediction
    limit_bytes: int
    peak_flops: float | None  # of one process's matrix products, where measured
    times: CpuTimes | None = None  # what the plan was made from
    kept: RunFigures | None = None  # what a run by this plan came to here

    @property
    def bytes(self) -> int:
        """The predicted peak."""
        return self.prediction.total_bytes


def planned_with(
    plan: Plan,
    workload: Workload,
    facts: Facts,
    times: CpuTimes | None = None,
    kept: RunFigures | None = None,
) -> Planned:
    """A plan with what it implies."""
    return Planned(
        plan=plan,
        workload=workload,
        facts=facts,
        prediction=predict(workload, plan),
        limit_bytes=memory_limit_bytes(facts, plan.device.value),
        peak_flops=_peak_flops(times, plan, workload),
        times=times,
        kept=kept,
    )


def _peak_flops(times: CpuTimes | None, plan: Plan, workload: Workload) -> float | None:
    """The rate of the profile's own products in the plan's precision."""
    if times is None:
        return None
    return product_flops_per_s(times.matmul, step_work(plan, workload.optimizer))
