"""Predicted peak memory of a process that uses a model, itemised: evaluation and generation."""

from __future__ import annotations

from llmtrain.ops.chunk_sizes import even_chunk, loss_chunk_tokens
from llmtrain.plan.activation_bytes import FP32_BYTES, HALF_BYTES
from llmtrain.plan.memory import MemoryPrediction, libraries_bytes
from llmtrain.profile.shape import ModelShape

EVALUATION_TOKENS = 4096  # of one forward
# Beside what a training imports: the baselines of an evaluation; what generation leaves out.
_BASELINES_BYTES = 20 << 20
_UNUSED_BYTES = {"cpu": 110 << 20}
_CPU_SLACK = 0.5  # of what the forward holds: it is freed in other sizes than the next takes


def predict_evaluation(
    shape: ModelShape, device_kind: str, *, half_precision: bool
) -> MemoryPrediction:
    """The peak of `llmtrain eval`, beside the text, whose shards the system can drop."""
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
        libraries_bytes=libraries_bytes(device_kind) + _BASELINES_BYTES,
        slack_bytes=_slack_bytes(device_kind, forward_bytes + loss_bytes),
    )


def predict_generation(
    shape: ModelShape, device_kind: str, *, half_precision: bool
) -> MemoryPrediction:
    """The peak of `llmtrain generate` with a full context: its keys and values are kept."""
    size = HALF_BYTES if half_precision else FP32_BYTES
    head = HALF_BYTES * shape.vocab_size * shape.hidden_size if half_precision else 0
    forward_bytes = _forward_bytes(shape, shape.context, size)
    return MemoryPrediction(
        parameters_bytes=FP32_BYTES * shape.parameters,
        weight_casts_bytes=_casts_bytes(shape, half_precision=half_precision) + head,
        activations_bytes=forward_bytes,
        caches_bytes=2 * size * shape.num_layers * shape.kv_width * shape.context,
        libraries_bytes=libraries_bytes(device_kind) - _UNUSED_BYTES.get(device_kind, 0),
        slack_bytes=_slack_bytes(device_kind, forward_bytes),
    )


def _slack_bytes(device_kind: str, held_bytes: int) -> int:
    return int(_CPU_SLACK * held_bytes) if device_kind == "cpu" else 0


def _casts_bytes(shape: ModelShape, *, half_precision: bool) -> int:
    """Of all blocks: autocast keeps what it made until the forward, or the text, is over."""
    if not half_precision:
        return 0
    return HALF_BYTES * shape.num_layers * shape.block_matrix_parameters


def _forward_bytes(shape: ModelShape, tokens: int, size: int) -> int:
    """The most that one block's forward holds, and tables of rotations."""
    stream = (FP32_BYTES + size) * shape.hidden_size  # before the norm and after
    heads = shape.attention_width + 2 * shape.kv_width
    attention = (size + 2 * FP32_BYTES) * heads
    feed_forward = 3 * size * shape.intermediate_size
    rotations = 2 * FP32_BYTES * shape.context * shape.head_dim // 2
    return tokens * (stream + max(attention, feed_forward)) + rotations
