"""Time a profile's work on this CPU, and plan and predict the throughput from it."""

from __future__ import annotations

from dataclasses import dataclass

from llmtrain.engine.workload import workload_of
from llmtrain.errors import UsageError
from llmtrain.machine.facts import CpuTimes, Facts
from llmtrain.plan.cpu_benchmarks import measured_eager_step, with_compiled_step, with_fresh_block
from llmtrain.plan.decisions import choose_device
from llmtrain.plan.kernel_probes import Announce, block_probe
from llmtrain.plan.planner import Plan, make_plan
from llmtrain.plan.step_benchmarks import step_probes
from llmtrain.plan.throughput import parts_of, predicted_step_s
from llmtrain.plan.workload import Workload
from llmtrain.profile.schema import DeviceSection, Profile


@dataclass(frozen=True, slots=True)
class Bench:
    """New measurements, the plan made from them, and the predicted throughput.

    The throughput is None if no step was timed as the plan computes it.
    """

    facts: Facts
    times: CpuTimes
    plan: Plan
    step_s: float | None
    tokens_per_s: float | None


def bench_cpu(profile: Profile, facts: Facts, *, block: bool, announce: Announce) -> Bench:
    """Time the profile's shapes on this CPU; the times are cached for the next run.

    A block is timed if `block` is set and there is a C++ compiler; where compiling fails, the
    times say why. Raises UsageError if the plan is for a GPU, and DoesNotFitError.
    """
    options, workload = profile.device, workload_of(profile, None, facts)
    _refuse_gpu(facts, options)
    times = measured_eager_step(facts, options, workload, announce, "all")
    if block and facts.cxx_compiler is not None:
        times = _compiled(facts, options, workload, times, announce)
    plan = make_plan(facts, options, workload, times)
    native_block = plan.block_kernels.value == "native"
    parts = times.compiled
    if not plan.compile.value:
        parts = parts_of(
            times,
            compiled=False,
            native_block=native_block,
            keeps_gates=plan.activation_checkpointing.value == "off",
        )
    step_s = None
    if parts is not None:
        step_s = predicted_step_s(
            workload.shape,
            parts,
            tokens_per_step=workload.tokens_per_step,
            processes=plan.processes.value,
        )
    tokens_per_s = None if step_s is None else workload.tokens_per_step / step_s
    return Bench(facts, times, plan, step_s, tokens_per_s)


def _refuse_gpu(facts: Facts, options: DeviceSection) -> None:
    device = choose_device(facts, options).value
    if device != "cpu":
        raise UsageError(
            f"only the CPU is measured, and the plan is for {device}", hint="--force-cpu"
        )


def _compiled(
    facts: Facts, options: DeviceSection, workload: Workload, times: CpuTimes, announce: Announce
) -> CpuTimes:
    """Return `times` with those of a compiled run, even if this one is too short for that."""
    plan = make_plan(facts, options.model_copy(update={"compile": True}), workload, times)
    announce("compiling one block…")
    times = with_fresh_block(times, block_probe(facts, workload, plan), announce)
    return with_compiled_step(times, step_probes(facts, workload, plan), announce, "all")
