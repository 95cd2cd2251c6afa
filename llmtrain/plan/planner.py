"""Make a `Plan`: from facts, options and a workload to decisions with reasons. Pure.

`planned` adds what follows from a plan; `llmtrain.engine.plan_run` goes from a run to its plan.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from pydantic import TypeAdapter

from llmtrain.choice import (
    ActivationCheckpointing,
    AttentionKernel,
    Backend,
    BlockKernels,
    Choice,
    DeviceKind,
    LossKernel,
    MatmulPrecision,
    Precision,
    Sharding,
)
from llmtrain.machine.facts import CpuTimes, Facts, GpuTimes, MatmulTimes
from llmtrain.plan import decisions as decide
from llmtrain.plan import kernels, memory_fit, numerics
from llmtrain.plan.gpu_kernels import choose_own_kernels
from llmtrain.plan.memory import (
    MemoryPrediction,
    compiling_anew_bytes,
    predict_training,
    whole_weights_fit,
)
from llmtrain.plan.native_kernels import (
    choose_keeping_gates,
    choose_native_block,
    times_to_plan_with,
)
from llmtrain.plan.rounds import planned_sync_every, why_no_rounds
from llmtrain.plan.tensor_bytes import TrainingSetup, frozen_bytes
from llmtrain.plan.workload import Workload
from llmtrain.profile.quantities import MOST_THREADS
from llmtrain.profile.schema import DeviceSection


@dataclass(frozen=True, slots=True)
class Plan:
    """The decisions about how a run uses the machine."""

    device: Choice[DeviceKind]
    precision: Choice[Precision]
    matmul_precision: Choice[MatmulPrecision]
    processes: Choice[int]
    sharding: Choice[Sharding]
    sync_every: Choice[int]  # steps between two exchanges of the ranks
    threads: Choice[int]
    numa_binding: Choice[bool]
    micro_batch: Choice[int]
    accumulation: Choice[int]
    attention: Choice[AttentionKernel]
    loss: Choice[LossKernel]
    block_kernels: Choice[BlockKernels]
    compile: Choice[bool]
    activation_checkpointing: Choice[ActivationCheckpointing]
    keep_weight_casts: Choice[bool]
    backend: Choice[Backend]
    grad_scaler: Choice[bool]
    workers: Choice[int]
    pin_memory: Choice[bool]

    def choices(self) -> Iterator[tuple[str, Choice[Any]]]:
        """Yield every decision by name."""
        for field in fields(self):
            yield field.name, getattr(self, field.name)

    @property
    def may_take_rounds(self) -> bool:
        """True if its processes may take steps of their own between two exchanges."""
        return (
            why_no_rounds(self.processes.value, self.sharding.value, self.precision.value) is None
        )

    def document(self) -> dict[str, dict[str, Any]]:
        """Return `{name: {value, reason}}`, as run.yaml and `--json` hold it."""
        return {name: {"value": c.value, "reason": c.reason} for name, c in self.choices()}

    def numerics(self) -> dict[str, Any]:
        """Return the decisions that a bitwise equal resume needs unchanged."""
        return {name: getattr(self, name).value for name in _NUMERICS}

    def has_numerics(self, recorded: Mapping[str, Any]) -> bool:
        """Return True if the `numerics` of a plan, of an earlier llmtrain too, are this plan's.

        Native blocks compute the same bits whatever they keep for their backward.
        """
        known = _BEFORE | dict(recorded)
        if self.block_kernels.value == "native":
            known["activation_checkpointing"] = self.activation_checkpointing.value
        return all(known.get(name) == value for name, value in self.numerics().items())


@dataclass(frozen=True, slots=True)
class InferencePlan:
    """The decisions about how evaluation and generation use the machine."""

    device: Choice[DeviceKind]
    precision: Choice[Precision]
    matmul_precision: Choice[MatmulPrecision]
    threads: Choice[int]
    workers: Choice[int]


_NUMERICS = (
    "device",
    "precision",
    "matmul_precision",
    "processes",
    "sharding",
    "threads",
    "micro_batch",
    "accumulation",
    "attention",
    "loss",
    "block_kernels",
    "compile",
    "activation_checkpointing",
    "grad_scaler",
)

# what runs computed before it was a decision
_BEFORE: dict[str, Any] = {
    "loss": "chunks",
    "block_kernels": "torch",
    "sharding": "replicate",
    "sync_every": 1,
    "numa_binding": False,
}

_LARGEST = dict.fromkeys(("processes", "threads", "workers"), MOST_THREADS)


def plan_from_document(document: Mapping[str, Mapping[str, Any]]) -> Plan:
    """Return the plan that `Plan.document` wrote; decisions that are none any more are ignored.

    Raises KeyError where a decision is missing, ValueError where one is invalid.
    """
    before = {
        name: {"value": value, "reason": "before it was a decision"}
        for name, value in _BEFORE.items()
    }
    known = {field.name: (before | dict(document))[field.name] for field in fields(Plan)}
    plan = TypeAdapter(Plan).validate_python(known)
    for name, choice in plan.choices():
        if type(choice.value) is int and not 0 <= choice.value <= _LARGEST.get(name, 2**31):
            raise ValueError(f"{name} is {choice.value}")
    return plan


def make_plan(
    facts: Facts,
    options: DeviceSection,
    workload: Workload,
    times: CpuTimes | None = None,
    gpu_times: GpuTimes | None = None,
) -> Plan:
    """Return every decision for a machine. Raises UsageError and DoesNotFitError.

    `times` are the CPU's measurements; without them the CPU computes in fp32. `gpu_times` are a
    GPU's.
    """
    plan = _plan(facts, options, workload, times, gpu_times)
    if plan.sharding.value != "replicate" and plan.block_kernels.value == "native":
        # A sharded model's hooks gather operands that native kernels do not take.
        options = options.model_copy(update={"block_kernels": "torch"})
        return _plan(facts, options, workload, times, gpu_times)
    return plan


def _plan(
    facts: Facts,
    options: DeviceSection,
    workload: Workload,
    times: CpuTimes | None,
    gpu_times: GpuTimes | None,
) -> Plan:
    device = decide.choose_device(facts, options)
    kind = device.value
    processes = decide.choose_processes(facts, options, workload, kind)
    if times is not None and kind == "cpu":
        times = times_to_plan_with(facts, options, workload, times, processes.value)
    local = workload.launched_local_processes or processes.value
    own = choose_own_kernels(options, workload, gpu_times, processes.value)
    computes = _choose_computation(facts, options, workload, kind, times, own, processes.value)
    precision = computes.precision.value
    setup = _setup(workload, kind, processes.value, computes)
    gates = choose_keeping_gates(times if kind == "cpu" else None)
    sharding, checkpointing, micro_batch = memory_fit.choose_what_fits(
        facts, options, workload, setup, local, gates
    )
    accumulation = memory_fit.choose_accumulation(workload, processes.value, micro_batch.value)
    return Plan(
        device=device,
        precision=computes.precision,
        matmul_precision=computes.matmul_precision,
        processes=processes,
        sharding=sharding,
        sync_every=planned_sync_every(workload, processes.value, sharding.value, precision),
        threads=decide.choose_threads(facts, options, local),
        numa_binding=decide.choose_numa_binding(facts, options, kind, local),
        micro_batch=micro_batch,
        accumulation=accumulation,
        attention=computes.attention,
        loss=kernels.choose_loss(facts, options, kind, workload, precision, times, own),
        block_kernels=computes.block_kernels,
        compile=computes.compile,
        activation_checkpointing=checkpointing,
        keep_weight_casts=numerics.choose_keep_weight_casts(
            precision, accumulation.value, sharding.value, computes.block_kernels.value
        ),
        backend=decide.choose_backend(facts, options, kind),
        grad_scaler=numerics.choose_grad_scaler(precision),
        workers=decide.choose_workers(facts, options),
        pin_memory=decide.choose_pin_memory(options, kind),
    )


@dataclass(frozen=True, slots=True)
class _Computation:
    """How blocks are computed."""

    precision: Choice[Precision]
    matmul_precision: Choice[MatmulPrecision]
    compile: Choice[bool]
    attention: Choice[AttentionKernel]
    block_kernels: Choice[BlockKernels]


def _choose_computation(
    facts: Facts,
    options: DeviceSection,
    workload: Workload,
    kind: DeviceKind,
    times: CpuTimes | None,
    own: Choice[bool],
    processes: int,
) -> _Computation:
    """Choose precision, compiling and kernels, which depend on each other.

    `own`: whether a GPU is to use our own.
    """
    products = times.matmul if times is not None else None
    chosen = numerics.choose_precision(facts, options, kind, products)
    precision = chosen.value
    decide.refuse_loss_scale_of_local_steps(workload, precision)
    native_block = choose_native_block(options, kind, workload, precision, times, processes)
    compilation = numerics.choose_compilation(
        facts, options, kind, workload, times, processes, native_block
    )
    attention = kernels.choose_attention(
        options,
        kind,
        times,
        masked=workload.mask_documents,
        can_use_flex=kernels.can_use_flex(workload, kind, precision, compilation.value),
        precision=precision,
        native_block=native_block.value,
    )
    matmul_precision = numerics.choose_matmul_precision(options, kind, precision, products)
    block_kernels = kernels.choose_block_kernels(
        facts, options, kind, workload, precision, compilation.value, own, native_block
    )
    return _Computation(chosen, matmul_precision, compilation, attention, block_kernels)


def make_inference_plan(
    facts: Facts, options: DeviceSection, matmul_times: MatmulTimes | None = None
) -> InferencePlan:
    """Return the decisions that evaluation and generation need. Raises UsageError."""
    device = decide.choose_device(facts, options)
    precision = numerics.choose_precision(facts, options, device.value, matmul_times)
    return InferencePlan(
        device=device,
        precision=precision,
        matmul_precision=numerics.choose_matmul_precision(
            options, device.value, precision.value, matmul_times
        ),
        threads=decide.choose_threads(facts, options, 1),
        workers=decide.choose_workers(facts, options),
    )


def predict(workload: Workload, plan: Plan) -> MemoryPrediction:
    """Predict the peak on one device: of all this machine's processes on a CPU, of one on a GPU."""
    one = predict_training(workload.shape, _setup_of(workload, plan))
    local = workload.launched_local_processes or plan.processes.value
    if plan.device.value != "cpu":
        return one
    every = one.of_processes(local)
    if not workload.compiles_anew:
        return every
    more = compiling_anew_bytes(is_compiled=plan.compile.value)
    return replace(every, libraries_bytes=every.libraries_bytes + more)


def can_sample(workload: Workload, plan: Plan) -> bool:
    """Return whether a run has room for the whole weights, which samples are drawn from."""
    if plan.sharding.value == "replicate":
        return True
    setup = _setup_of(workload, plan)
    return whole_weights_fit(predict_training(workload.shape, setup), workload.shape, setup)


def _setup_of(workload: Workload, plan: Plan) -> TrainingSetup:
    return replace(
        _setup(workload, plan.device.value, plan.processes.value, plan),
        micro_batch=plan.micro_batch.value,
        checkpointing=plan.activation_checkpointing.value,
        accumulates=plan.accumulation.value > 1,
        shards=workload.shards(plan.sharding.value, plan.processes.value),
    )


def _setup(
    workload: Workload, kind: DeviceKind, processes: int, computes: _Computation | Plan
) -> TrainingSetup:
    """Return what memory depends on, apart from what is chosen by what fits."""
    precision = computes.precision.value
    return TrainingSetup(
        micro_batch=1,
        half_precision=precision != "fp32",
        device_kind=kind,
        compiled=computes.compile.value,
        optimizer=workload.optimizer,
        processes=processes,
        masks_pairs=workload.masks_pairs(computes.attention.value),
        native_block=computes.block_kernels.value == "native",
        joins_weights=computes.block_kernels.value == "triton",
        native_loss=isinstance(computes, Plan) and computes.loss.value == "native",
        torch_build=workload.torch_build,
        lora=workload.lora,
        sync_every=workload.sync_every,
        is_sync_delayed=workload.sync_delay > 0,
        frozen_bytes=frozen_bytes(workload, precision),
    )
