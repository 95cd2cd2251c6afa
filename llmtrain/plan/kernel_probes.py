"""The benchmarks of kernels on this CPU: products, attention, the loss, and a compiled block."""

from __future__ import annotations

from collections.abc import Callable

from llmtrain.choice import Choice, Precision
from llmtrain.machine.facts import (
    AttentionTimes,
    BlockTimes,
    CpuTimes,
    Facts,
    LossTimes,
    MatmulTimes,
)
from llmtrain.machine.matmul_timing import time_matmuls
from llmtrain.machine.measurement_cache import MeasurementKey, measurement_key
from llmtrain.model.timing import multiplied_in, time_attention, time_block, time_loss
from llmtrain.ops.native.library import kernel_source, load_kernels, unsuitable
from llmtrain.plan import decisions as decide
from llmtrain.plan import numerics
from llmtrain.plan.native_kernels import wants_native
from llmtrain.plan.planner import Plan
from llmtrain.plan.probe import Probe, block_arguments, lora_argument
from llmtrain.plan.workload import Workload
from llmtrain.profile.schema import DeviceSection
from llmtrain.profile.shape import ModelShape

PROBE_TOKENS = 2048

Announce = Callable[[str], None]


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
        native=kernel_source(precision).digest(),
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

    Only with `announce`, or if they are asked for, they are compiled where they have not been yet.
    """
    precision = numerics.choose_precision(facts, options, "cpu", times.matmul).value
    is_asked_for = "native" in _asked(options)
    if unsuitable(facts, precision) is not None and not is_asked_for:
        return None
    processes = decide.choose_processes(facts, options, workload, "cpu").value
    if not always and not wants_native(facts, options, workload, times, processes):
        return None
    return load_kernels(
        facts,
        announce,
        precision=precision,
        compiles=is_asked_for or announce is not None,
    )


def _asked(options: DeviceSection) -> tuple[str, ...]:
    return options.attention, options.loss, options.block_kernels


def loss_probe(
    facts: Facts, options: DeviceSection, workload: Workload, micro_batch: int
) -> Probe[LossTimes]:
    """Return the benchmark of the loss, in chunks and by the native kernel, which is loaded."""
    shape, threads = workload.shape, cpu_threads(facts, options, workload)
    tokens, trains_head = micro_batch * shape.context, workload.lora is None
    key = measurement_key(
        facts,
        "loss",
        threads,
        hidden=shape.hidden_size,
        vocabulary=shape.vocab_size,
        tokens=tokens,
        native=kernel_source().digest(),
        **({} if trains_head else {"trained": "adapters"}),
    )
    return Probe(key, LossTimes, lambda: time_loss(shape, tokens, threads, trains_head))


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
    if workload.mask_documents:
        others["documents"] = "masked"
    if workload.lora is not None and what == "block":
        others["lora"] = lora_argument(workload.lora)
    return measurement_key(facts, what, threads, **block_arguments(workload.shape), **others)
