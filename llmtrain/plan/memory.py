"""Predict the peak memory of a training process, itemised, from shapes alone.

A training step has moments at which its memory may be at its peak, each a sum of what is alive
then; the largest counts:

    in the loss             activations of all layers, one chunk of logits, the head's gradients
    in the first backward   activations of all layers, and what the last block's backward works with
    in the last backward    all gradients, and what the first block's backward works with
    in the update           all gradients, and the stack of matrices that Muon works with

On a CPU the C library's allocator needs a measured share more than what is alive, as freed blocks
do not fit the next tensors. torch's allocator for CUDA needs next to nothing more.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from llmtrain.plan.tensor_bytes import (
    FP32_BYTES,
    HALF_BYTES,
    TrainingSetup,
    block_bytes_per_token,
    cast_parameters,
    communication_bytes,
    copied_bytes,
    gathered_bytes,
    gradient_bytes,
    joined_parameters,
    loss_bytes,
    mask_bytes,
    native_block_bytes_without_gates,
    native_working_bytes_per_token,
    optimizer_bytes,
    product_bytes_per_token,
    saved_bytes_per_token,
    update_bytes,
    weight_bytes,
)
from llmtrain.profile.shape import ModelShape

# How far most measured peaks are off, with the CPU build of torch and on CUDA; a CUDA build on a
# CPU was up to 9% off: docs/measurements/memory.md.
PREDICTION_ERROR = 0.05
# What a process holds beside its model, for torch 2.13: the libraries that a run imports, what an
# evaluation leaves, and for CUDA its context. This and what follows for a CPU was fitted on two
# cores of an Intel Xeon with AMX.
_LIBRARIES_BYTES = {"cpu": 312 << 20, "mps": 450 << 20, "cuda": 700 << 20}
# More on a CPU where torch was built for CUDA: measured of torch 2.14.1+cu130 on Linux.
_CUDA_BUILD_BYTES = 420 << 20
_COMPILER_BYTES = 130 << 20  # that compiling leaves in this process, from the compiler's cache
# More with an empty cache. Fitted to one run of cpu-tiny on two Zen 4 cores: 1,003 MiB measured
# where 881 were predicted. It only raises the prediction of the first run of a shape.
_COMPILING_ANEW_BYTES = 120 << 20
# Of what is alive at the peak: `python -m tests.benchmarks.memory_error` shows how well it holds.
# fp32 products also pack their operands, in memory that is not torch's.
_CPU_SLACK = {"half": 0.36, "fp32": 0.55}
# Of Muon's working memory in half precision, which fragments the heap: directions are in fp32
# before they are rounded, whatever products are in.
_CPU_UPDATE_SLACK = 0.7
_ACCELERATOR_SLACK = {"cuda": 0.012, "mps": 0.06}
_ACCELERATOR_WORKSPACE_BYTES = 70 << 20  # of the libraries that multiply matrices
# Working memory of a block's backward on a CPU, as a share of all that its forward could keep:
# recomputed activations, and gradients of activations. Measured.
_BACKWARD_SHARE = {"off": 0.2, "selective": 1.1, "full": 1.45}
_COMPILED_BACKWARD_SHARE = 0.75


@dataclass(frozen=True, slots=True)
class MemoryPrediction:
    """The memory of one process at its peak, by purpose."""

    parameters_bytes: int = 0
    gradients_bytes: int = 0
    optimizer_bytes: int = 0
    weight_casts_bytes: int = 0
    gathered_bytes: int = 0
    activations_bytes: int = 0
    loss_bytes: int = 0
    working_bytes: int = 0
    caches_bytes: int = 0
    communication_bytes: int = 0
    libraries_bytes: int = 0
    slack_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """The predicted peak."""
        return sum(asdict(self).values())

    def measured_on(self, device_kind: str) -> int:
        """Return the part that a run measures: on a GPU without the driver's context."""
        return self.total_bytes - (0 if device_kind == "cpu" else self.libraries_bytes)

    def of_processes(self, processes: int) -> MemoryPrediction:
        """Return the sum over so many equal processes."""
        return MemoryPrediction(**{name: processes * n for name, n in asdict(self).items()})

    def items(self) -> dict[str, int]:
        """Return every part by name, the total last."""
        return asdict(self) | {"total_bytes": self.total_bytes}


@dataclass(frozen=True, slots=True)
class _PeakCandidate:
    """The memory at a moment that may be the peak, besides weights and optimizer state."""

    gradients_bytes: int = 0
    weight_casts_bytes: int = 0
    activations_bytes: int = 0
    loss_bytes: int = 0
    working_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        return sum(asdict(self).values())


def predict_training(shape: ModelShape, setup: TrainingSetup) -> MemoryPrediction:
    """Predict the peak of one process that trains `shape` on micro-batches of full contexts."""
    on_cpu = setup.device_kind == "cpu"
    candidates = _cpu_candidates(shape, setup) if on_cpu else _accelerator_candidates(shape, setup)
    peak = max(candidates, key=lambda candidate: candidate.total_bytes)
    state = weight_bytes(shape, setup) // setup.shards
    optimizer_state = optimizer_bytes(shape, setup.optimizer, setup.lora) // setup.shards
    communication = communication_bytes(shape, setup)
    gathered = gathered_bytes(shape, setup)
    if on_cpu:
        communication += copied_bytes(shape, setup)  # beside a GPU it is other memory
        slack = _cpu_slack_bytes(shape, peak, setup)
    else:
        torch_bytes = state + optimizer_state + communication + gathered + peak.total_bytes
        slack = int(_ACCELERATOR_SLACK[setup.device_kind] * torch_bytes)
    return MemoryPrediction(
        **asdict(peak),
        parameters_bytes=state,
        optimizer_bytes=optimizer_state,
        communication_bytes=communication,
        gathered_bytes=gathered,
        libraries_bytes=libraries_bytes(setup.device_kind, setup.torch_build)
        + (_COMPILER_BYTES if setup.compiled and on_cpu else 0),
        slack_bytes=slack,
    )


def whole_weights_fit(
    prediction: MemoryPrediction, shape: ModelShape, setup: TrainingSetup
) -> bool:
    """Return whether a process of a sharded model can gather all weights between two steps.

    They then take the place of what a step works with. `prediction` is of one process.
    """
    stays = prediction.parameters_bytes + prediction.optimizer_bytes + prediction.libraries_bytes
    blocks = setup.element_bytes * shape.num_layers * shape.block_matrix_parameters
    whole = blocks + FP32_BYTES * shape.embedding_parameters
    return whole <= prediction.total_bytes - stays


def compiling_anew_bytes(*, is_compiled: bool) -> int:
    """Return what compiling a block without the compiler's cache leaves in the process, beyond
    what is counted for a plan that is compiled.
    """
    return _COMPILING_ANEW_BYTES + (0 if is_compiled else _COMPILER_BYTES)


def libraries_bytes(device_kind: str, torch_build: str = "cpu") -> int:
    """Return what a process holds of the device's memory without a model.

    `torch_build`: what torch was compiled for, as facts have it (`cpu`, `cu130`, `for CUDA`).
    """
    is_for_cuda = torch_build.lower().removeprefix("for ").startswith("cu")
    more = _CUDA_BUILD_BYTES if device_kind == "cpu" and is_for_cuda else 0
    return _LIBRARIES_BYTES[device_kind] + more


def _cpu_candidates(shape: ModelShape, setup: TrainingSetup) -> tuple[_PeakCandidate, ...]:
    """Return what is alive on a CPU in the loss, in the first backward and in the update."""
    tokens = setup.micro_batch * shape.context
    state = gradient_bytes(shape, setup) // setup.shards
    head = shape.vocab_size * shape.hidden_size if setup.lora is None else 0
    gradients = state if setup.accumulates else 0
    is_cast = setup.half_precision and setup.frozen_bytes == FP32_BYTES and setup.shards == 1
    casts = HALF_BYTES * cast_parameters(shape, setup) if is_cast else 0
    saved = tokens * saved_bytes_per_token(shape, setup) + mask_bytes(shape, setup)
    hidden_gradients = 2 * tokens * shape.hidden_size * setup.element_bytes
    recomputed = tokens * _working_bytes_per_token(shape, setup)
    update = update_bytes(shape, setup)
    return (
        _PeakCandidate(gradients, casts, saved, loss_bytes(shape, setup)),
        _PeakCandidate(gradients, casts, saved, hidden_gradients + FP32_BYTES * head, recomputed),
        _PeakCandidate(state, casts if setup.keeps_casts else 0, working_bytes=update),
    )


def _working_bytes_per_token(shape: ModelShape, setup: TrainingSetup) -> int:
    """Return what the backward of one block on a CPU works with."""
    if setup.native_block:
        again = native_block_bytes_without_gates(shape) if setup.checkpointing == "full" else 0
        return native_working_bytes_per_token(shape, setup) + again
    share = _COMPILED_BACKWARD_SHARE if setup.compiled else _BACKWARD_SHARE[setup.checkpointing]
    return int(share * block_bytes_per_token(shape, setup))


def _cpu_slack_bytes(shape: ModelShape, peak: _PeakCandidate, setup: TrainingSetup) -> int:
    share = _CPU_SLACK["half" if setup.half_precision else "fp32"]
    updating = update_bytes(shape, setup) * HALF_BYTES // setup.element_bytes
    return int(share * peak.total_bytes + _CPU_UPDATE_SLACK * updating)


def _accelerator_candidates(shape: ModelShape, setup: TrainingSetup) -> tuple[_PeakCandidate, ...]:
    """Return the candidates on a GPU, in bytes that torch's allocator holds."""
    tokens = setup.micro_batch * shape.context
    state = gradient_bytes(shape, setup) // setup.shards
    hidden = tokens * shape.hidden_size
    head = FP32_BYTES * shape.vocab_size * shape.hidden_size if setup.lora is None else 0
    gradients = state if setup.accumulates else 0
    in_forward, in_first, in_last = _accelerator_casts(shape, setup)
    activations, mask = tokens * saved_bytes_per_token(shape, setup), mask_bytes(shape, setup)
    saved, first_saved = activations + mask, activations // shape.num_layers + mask
    if setup.checkpointing == "full":
        first_saved = FP32_BYTES * hidden + mask
    working = _accelerator_working_bytes(shape, setup)
    workspace = _ACCELERATOR_WORKSPACE_BYTES
    whole = _whole_gradients(shape, setup)
    return (
        _PeakCandidate(gradients, in_forward, saved, loss_bytes(shape, setup), workspace),
        _PeakCandidate(
            gradients, in_first, saved, head + setup.element_bytes * hidden, workspace + working
        ),
        _PeakCandidate(state + whole, in_last, first_saved, working_bytes=workspace + working),
        _PeakCandidate(
            state, in_last if setup.keeps_casts else 0, 0, 0, workspace + update_bytes(shape, setup)
        ),
    )


def _whole_gradients(shape: ModelShape, setup: TrainingSetup) -> int:
    """Return the bytes of a sharded model's gradients before they are scattered.

    They are those of one block, and until the end those of embedding and head.
    """
    if setup.shards == 1:
        return 0
    block = setup.element_bytes * shape.block_matrix_parameters
    return block + FP32_BYTES * shape.embedding_parameters


def _accelerator_casts(shape: ModelShape, setup: TrainingSetup) -> tuple[int, int, int]:
    """Return the bytes of half-precision weights in the forward, the first and the last backward.

    The last backward holds those of its block and their gradients. Autocast keeps all casts until
    the forward ends, except in compiled blocks. What blocks join is saved for their backward.
    """
    if not setup.half_precision or setup.frozen_bytes < FP32_BYTES:
        return 0, 0, 0
    joined = HALF_BYTES * joined_parameters(shape, setup)
    of_all = joined * (shape.num_layers if setup.checkpointing == "off" else 1)
    if setup.shards > 1:
        return of_all, of_all, joined
    block = HALF_BYTES * shape.block_matrix_parameters
    every = HALF_BYTES * cast_parameters(shape, setup)
    if setup.keeps_casts:
        return every + of_all, every + of_all, every + joined
    if setup.checkpointing == "off":
        return every, every, 2 * block
    return (block if setup.compiled else shape.num_layers * block), block, 2 * block


def _accelerator_working_bytes(shape: ModelShape, setup: TrainingSetup) -> int:
    """Return the working memory of one block's backward: recomputation and gradients."""
    size, hidden = setup.element_bytes, shape.hidden_size
    recomputed = {
        "off": 0,
        "selective": block_bytes_per_token(shape, setup) - product_bytes_per_token(shape, setup),
        "full": block_bytes_per_token(shape, setup),
    }[setup.checkpointing]
    widest = (FP32_BYTES + size) * hidden
    if not setup.compiled:
        widest = size * (2 * hidden + shape.intermediate_size)
    if setup.checkpointing == "full":
        widest += FP32_BYTES * hidden  # the block's output, recomputed
    return setup.micro_batch * shape.context * (recomputed + widest)
