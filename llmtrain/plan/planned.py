"""A plan with its consequences: predicted memory, the limit, and the measurements behind it.

`planner` makes the plan; `llmtrain.engine.plan_run` goes from a run to a `Planned`.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmtrain.machine.facts import CpuTimes, Facts, GpuTimes, RunFigures, StepTimes
from llmtrain.plan.memory import MemoryPrediction
from llmtrain.plan.memory_fit import memory_limit_bytes
from llmtrain.plan.planner import Plan, predict
from llmtrain.plan.throughput import parts_of, product_flops_per_s
from llmtrain.plan.workload import Workload


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan, what it was made from, and what is predicted of it."""

    plan: Plan
    workload: Workload
    facts: Facts
    prediction: MemoryPrediction
    limit_bytes: int
    peak_flops: float | None  # FLOP/s of one process's matrix products, where measured
    cpu_times: CpuTimes | None = None  # that the plan was made from
    last_run: RunFigures | None = None  # by this plan on this machine
    gpu_times: GpuTimes | None = None

    @property
    def step_times(self) -> StepTimes | None:
        """The measured parts of a step, in the way that the plan computes it; None: there are none.

        Those of an eager step while a CPU's compiled one is not measured.
        """
        gpu, plan = self.gpu_times, self.plan
        if gpu is not None:
            uses_own = "triton" in (plan.block_kernels.value, plan.loss.value)
            return gpu.own if uses_own or gpu.torch is None else gpu.torch
        if self.cpu_times is None:
            return None
        return parts_of(
            self.cpu_times,
            compiled=plan.compile.value,
            native_block=plan.block_kernels.value == "native",
            keeps_gates=plan.activation_checkpointing.value == "off",
        )

    @property
    def bytes(self) -> int:
        """The predicted peak of memory."""
        return self.prediction.total_bytes


def planned_with(
    plan: Plan,
    workload: Workload,
    facts: Facts,
    cpu_times: CpuTimes | None = None,
    last_run: RunFigures | None = None,
    gpu_times: GpuTimes | None = None,
) -> Planned:
    """Return the plan with its predictions."""
    return Planned(
        plan=plan,
        workload=workload,
        facts=facts,
        prediction=predict(workload, plan),
        limit_bytes=memory_limit_bytes(facts, plan.device.value),
        peak_flops=_peak_flops(cpu_times, plan),
        cpu_times=cpu_times,
        last_run=last_run,
        gpu_times=gpu_times,
    )


def _peak_flops(times: CpuTimes | None, plan: Plan) -> float | None:
    """Return the rate of the model's matrix products in the plan's precision."""
    if times is None:
        return None
    return product_flops_per_s(times.matmul, plan.precision.value, plan.matmul_precision.value)
