"""Predict the peak memory of evaluation and generation, itemised."""

from __future__ import annotations

from llmtrain.ops.chunk_sizes import even_chunk, loss_chunk_tokens
from llmtrain.plan.memory import MemoryPrediction, libraries_bytes
from llmtrain.plan.tensor_bytes import FP32_BYTES, HALF_BYTES
from llmtrain.profile.shape import ModelShape

EVALUATION_TOKENS = 4096  # of one forward
# Compared with training: the baselines of an evaluation; what generation does not import.
_BASELINES_BYTES = 20 << 20
_XZ_BYTES = 75 << 20  # of the xz compressor, once the text fills its dictionary of 8 MiB
_UNUSED_BYTES = {"cpu": 41 << 20}
_CPU_SLACK = 0.5  # of the forward's memory: freed blocks do not fit the next allocations


def predict_evaluation(
    shape: ModelShape,
    device_kind: str,
    *,
    half_precision: bool,
    torch_build: str = "cpu",
) -> MemoryPrediction:
    """Predict the peak of `llmtrain eval` on a large text, without the memory-mapped text."""
    size = HALF_BYTES if half_precision else FP32_BYTES
    sequences = max(1, EVALUATION_TOKENS // shape.context)
    tokens = sequences * shape.context
    chunk = even_chunk(tokens, loss_chunk_tokens(shape.vocab_size, device_kind, size))
    head = HALF_BYTES * shape.vocab_size * shape.hidden_size if half_precision else 0
    forward_bytes, loss_bytes = _forward_bytes(shape, tokens, size), chunk * shape.vocab_size * size
    return MemoryPrediction(
        parameters_bytes=FP32_BYTES * shape.parameters,
        weight_casts_bytes=_casts_bytes(shape, half_precision=half_precision),
        activations_bytes=forward_bytes,
        loss_bytes=loss_bytes + head,
        libraries_bytes=libraries_bytes(device_kind, torch_build) + _BASELINES_BYTES + _XZ_BYTES,
        slack_bytes=_slack_bytes(device_kind, forward_bytes + loss_bytes),
    )


def predict_generation(
    shape: ModelShape,
    device_kind: str,
    *,
    half_precision: bool,
    slots: int = 1,
    torch_build: str = "cpu",
) -> MemoryPrediction:
    """Predict the peak of `llmtrain generate` with full contexts and their KV caches."""
    size = HALF_BYTES if half_precision else FP32_BYTES
    head = HALF_BYTES * shape.vocab_size * shape.hidden_size if half_precision else 0
    forward_bytes = _forward_bytes(shape, shape.context, size)
    return MemoryPrediction(
        parameters_bytes=FP32_BYTES * shape.parameters,
        weight_casts_bytes=_casts_bytes(shape, half_precision=half_precision) + head,
        activations_bytes=forward_bytes,
        caches_bytes=2 * size * shape.num_layers * shape.kv_width * shape.context * slots,
        libraries_bytes=libraries_bytes(device_kind, torch_build)
        - _UNUSED_BYTES.get(device_kind, 0),
        slack_bytes=_slack_bytes(device_kind, forward_bytes),
    )


def _slack_bytes(device_kind: str, held_bytes: int) -> int:
    return int(_CPU_SLACK * held_bytes) if device_kind == "cpu" else 0


def _casts_bytes(shape: ModelShape, *, half_precision: bool) -> int:
    """Return the bytes of all blocks' weights as autocast keeps them in half precision."""
    if not half_precision:
        return 0
    return HALF_BYTES * shape.num_layers * shape.block_matrix_parameters


def _forward_bytes(shape: ModelShape, tokens: int, size: int) -> int:
    """Return the most that one block's forward holds, and the rotary tables."""
    stream = (FP32_BYTES + size) * shape.hidden_size  # before the norm and after
    heads = shape.attention_width + 2 * shape.kv_width
    attention = (size + 2 * FP32_BYTES) * heads
    feed_forward = 3 * size * shape.intermediate_size
    rotations = 2 * FP32_BYTES * shape.context * shape.head_dim // 2
    return tokens * (stream + max(attention, feed_forward)) + rotations
