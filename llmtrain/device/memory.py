"""Predicted peak memory of a training process, itemised, from shapes alone.

A training step has three moments at which its memory may be at its peak, each a sum of what is
alive then; the largest counts:

    in the loss       activations of all layers, one chunk of logits, the head's gradients
    in the backward   activations of all layers, and what the last block's backward works with
    in the update     all gradients, and the stack of matrices that Muon works with

The activation counts are those of what autograd saves in `llmtrain.model.decoder`; a test
compares them with the tensors that are really saved. On a CPU the C library's allocator needs more
than what is alive, as freed blocks do not fit the next tensors: a share that was measured. On a
GPU all of it is counted together.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from llmtrain.device.choice import ActivationCheckpointing, OptimizerName
from llmtrain.profile.shape import ModelShape

_FP32 = 4
_HALF = 2
# Of logits. In half precision about the last-level cache, where more is no faster; fp32 products
# pack the whole head for every chunk, and with 32 MiB too the step takes 7% longer.
_CPU_LOSS_CHUNK_BYTES = {_HALF: 32 << 20, _FP32: 128 << 20}
_ACCELERATOR_LOSS_CHUNK_BYTES = 1 << 30  # large enough that products fill the device
MUON_STACK_BYTES = 64 << 20  # of matrices that are made orthogonal at once
# What a process holds beside its model: measured for torch 2.13 with the libraries that a
# run imports and what an evaluation leaves, and for CUDA the context and the workspaces.
_LIBRARIES_BYTES = {"cpu": 381 << 20, "mps": 450 << 20, "cuda": 1400 << 20}
_COMPILER_BYTES = 62 << 20  # what compiling leaves in this process
# Of what is alive at the peak: `python -m tests.benchmarks.memory_error` shows how well it holds.
# fp32 products also pack their operands, in memory that is not torch's.
_CPU_SLACK = {"half": 0.316, "fp32": 0.51}
_CPU_UPDATE_SLACK = 0.75  # of what Muon works with, which leaves holes of other sizes
_ACCELERATOR_SLACK = 0.06  # of activations and loss
# What a block's backward works with, as a share of all that its forward could keep: what it
# computes again, and gradients of activations. Measured.
_BACKWARD_SHARE = {"off": 0.2, "selective": 0.9, "full": 1.15}
_COMPILED_BACKWARD_SHARE = 0.75


@dataclass(frozen=True, slots=True)
class MemoryPrediction:
    """Where the bytes of one process go at the peak of a training step."""

    parameters_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    weight_casts_bytes: int
    activations_bytes: int
    loss_bytes: int
    working_bytes: int
    communication_bytes: int
    libraries_bytes: int
    slack_bytes: int

    @property
    def total_bytes(self) -> int:
        """The predicted peak."""
        return sum(asdict(self).values())

    def of_processes(self, processes: int) -> MemoryPrediction:
        """The same for so many equal processes together."""
        return MemoryPrediction(**{name: processes * n for name, n in asdict(self).items()})

    def items(self) -> dict[str, int]:
        """Every part by name, the total last."""
        return asdict(self) | {"total_bytes": self.total_bytes}


@dataclass(frozen=True, slots=True)
class Computing:
    """How a process trains, as far as its memory depends on it."""

    micro_batch: int
    half_precision: bool
    device_kind: str
    checkpointing: ActivationCheckpointing = "off"
    compiled: bool = False
    accumulates: bool = False  # gradients over several micro-batches
    optimizer: OptimizerName = "adamw"
    processes: int = 1

    @property
    def element_bytes(self) -> int:
        """Of a number that a product reads."""
        return _HALF if self.half_precision else _FP32

    @property
    def keeps_casts(self) -> bool:
        """Whether half-precision copies of the weights live from one micro-batch to the next."""
        return self.half_precision and self.accumulates


@dataclass(frozen=True, slots=True)
class _Moment:
    """What is alive beside weights and optimizer state."""

    gradients_bytes: int = 0
    weight_casts_bytes: int = 0
    activations_bytes: int = 0
    loss_bytes: int = 0
    working_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        return sum(asdict(self).values())


def predict_training(shape: ModelShape, how: Computing) -> MemoryPrediction:
    """The peak of one process that trains `shape` on micro-batches of full contexts."""
    state = _FP32 * shape.parameters
    moments = _moments(shape, how) if how.device_kind == "cpu" else (_all_at_once(shape, how),)
    peak = max(moments, key=lambda moment: moment.total_bytes)
    compiler = _COMPILER_BYTES if how.compiled and how.device_kind == "cpu" else 0
    return MemoryPrediction(
        **asdict(peak),
        parameters_bytes=state,
        optimizer_bytes=_optimizer_bytes(shape, how.optimizer),
        communication_bytes=state if how.processes > 1 else 0,
        libraries_bytes=_LIBRARIES_BYTES[how.device_kind] + compiler,
        slack_bytes=_slack_bytes(shape, peak, how),
    )


def predict_inference_bytes(shape: ModelShape, device_kind: str) -> int:
    """The most that one process takes to use a model for one text: all else is small."""
    rotations = 3 * _FP32 * shape.context * shape.head_dim // 2  # angles, cosines and sines
    caches = 2 * _FP32 * shape.num_layers * shape.kv_width * shape.context
    return _FP32 * shape.parameters + rotations + caches + _LIBRARIES_BYTES[device_kind]


def checkpoint_bytes(shape: ModelShape, optimizer: OptimizerName) -> int:
    """What the tensors of a checkpoint take: weights and optimizer state."""
    return _FP32 * shape.parameters + _optimizer_bytes(shape, optimizer)


def _moments(shape: ModelShape, how: Computing) -> tuple[_Moment, _Moment, _Moment]:
    """In the loss, in the backward of the last block, in the update."""
    tokens = how.micro_batch * shape.context
    state, head = _FP32 * shape.parameters, shape.vocab_size * shape.hidden_size
    gradients = state if how.accumulates else 0
    casts = _HALF * _cast_parameters(shape, how) if how.half_precision else 0
    kept = tokens * saved_bytes_per_token(
        shape, how.half_precision, how.checkpointing, compiled=how.compiled
    )
    hidden_gradients = 2 * tokens * shape.hidden_size * how.element_bytes
    return (
        _Moment(gradients, casts, kept, _loss_bytes(shape, tokens, how)),
        _Moment(
            gradients, casts, kept, hidden_gradients + _FP32 * head, _backward_bytes(shape, how)
        ),
        _Moment(state, casts if how.keeps_casts else 0, working_bytes=_update_bytes(shape, how)),
    )


def _all_at_once(shape: ModelShape, how: Computing) -> _Moment:
    """More than is alive at any moment."""
    loss, _, update = _moments(shape, how)
    again = 0 if how.checkpointing == "off" else how.micro_batch * shape.context
    return replace(
        loss,
        gradients_bytes=update.gradients_bytes,
        working_bytes=again * _block_bytes(shape, how.half_precision),
    )


def _slack_bytes(shape: ModelShape, peak: _Moment, how: Computing) -> int:
    if how.device_kind == "cpu":
        share = _CPU_SLACK["half" if how.half_precision else "fp32"]
        return int(share * peak.total_bytes + _CPU_UPDATE_SLACK * _update_bytes(shape, how))
    return int(_ACCELERATOR_SLACK * (peak.activations_bytes + peak.loss_bytes))


def _backward_bytes(shape: ModelShape, how: Computing) -> int:
    share = _COMPILED_BACKWARD_SHARE if how.compiled else _BACKWARD_SHARE[how.checkpointing]
    tokens = how.micro_batch * shape.context
    return int(share * tokens * _block_bytes(shape, how.half_precision))


def _optimizer_bytes(shape: ModelShape, optimizer: OptimizerName) -> int:
    """AdamW's two moments of everything, or Muon's one of a hidden matrix."""
    one_moment = shape.num_layers * shape.block_matrix_parameters if optimizer == "muon" else 0
    return _FP32 * (2 * shape.parameters - one_moment)


def _update_bytes(shape: ModelShape, how: Computing) -> int:
    """Muon: a stack of matrices, their directions, and those before and after an iteration."""
    if how.optimizer != "muon":
        return 0
    matrix = shape.hidden_size * shape.intermediate_size * how.element_bytes
    stacked = min(3 * shape.num_layers, max(1, MUON_STACK_BYTES // matrix)) * matrix
    return 4 * stacked


def loss_chunk_tokens(vocab_size: int, device_kind: str, element_bytes: int) -> int:
    """Tokens whose logits, of so many bytes each, the loss holds at once."""
    budget = _ACCELERATOR_LOSS_CHUNK_BYTES
    if device_kind == "cpu":
        budget = _CPU_LOSS_CHUNK_BYTES.get(element_bytes, _CPU_LOSS_CHUNK_BYTES[_FP32])
    return max(64, budget // (element_bytes * vocab_size) // 64 * 64)


def _cast_parameters(shape: ModelShape, how: Computing) -> int:
    """Weights whose cast lives from the forward to the backward, or on."""
    if not how.keeps_casts and how.checkpointing != "off":
        return shape.block_matrix_parameters
    head = shape.vocab_size * shape.hidden_size if how.keeps_casts else 0
    return shape.num_layers * shape.block_matrix_parameters + head


def saved_bytes_per_token(
    shape: ModelShape,
    half_precision: bool,
    checkpointing: ActivationCheckpointing = "off",
    *,
    compiled: bool = False,
) -> int:
    """Bytes kept from the forward to the backward, a token, over all blocks and the final norm."""
    final = _norm_bytes(shape.hidden_size, half_precision)
    if checkpointing == "off":
        return shape.num_layers * _block_bytes(shape, half_precision) + final
    kept = _FP32 * shape.hidden_size
    if checkpointing == "selective":
        kept += _product_bytes(shape, half_precision, compiled=compiled)
    return shape.num_layers * kept + final


def _product_bytes(shape: ModelShape, half_precision: bool, *, compiled: bool) -> int:
    """What the products and the attention of a block give.

    Its last product's result no backward asks for: compiled it is not kept.
    """
    widths = 2 * shape.attention_width + 2 * shape.kv_width + shape.hidden_size
    widths += 2 * shape.intermediate_size + (0 if compiled else shape.hidden_size)
    return (_HALF if half_precision else _FP32) * widths


def _block_bytes(shape: ModelShape, half_precision: bool) -> int:
    size = _HALF if half_precision else _FP32
    hidden, queries, keys = shape.hidden_size, shape.attention_width, shape.kv_width
    normed_heads = queries + keys if shape.qk_norm else 0
    return (
        2 * _norm_bytes(hidden, half_precision)
        + 2 * _FP32 * normed_heads  # query and key, before their gains and after
        + _FP32 * normed_heads // shape.head_dim  # the rms of each head
        + size * (queries + 2 * keys)  # query, key and value, rotated
        + 2 * size * queries  # attention's output, and a copy with the heads side by side
        + _FP32 * shape.num_heads  # the softmax's normaliser
        + 4 * size * shape.intermediate_size  # gate, silu(gate), up, and their product
    )


def _norm_bytes(width: int, half_precision: bool) -> int:
    """Input, normalised input and rms in fp32, and the output that the next matrix reads."""
    return width * (2 * _FP32 + (_HALF if half_precision else _FP32)) + _FP32


def _loss_bytes(shape: ModelShape, tokens: int, how: Computing) -> int:
    size, head = how.element_bytes, shape.vocab_size * shape.hidden_size
    chunk = min(tokens, loss_chunk_tokens(shape.vocab_size, how.device_kind, size))
    logits = chunk * shape.vocab_size
    return (
        logits * size  # overwritten by their own gradient
        + tokens * shape.hidden_size * size  # gradient of the hidden states
        + head * _FP32  # gradient of the head, added to the embedding's at the end
        + head * size * (2 if how.half_precision else 1)  # one chunk's share; the cast weight
    )
