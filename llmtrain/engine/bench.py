"""Time a profile's work on this CPU, and plan and predict the throughput from it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from llmtrain.engine.plan_run import workload_of
from llmtrain.errors import UsageError
from llmtrain.machine.facts import CpuTimes, Facts
from llmtrain.ops.chunk_sizes import NATIVE_WIDTH_MULTIPLE
from llmtrain.plan.cpu_benchmarks import (
    Announce,
    attention_probe,
    block_probe,
    cpu_threads,
    loss_probe,
    native_kernels,
    products_probe,
    with_fresh_block,
)
from llmtrain.plan.decisions import choose_device
from llmtrain.plan.numerics import choose_precision
from llmtrain.plan.planner import Plan, make_plan
from llmtrain.plan.throughput import predicted_step_s, predicted_tokens_per_s, step_work
from llmtrain.plan.workload import Workload
from llmtrain.profile.schema import DeviceSection, Profile


@dataclass(frozen=True, slots=True)
class Bench:
    """New measurements, the plan made from them, and the predicted throughput.

    The throughput is None if no block was timed.
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
    times = _kernels(facts, options, workload, announce)
    if not block or facts.cxx_compiler is None:
        return _bench(facts, workload, times, make_plan(facts, options, workload, times))
    # Time the block of a compiled run even if this run is too short to be compiled.
    compiling = make_plan(facts, options.model_copy(update={"compile": True}), workload, times)
    announce("compiling one block…")
    times = with_fresh_block(times, block_probe(facts, workload, compiling), announce)
    plan = make_plan(facts, options, workload, times)
    return _bench(facts, workload, times, plan, block_applies=_same_block(plan, compiling))


def _refuse_gpu(facts: Facts, options: DeviceSection) -> None:
    device = choose_device(facts, options).value
    if device != "cpu":
        raise UsageError(
            f"only the CPU is measured, and the plan is for {device}", hint="--force-cpu"
        )


def _kernels(
    facts: Facts, options: DeviceSection, workload: Workload, announce: Announce
) -> CpuTimes:
    announce("timing products…")
    products = products_probe(facts, workload.shape, cpu_threads(facts, options, workload)).fresh()
    announce("timing attention…")
    is_bf16 = choose_precision(facts, options, "cpu", products).value == "bf16"
    native = native_kernels(facts, options, workload, products, announce, always=is_bf16)
    has_native = native is not None and native.value
    probe = attention_probe(facts, options, workload, products, native=has_native)
    missing = native.reason if native is not None and not native.value else None
    times = CpuTimes(products, probe.fresh(), native_missing=missing)
    if not has_native or workload.shape.hidden_size % NATIVE_WIDTH_MULTIPLE:
        return times
    announce("timing the loss…")
    micro_batch = make_plan(facts, options, workload, times).micro_batch.value
    return replace(times, loss=loss_probe(facts, options, workload, micro_batch).fresh())


def _same_block(plan: Plan, timed: Plan) -> bool:
    """Return whether `plan` runs the block that was timed; an eager one recomputes nothing."""
    checkpointing = timed.activation_checkpointing.value if plan.compile.value else "off"
    return (
        plan.activation_checkpointing.value == checkpointing
        and plan.micro_batch.value == timed.micro_batch.value
    )


def _bench(
    facts: Facts, workload: Workload, times: CpuTimes, plan: Plan, *, block_applies: bool = True
) -> Bench:
    work = step_work(plan, workload.optimizer)
    applying = times if block_applies else replace(times, block=None)
    return Bench(
        facts=facts,
        times=times,
        plan=plan,
        step_s=predicted_step_s(workload.shape, work, applying),
        tokens_per_s=predicted_tokens_per_s(workload.shape, work, applying),
    )
