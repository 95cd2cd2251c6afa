"""Benchmark a model's work on this CPU, once for each shape: kernels, and the parts of a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Generic

from llmtrain.choice import Precision
from llmtrain.errors import DoesNotFitError
from llmtrain.files import cache_directory
from llmtrain.machine.facts import AttentionTimes, BlockTimes, CpuTimes, Facts, MatmulTimes
from llmtrain.machine.matmul_timing import time_matmuls
from llmtrain.machine.measurement_cache import (
    MeasurementKey,
    T,
    load_measurement,
    measurement_key,
    remove_measurement,
    save_measurement,
)
from llmtrain.model.timing import CompileError, multiplied_in, time_attention, time_block
from llmtrain.plan import decisions as decide
from llmtrain.plan import numerics
from llmtrain.plan.planner import Plan, make_plan
from llmtrain.plan.step_benchmarks import Measure, StepProbes, step_probes
from llmtrain.plan.throughput import compiled_block, predicted_tokens_per_s
from llmtrain.plan.workload import Workload
from llmtrain.profile.schema import DeviceSection
from llmtrain.profile.shape import ModelShape

PROBE_TOKENS = 2048

Announce = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Probe(Generic[T]):
    """A measurement, and the key that it is saved under."""

    key: MeasurementKey
    kind: type[T]
    measure: Callable[[], T]

    def saved(self) -> T | None:
        """Return the saved times; None where there are none."""
        return load_measurement(cache_directory(), self.key, self.kind)

    def fresh(self) -> T:
        """Measure now, save and return the times."""
        times = self.measure()
        save_measurement(cache_directory(), self.key, times)
        return times

    def forget(self) -> None:
        """Remove the saved times, so that the next run measures again."""
        remove_measurement(cache_directory(), self.key)

    def times(self) -> T:
        """Return the saved times, or fresh ones."""
        saved = self.saved()
        return self.fresh() if saved is None else saved


def products_probe(facts: Facts, shape: ModelShape, threads: int) -> Probe[MatmulTimes]:
    """Return the benchmark of the model's products in each precision; about a second."""
    hidden, intermediate = shape.hidden_size, shape.intermediate_size
    key = measurement_key(
        facts, "products", threads, hidden=hidden, intermediate=intermediate, tokens=PROBE_TOKENS
    )
    return Probe(
        key, MatmulTimes, lambda: time_matmuls(hidden, intermediate, PROBE_TOKENS, threads)
    )


def attention_probe(
    facts: Facts, options: DeviceSection, workload: Workload, products: MatmulTimes
) -> Probe[AttentionTimes]:
    """Return the benchmark of each attention kernel, in the precision that `products` decide."""
    shape, threads = workload.shape, cpu_threads(facts, options, workload)
    precision: Precision = numerics.choose_precision(facts, options, "cpu", products).value
    passes = numerics.choose_matmul_precision(options, "cpu", precision, products).value

    def measure() -> AttentionTimes:
        with multiplied_in(passes):
            return time_attention(shape, precision, threads, workload.mask_documents)

    key = _shape_key(
        facts, "attention", threads, workload, precision=precision, matmul_precision=passes
    )
    return Probe(key, AttentionTimes, measure)


def block_probe(facts: Facts, workload: Workload, plan: Plan) -> Probe[BlockTimes]:
    """Return the benchmark of a block, eager and compiled. Measuring raises CompileError."""

    def measure() -> BlockTimes:
        with multiplied_in(plan.matmul_precision.value):
            return time_block(
                workload.shape,
                micro_batch=plan.micro_batch.value,
                precision=plan.precision.value,
                attention=plan.attention.value,
                checkpointing=plan.activation_checkpointing.value,
                keep_casts=plan.keep_weight_casts.value,
                threads=plan.threads.value,
                masked=workload.mask_documents,
                lora=workload.lora,
            )

    return Probe(_block_key(facts, workload, plan), BlockTimes, measure)


def measured_products(facts: Facts, shape: ModelShape, threads: int) -> MatmulTimes:
    """Return the times of the model's products in each precision, saved or fresh."""
    return products_probe(facts, shape, threads).times()


def measured_cpu(
    facts: Facts, options: DeviceSection, workload: Workload, announce: Announce | None = None
) -> CpuTimes:
    """Return all measurements that a plan for this CPU needs.

    Compiling takes seconds to tens of seconds: that is done only where `announce` is given, which
    reports it, and the run is to be compiled.
    """
    times = measured_eager_step(facts, options, workload, announce)
    plan = make_plan(facts, options, workload, times)
    if not plan.compile.value:
        return times
    probe, step = block_probe(facts, workload, plan), step_probes(facts, workload, plan)
    saved = probe.saved()
    if announce is None:
        if saved is None:
            return times
        block = compiled_block(saved, times.eager, step.micro_batch)
        return replace(times, block=saved, compiled=step.saved_times(block))
    if saved is not None and not saved.is_contended:
        times = replace(times, block=saved)
    else:
        announce("compiling one block, once for this machine and shape: up to a minute")
        times = with_fresh_block(times, probe, announce)
    if not make_plan(facts, options, workload, times).compile.value:
        return times
    return with_compiled_step(times, step, announce, "contended")


def measured_eager_step(
    facts: Facts, options: DeviceSection, workload: Workload, announce: Announce | None = None
) -> CpuTimes:
    """Return the times of the kernels and of the parts of an eager step.

    Without the parts where only a compiled step fits the memory.
    """
    threads = cpu_threads(facts, options, workload)
    products = _announced(products_probe(facts, workload.shape, threads), "products", announce)
    attention = _announced(
        attention_probe(facts, options, workload, products), "attention", announce
    )
    times = CpuTimes(products, attention)
    probes = eager_step_probes(facts, options, workload, times)
    if probes is None:
        return times
    if announce is not None and not probes.are_saved():
        announce("timing the parts of a step, once for this machine and shape: a few seconds")
    measure: Measure = "missing" if announce is None else "contended"
    return replace(times, eager=probes.times(measure))


def eager_step_probes(
    facts: Facts, options: DeviceSection, workload: Workload, times: CpuTimes
) -> StepProbes | None:
    """Return the benchmarks of an eager step; None if it does not fit the memory."""
    eager = options.model_copy(update={"compile": False})
    try:
        plan = make_plan(facts, eager, workload, times)
    except DoesNotFitError:
        return None
    return step_probes(facts, workload, plan)


def eager_tokens_per_s(facts: Facts, options: DeviceSection, workload: Workload) -> float | None:
    """Return the rate of an eager run, measured once; None if only a compiled one fits.

    What compiling gains is not known before it is done; it gains alike for every shape, and a
    choice that is made before it should not depend on whether it was done.
    """
    parts = measured_eager_step(facts, options, workload).eager
    if parts is None:
        return None
    return predicted_tokens_per_s(
        workload.shape,
        parts,
        tokens_per_step=workload.tokens_per_step,
        processes=decide.choose_processes(facts, options, workload, "cpu").value,
    )


def _announced(probe: Probe[T], what: str, announce: Announce | None) -> T:
    """Return the times of the probe; where they are to be measured now, announce it."""
    saved = probe.saved()
    if saved is not None:
        return saved
    if announce is not None:
        announce(f"timing {what}, once for this machine and shape: a few seconds")
    return probe.fresh()


def with_fresh_block(times: CpuTimes, probe: Probe[BlockTimes], announce: Announce) -> CpuTimes:
    """Return `times` with a block measured now, or with the reason why it cannot be compiled."""
    try:
        block = probe.fresh()
    except CompileError as error:
        return replace(times, compile_failure=error.message)
    announce(f"compiled in {block.compile_s:.0f} s")
    return replace(times, block=block)


def with_compiled_step(
    times: CpuTimes, step: StepProbes, announce: Announce, measure: Measure
) -> CpuTimes:
    """Return `times` with the parts of a compiled step, measured if they are not saved."""
    if times.block is None:
        return times
    if measure == "all" or not step.are_saved():
        announce("compiling the loss, once for this machine and shape: some seconds")
    block = compiled_block(times.block, times.eager, step.micro_batch)
    try:
        return replace(times, compiled=step.times(measure, block))
    except CompileError as error:
        return replace(times, compile_failure=error.message)


def forget_step(facts: Facts, workload: Workload, plan: Plan) -> None:
    """Forget the parts of the plan's step: the next run measures them again."""
    step_probes(facts, workload, plan).forget()
    if plan.compile.value:
        block_probe(facts, workload, plan).forget()


def cpu_threads(facts: Facts, options: DeviceSection, workload: Workload) -> int:
    """Return the threads of one process, as the plan decides them. Raises UsageError."""
    processes = decide.choose_processes(facts, options, workload, "cpu").value
    return decide.choose_threads(
        facts, options, workload.launched_local_processes or processes
    ).value


def _block_key(facts: Facts, workload: Workload, plan: Plan) -> MeasurementKey:
    return _shape_key(
        facts,
        "block",
        plan.threads.value,
        workload,
        micro_batch=plan.micro_batch.value,
        precision=plan.precision.value,
        matmul_precision=plan.matmul_precision.value,
        attention=plan.attention.value,
        checkpointing=plan.activation_checkpointing.value,
        keep_casts=str(plan.keep_weight_casts.value),
        compiler=str(facts.cxx_compiler),
    )


def _shape_key(
    facts: Facts, what: str, threads: int, workload: Workload, **others: int | str
) -> MeasurementKey:
    shape = workload.shape
    if workload.mask_documents:
        others["documents"] = "masked"
    if workload.lora is not None and what == "block":
        others["lora"] = f"{workload.lora.rank} {' '.join(workload.lora.targets)}"
    return measurement_key(
        facts,
        what,
        threads,
        hidden=shape.hidden_size,
        intermediate=shape.intermediate_size,
        heads=shape.num_heads,
        key_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        qk_norm=str(shape.qk_norm),
        context=shape.context,
        **others,
    )
