"""Benchmark a model's work on this CPU, once for each shape: kernels, and the parts of a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Generic

from llmtrain.choice import Choice, Precision
from llmtrain.errors import DoesNotFitError
from llmtrain.files import cache_directory
from llmtrain.machine.facts import (
    AttentionTimes,
    BlockTimes,
    CpuTimes,
    Facts,
    LossTimes,
    MatmulTimes,
    StepTimes,
)
from llmtrain.machine.matmul_timing import time_matmuls
from llmtrain.machine.measurement_cache import (
    MeasurementKey,
    T,
    load_measurement,
    measurement_key,
    remove_measurement,
    save_measurement,
)
from llmtrain.model.timing import (
    CompileError,
    multiplied_in,
    time_attention,
    time_block,
    time_loss,
)
from llmtrain.ops.chunk_sizes import NATIVE_WIDTH_MULTIPLE
from llmtrain.ops.native.library import kernel_source, load_kernels, unsuitable
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
    is_complete: Callable[[T], bool] = lambda _: True

    def saved(self) -> T | None:
        """Return the saved times; None where there are none, or not all that are wanted."""
        found = load_measurement(cache_directory(), self.key, self.kind)
        return found if found is not None and self.is_complete(found) else None

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
    facts: Facts,
    options: DeviceSection,
    workload: Workload,
    products: MatmulTimes,
    *,
    native: bool = False,
) -> Probe[AttentionTimes]:
    """Return the benchmark of each attention kernel, in the precision that `products` decide.

    `native`: the native kernels are loaded, and one of those that are compared.
    """
    shape, threads = workload.shape, cpu_threads(facts, options, workload)
    precision: Precision = numerics.choose_precision(facts, options, "cpu", products).value
    passes = numerics.choose_matmul_precision(options, "cpu", precision, products).value

    def measure() -> AttentionTimes:
        with multiplied_in(passes):
            return time_attention(shape, precision, threads, workload.mask_documents, native)

    key = _shape_key(
        facts,
        "attention",
        threads,
        workload,
        precision=precision,
        matmul_precision=passes,
        native=kernel_source().digest(),
    )
    return Probe(
        key, AttentionTimes, measure, lambda times: times.native_s is not None or not native
    )


def native_kernels(
    facts: Facts,
    options: DeviceSection,
    workload: Workload,
    times: CpuTimes,
    announce: Announce | None,
    *,
    always: bool = False,
) -> Choice[bool] | None:
    """Load the native kernels for a plan; None where they are not wanted, unless `always`.

    Only with `announce` they are compiled, where they have not been yet. It is also told what is
    lost without them, where the user can mend that.
    """
    if unsuitable(facts) is not None and "native" not in (options.attention, options.loss):
        return None
    is_bf16 = numerics.choose_precision(facts, options, "cpu", times.matmul).value == "bf16"
    processes = decide.choose_processes(facts, options, workload, "cpu").value
    is_wanted = numerics.wants_native(facts, options, workload, times, processes)
    if not is_wanted and not (always and is_bf16):
        return None
    loaded = load_kernels(facts, announce, compiles=announce is not None)
    if not loaded.value and announce is not None:
        announce(f"without native kernels attention and the loss take longer: {loaded.reason}")
    return loaded


def loss_probe(
    facts: Facts, options: DeviceSection, workload: Workload, micro_batch: int
) -> Probe[LossTimes]:
    """Return the benchmark of the loss, in chunks and by the native kernel, which is loaded."""
    shape, threads = workload.shape, cpu_threads(facts, options, workload)
    tokens = micro_batch * shape.context
    key = measurement_key(
        facts,
        "loss",
        threads,
        hidden=shape.hidden_size,
        vocabulary=shape.vocab_size,
        tokens=tokens,
        native=kernel_source().digest(),
    )
    return Probe(key, LossTimes, lambda: time_loss(shape, tokens, threads))


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
    facts: Facts,
    options: DeviceSection,
    workload: Workload,
    announce: Announce | None = None,
    *,
    fresh: bool = False,
) -> CpuTimes:
    """Return the times of the kernels and of the parts of an eager step.

    Whether native kernels are among them depends on how long the run takes without them. Without
    the parts where only a compiled step fits the memory. `fresh`: all is measured now.
    """
    threads = cpu_threads(facts, options, workload)
    timing = _Timing(announce, fresh)
    products = timing.of(products_probe(facts, workload.shape, threads), "products")
    attention = timing.of(attention_probe(facts, options, workload, products), "attention")
    times = CpuTimes(products, replace(attention, native_s=None))
    plain = timing.of_step(facts, numerics.without_native(options), workload, times)
    times = replace(times, plain=plain, eager=plain)
    native = native_kernels(facts, options, workload, times, announce, always=fresh)
    if native is None:
        return times
    if not native.value:
        return replace(times, native_missing=native.reason)
    probe = attention_probe(facts, options, workload, products, native=True)
    times = replace(times, attention=timing.of(probe, "attention by native kernels"))
    if workload.shape.hidden_size % NATIVE_WIDTH_MULTIPLE == 0 and workload.lora is None:
        micro_batch = make_plan(facts, options, workload, times).micro_batch.value
        loss = timing.of(loss_probe(facts, options, workload, micro_batch), "the loss")
        times = replace(times, loss=loss)
    return replace(times, eager=timing.of_step(facts, options, workload, times))


@dataclass(frozen=True, slots=True)
class _Timing:
    """Measures what is not saved, or everything, and announces it."""

    announce: Announce | None
    fresh: bool

    def of(self, probe: Probe[T], what: str) -> T:
        saved = None if self.fresh else probe.saved()
        if saved is not None:
            return saved
        self._announce(what)
        return probe.fresh()

    def of_step(
        self, facts: Facts, options: DeviceSection, workload: Workload, times: CpuTimes
    ) -> StepTimes | None:
        """Return the parts of an eager step; None where it does not fit the memory."""
        probes = eager_step_probes(facts, options, workload, times)
        if probes is None:
            return None
        if self.fresh or not probes.are_saved():
            self._announce("the parts of a step")
        if self.fresh:
            return probes.times("all")
        return probes.times("missing" if self.announce is None else "contended")

    def _announce(self, what: str) -> None:
        if self.announce is None:
            return
        once = "" if self.fresh else ", once for this machine and shape: a few seconds"
        self.announce(f"timing {what}{once or '…'}")


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
