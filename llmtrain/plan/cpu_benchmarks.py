"""Benchmark a model's products, attention and block on this CPU, once for each shape."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Generic

import torch

from llmtrain.choice import Choice, MatmulPrecision, Precision
from llmtrain.files import cache_directory
from llmtrain.machine.facts import (
    AttentionTimes,
    BlockTimes,
    CpuTimes,
    Facts,
    LossTimes,
    MatmulTimes,
)
from llmtrain.machine.matmul_timing import time_matmuls
from llmtrain.machine.measurement_cache import (
    MeasurementKey,
    T,
    load_measurement,
    measurement_key,
    save_measurement,
)
from llmtrain.model.timing import CompileError, time_attention, time_block, time_loss
from llmtrain.ops.chunk_sizes import NATIVE_WIDTH_MULTIPLE
from llmtrain.ops.native.library import kernel_source, load_kernels, unsuitable
from llmtrain.plan import decisions as decide
from llmtrain.plan import numerics
from llmtrain.plan.planner import Plan, make_plan
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
        with _multiplying(passes):
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
    products: MatmulTimes,
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
    if not always and not numerics.wants_native(facts, options, workload, products):
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
        with _multiplying(plan.matmul_precision.value):
            return time_block(
                workload.shape,
                micro_batch=plan.micro_batch.value,
                precision=plan.precision.value,
                attention=plan.attention.value,
                checkpointing=plan.activation_checkpointing.value,
                keep_casts=plan.keep_weight_casts.value,
                threads=plan.threads.value,
                masked=workload.mask_documents,
            )

    return Probe(_block_key(facts, workload, plan), BlockTimes, measure)


def measured_products(facts: Facts, shape: ModelShape, threads: int) -> MatmulTimes:
    """Return the times of the model's products in each precision, saved or fresh."""
    return products_probe(facts, shape, threads).times()


def measured_cpu(
    facts: Facts, options: DeviceSection, workload: Workload, announce: Announce | None = None
) -> CpuTimes:
    """Return all measurements that a plan for this CPU needs.

    Compiling a block takes seconds to tens of seconds: that is done only where `announce` is given,
    which reports it, and the run is long enough to gain by it.
    """
    threads = cpu_threads(facts, options, workload)
    products = _announced(products_probe(facts, workload.shape, threads), "products", announce)
    native = native_kernels(facts, options, workload, products, announce)
    has_native = native is not None and native.value
    attention = _announced(
        attention_probe(facts, options, workload, products, native=has_native),
        "attention",
        announce,
    )
    if not has_native:  # a time may be saved from when there were kernels
        attention = replace(attention, native_s=None)
    missing = native.reason if native is not None and not native.value else None
    times = CpuTimes(products, attention, native_missing=missing)
    plan = make_plan(facts, options, workload, times)
    if has_native and workload.shape.hidden_size % NATIVE_WIDTH_MULTIPLE == 0:
        probe_of_loss = loss_probe(facts, options, workload, plan.micro_batch.value)
        times = replace(times, loss=_announced(probe_of_loss, "the loss", announce))
        plan = make_plan(facts, options, workload, times)
    if options.compile != "auto" or not plan.compile.value:
        return times
    probe = block_probe(facts, workload, plan)
    saved = probe.saved()
    if saved is not None or announce is None:
        return replace(times, block=saved)
    announce("compiling one block, once for this machine and shape: up to a minute")
    return with_fresh_block(times, probe, announce)


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


@contextmanager
def _multiplying(precision: MatmulPrecision) -> Iterator[None]:
    """Set the precision of fp32 products within the block."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
