"""Predicted peak memory of a training process, itemised, from shapes alone.

The activation counts are those of what autograd saves in `llmtrain.model.decoder`; a test
compares them with the tensors that are really saved.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from llmtrain.device.choice import ActivationCheckpointing, OptimizerName
from llmtrain.profile.shape import ModelShape

_FP32 = 4
_HALF = 2
# Of logits. In half precision about the last-level cache, where more is no faster; fp32 products
# pack the whole head for every chunk, and with 32 MiB too the step takes 7% longer.
_CPU_LOSS_CHUNK_BYTES = {_HALF: 32 << 20, _FP32: 128 << 20}
_ACCELERATOR_LOSS_CHUNK_BYTES = 1 << 30  # large enough that products fill the device
# What a process holds beside its model: measured for torch 2.13 with the libraries that a
# run imports and what an evaluation leaves, and for CUDA the context and the workspaces.
_LIBRARIES_BYTES = {"cpu": 340 << 20, "mps": 450 << 20, "cuda": 1400 << 20}
# What the allocator holds beyond live tensors, as a share of all that is allocated and freed each
# step. On the CPU it is large: glibc keeps freed blocks, and those of the forward do not fit the
# backward's. Measured on cpu-tiny, cpu-small and cpu-medium at micro-batches of 1 to 32:
# 0.69 to 1.1 of it in half precision and 0.62 to 0.73 in fp32.
_CPU_SLACK = {"half": 0.85, "fp32": 0.68}
_ACCELERATOR_SLACK = 0.06


@dataclass(frozen=True, slots=True)
class MemoryPrediction:
    """Where the bytes of one process go at the peak of a training step."""

    parameters_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    weight_casts_bytes: int
    activations_bytes: int
    loss_bytes: int
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


def predict_training(
    shape: ModelShape,
    *,
    micro_batch: int,
    half_precision: bool,
    device_kind: str,
    checkpointing: ActivationCheckpointing = "off",
    keep_casts: bool = False,
    optimizer: OptimizerName = "adamw",
    processes: int = 1,
) -> MemoryPrediction:
    """The peak of one process that trains `shape` on micro-batches of so many full contexts."""
    tokens = micro_batch * shape.context
    state = _FP32 * shape.parameters
    activations = tokens * saved_bytes_per_token(shape, half_precision, checkpointing)
    loss = _loss_bytes(shape, tokens, half_precision, device_kind)
    casts = _HALF * _cast_parameters(shape, checkpointing, keep_casts) if half_precision else 0
    return MemoryPrediction(
        parameters_bytes=state,
        gradients_bytes=state,
        optimizer_bytes=_optimizer_bytes(shape, optimizer),
        weight_casts_bytes=casts,
        activations_bytes=activations,
        loss_bytes=loss,
        communication_bytes=state if processes > 1 else 0,
        libraries_bytes=_LIBRARIES_BYTES[device_kind],
        slack_bytes=int(_slack(device_kind, half_precision) * (activations + loss)),
    )


def predict_inference_bytes(shape: ModelShape, device_kind: str) -> int:
    """The most that one process takes to use a model for one text: all else is small."""
    rotations = 3 * _FP32 * shape.context * shape.head_dim // 2  # angles, cosines and sines
    caches = 2 * _FP32 * shape.num_layers * shape.kv_width * shape.context
    return _FP32 * shape.parameters + rotations + caches + _LIBRARIES_BYTES[device_kind]


def checkpoint_bytes(shape: ModelShape, optimizer: OptimizerName) -> int:
    """What the tensors of a checkpoint take: weights and optimizer state."""
    return _FP32 * shape.parameters + _optimizer_bytes(shape, optimizer)


def _optimizer_bytes(shape: ModelShape, optimizer: OptimizerName) -> int:
    """AdamW's two moments of everything, or Muon's one of a hidden matrix."""
    one_moment = shape.num_layers * shape.block_matrix_parameters if optimizer == "muon" else 0
    return _FP32 * (2 * shape.parameters - one_moment)


def _slack(device_kind: str, half_precision: bool) -> float:
    if device_kind != "cpu":
        return _ACCELERATOR_SLACK
    return _CPU_SLACK["half" if half_precision else "fp32"]


def loss_chunk_tokens(vocab_size: int, device_kind: str, element_bytes: int) -> int:
    """Tokens whose logits, of so many bytes each, the loss holds at once."""
    budget = _ACCELERATOR_LOSS_CHUNK_BYTES
    if device_kind == "cpu":
        budget = _CPU_LOSS_CHUNK_BYTES.get(element_bytes, _CPU_LOSS_CHUNK_BYTES[_FP32])
    return max(64, budget // (element_bytes * vocab_size) // 64 * 64)


def _cast_parameters(
    shape: ModelShape, checkpointing: ActivationCheckpointing, keep_casts: bool
) -> int:
    """Weights whose cast lives from the forward to the backward, or on."""
    if not keep_casts and checkpointing != "off":
        return shape.block_matrix_parameters
    head = shape.vocab_size * shape.hidden_size if keep_casts else 0
    return shape.num_layers * shape.block_matrix_parameters + head


def saved_bytes_per_token(
    shape: ModelShape, half_precision: bool, checkpointing: ActivationCheckpointing = "off"
) -> int:
    """Bytes kept for the backward, a token, over all blocks and the final norm.

    Under checkpointing one block at a time is computed again, and then keeps all.
    """
    everything = _block_bytes(shape, half_precision)
    final = _norm_bytes(shape.hidden_size, half_precision)
    if checkpointing == "off":
        return shape.num_layers * everything + final
    kept = _FP32 * shape.hidden_size
    if checkpointing == "selective":
        kept += _product_bytes(shape, half_precision)
    return shape.num_layers * kept + everything + final


def _product_bytes(shape: ModelShape, half_precision: bool) -> int:
    """What the products and the attention of a block give, its last product excepted."""
    widths = 2 * shape.attention_width + 2 * shape.kv_width + shape.hidden_size
    return (_HALF if half_precision else _FP32) * (widths + 2 * shape.intermediate_size)


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


def _loss_bytes(shape: ModelShape, tokens: int, half_precision: bool, device_kind: str) -> int:
    size = _HALF if half_precision else _FP32
    head = shape.vocab_size * shape.hidden_size
    chunk = min(tokens, loss_chunk_tokens(shape.vocab_size, device_kind, size))
    logits = chunk * shape.vocab_size
    return (
        logits * size  # overwritten by their own gradient
        + tokens * shape.hidden_size * size  # gradient of the hidden states
        + head * _FP32  # gradient of the head, added to the embedding's at the end
        + head * size * (2 if half_precision else 1)  # one chunk's share of it; the cast weight
    )
