"""Count the bytes of training's tensors from shapes: activations, mask, loss, optimizer, casts.

The activations are those that autograd saves in `llmtrain.model.block`. On a CPU a test compares
them with the tensors that are saved; a GPU's norm saves less, and its compiler saves results of
elementwise operations only where that is cheaper than recomputing them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from llmtrain.choice import ActivationCheckpointing, DeviceKind, OptimizerName, Precision
from llmtrain.ops.chunk_sizes import (
    MUON_STACK_BYTES,
    even_chunk,
    loss_chunk_tokens,
    native_chunk_tokens,
)
from llmtrain.plan.workload import Workload
from llmtrain.profile.lora_shape import LoraShape
from llmtrain.profile.shape import ModelShape

FP32_BYTES = 4
HALF_BYTES = 2


@dataclass(frozen=True, slots=True)
class TrainingSetup:
    """The decisions of a plan that its memory depends on."""

    micro_batch: int
    half_precision: bool
    device_kind: DeviceKind
    checkpointing: ActivationCheckpointing = "off"
    compiled: bool = False
    accumulates: bool = False  # gradients over several micro-batches
    optimizer: OptimizerName = "adamw"
    processes: int = 1
    shards: int = 1  # processes over which weights, gradients and optimizer state are sharded
    masks_pairs: bool = False  # attention by a mask of all pairs of tokens
    native_block: bool = False  # blocks by native kernels of a CPU
    native_loss: bool = False  # the loss likewise
    joins_weights: bool = False  # of several products into one, as own kernels of a GPU do
    torch_build: str = "cpu"
    lora: LoraShape | None = None  # adapters that are trained beside the model
    sync_every: int = 1  # steps of each process before weights are averaged
    is_sync_delayed: bool = False  # they are averaged beside the next steps
    frozen_bytes: int = FP32_BYTES  # of a number of the model that they are beside

    @property
    def element_bytes(self) -> int:
        """Bytes of an operand of a matrix product."""
        return HALF_BYTES if self.half_precision else FP32_BYTES

    @property
    def keeps_casts(self) -> bool:
        """True if half-precision copies of the weights are kept between micro-batches or steps."""
        is_used_again = self.accumulates or self.native_block
        return self.half_precision and is_used_again and self.shards == 1


def frozen_bytes(workload: Workload, precision: Precision) -> int:
    """Return the bytes of a number of the model that adapters are beside.

    Where products are in bf16 it is kept in bf16.
    """
    return HALF_BYTES if workload.lora is not None and precision == "bf16" else FP32_BYTES


def weight_bytes(shape: ModelShape, setup: TrainingSetup) -> int:
    """Return the bytes of all weights, trained or not."""
    if setup.lora is None:
        return FP32_BYTES * shape.parameters
    return setup.frozen_bytes * shape.parameters + FP32_BYTES * setup.lora.parameters(shape)


def gradient_bytes(shape: ModelShape, setup: TrainingSetup) -> int:
    """Return the bytes of the gradients of what is trained."""
    if setup.lora is None:
        return FP32_BYTES * shape.parameters
    return FP32_BYTES * setup.lora.parameters(shape)


def gathered_bytes(shape: ModelShape, setup: TrainingSetup) -> int:
    """Return the bytes of gathered weights of a sharded model: two blocks, embedding and head."""
    if setup.shards == 1:
        return 0
    blocks = 2 * setup.element_bytes * shape.block_matrix_parameters  # one is fetched ahead
    return blocks + FP32_BYTES * shape.embedding_parameters


def communication_bytes(shape: ModelShape, setup: TrainingSetup) -> int:
    """Return the bytes of what travels: DDP's buckets, or the buffers of a sharded model.

    Those are of a block that is gathered and of one whose gradients are scattered, and at the end
    of embedding and head. Where weights are averaged after several steps, it is those that were
    agreed on and their momentum: the exchange itself finds no gradients and activations in memory.
    Beside the next steps it does, and what is sent, received and added up counts.
    """
    if setup.sync_every > 1:
        weights = gradient_bytes(shape, setup)
        return 2 * weights + (2 * weights if setup.is_sync_delayed else 0)
    if setup.processes == 1:
        return 0
    if setup.shards == 1:
        return gradient_bytes(shape, setup)
    block = (setup.element_bytes + FP32_BYTES) * shape.block_matrix_parameters
    return max(block, FP32_BYTES * shape.embedding_parameters)


def copied_bytes(shape: ModelShape, setup: TrainingSetup) -> int:
    """Return the bytes of the main memory that a rank copies to save them beside the next steps.

    Where ranks take steps of their own it is the rank's own optimizer state, and its share of the
    weights that were agreed on and of their momentum; and its own weights where those are others.
    """
    if setup.sync_every == 1:
        return 0
    weights = gradient_bytes(shape, setup)
    shared = 2 * weights // setup.processes
    own = weights if setup.is_sync_delayed else 0
    return optimizer_bytes(shape, setup.optimizer, setup.lora) + shared + own


def saved_bytes_per_token(shape: ModelShape, setup: TrainingSetup) -> int:
    """Return the bytes saved for the backward, per token, by all blocks and the final norm."""
    final = _norm_bytes(shape.hidden_size, setup)
    if setup.checkpointing == "off":
        return shape.num_layers * block_bytes_per_token(shape, setup) + final
    saved = FP32_BYTES * shape.hidden_size
    if setup.checkpointing == "selective" and setup.native_block:
        saved = native_block_bytes_without_gates(shape)
    elif setup.checkpointing == "selective":
        saved += product_bytes_per_token(shape, setup)
    return shape.num_layers * saved + final


def mask_bytes(shape: ModelShape, setup: TrainingSetup) -> int:
    """Return the bytes of the attention mask, of every pair of tokens, that all layers share."""
    if not setup.masks_pairs:
        return 0
    return setup.micro_batch * shape.context**2 * setup.element_bytes


def product_bytes_per_token(shape: ModelShape, setup: TrainingSetup) -> int:
    """Return the bytes of the results of a block's products and attention.

    No backward needs the last product's result: compiled it is not kept.
    """
    widths = 2 * shape.attention_width + 2 * shape.kv_width + shape.hidden_size
    widths += 2 * shape.intermediate_size + (0 if setup.compiled else shape.hidden_size)
    if setup.lora is not None:
        widths += setup.lora.rank * len(setup.lora.targets)
    normaliser = FP32_BYTES * shape.num_heads if setup.device_kind != "cpu" else 0
    return setup.element_bytes * widths + normaliser


def block_bytes_per_token(shape: ModelShape, setup: TrainingSetup) -> int:
    """Return the bytes that one block saves for its backward without checkpointing."""
    size = setup.element_bytes
    if setup.native_block:
        gates = 2 * HALF_BYTES * shape.intermediate_size if setup.lora is None else 0
        return native_block_bytes_without_gates(shape) + gates
    queries, keys = shape.attention_width, shape.kv_width
    normed_heads = queries + keys if shape.qk_norm else 0
    # a GPU's kernels that take a mask need keys and values for every query head
    keys_read = queries if setup.masks_pairs and setup.device_kind != "cpu" else keys
    common = (
        FP32_BYTES * normed_heads // shape.head_dim  # the rms of each head
        + size * (queries + 2 * keys_read)  # query, key and value, rotated
        + FP32_BYTES * shape.num_heads  # the softmax's normaliser
    )
    if setup.device_kind != "cpu" and setup.compiled:
        return common + _compiled_bytes(shape, size, normed_heads)
    # before their gains and after; a GPU's norm keeps its input alone
    head_copies = 2 if setup.device_kind == "cpu" else 1
    # attention's output, and a copy with the heads side by side, which a GPU's fp32 kernel gives
    outputs = 2 if setup.device_kind == "cpu" or setup.half_precision else 1
    # with adapters, their hidden features
    adapters = 0 if setup.lora is None else size * setup.lora.rank * len(setup.lora.targets)
    return (
        common
        + adapters
        + 2 * _norm_bytes(shape.hidden_size, setup)
        + head_copies * FP32_BYTES * normed_heads
        + outputs * size * queries
        + 4 * size * shape.intermediate_size  # gate, silu(gate), up, and their product
    )


def _compiled_bytes(shape: ModelShape, size: int, normed_heads: int) -> int:
    """Return the bytes that a compiled block saves on a GPU: operands of products and norms."""
    streams = 2 * (FP32_BYTES + size) * shape.hidden_size  # before the norms and after
    roots = 2 * FP32_BYTES
    heads = size * normed_heads  # the results of products
    return streams + roots + heads + size * (shape.attention_width + 3 * shape.intermediate_size)


def native_block_bytes_without_gates(shape: ModelShape) -> int:
    """Return what a block of native kernels saves of its two halves' inputs and of attention."""
    heads = 2 * shape.attention_width + 2 * shape.kv_width  # before their norms, and attended
    streams = 2 * FP32_BYTES * shape.hidden_size
    return streams + HALF_BYTES * heads + FP32_BYTES * shape.num_heads


def native_working_bytes_per_token(shape: ModelShape, setup: TrainingSetup) -> int:
    """Return what the backward of a block of native kernels works with, per token.

    In feed-forward: rows of the normed input and of the gradient, each as two operands, the gates'
    gradient, and the gradients of output and input; beside adapters one operand each, and gates
    and what they make with their gradients. In attention: rotated heads, the gradients of heads
    and of what they attended to, the normed input and its gradient, and the gradients of output
    and input.
    """
    gradients = 2 * FP32_BYTES * shape.hidden_size
    rows_of_hidden, rows_within = (4, 2) if setup.lora is None else (3, 4)
    operands = HALF_BYTES * (
        rows_of_hidden * shape.hidden_size + rows_within * shape.intermediate_size
    )
    heads = 3 * shape.attention_width + 3 * shape.kv_width
    rows = HALF_BYTES * (heads + 4 * shape.hidden_size)
    return gradients + max(operands, rows)


def _norm_bytes(width: int, setup: TrainingSetup) -> int:
    """Return the bytes of a norm's input and rms in fp32, and of its output.

    A CPU's norm saves its normalised input, too.
    """
    if setup.native_block:
        return width * (FP32_BYTES + setup.element_bytes)
    copies = 2 if setup.device_kind == "cpu" else 1
    return width * (copies * FP32_BYTES + setup.element_bytes) + FP32_BYTES


def cast_parameters(shape: ModelShape, setup: TrainingSetup) -> int:
    """Return the number of weights whose cast lives from the forward to the backward, or longer."""
    if not setup.keeps_casts and setup.checkpointing != "off":
        return shape.block_matrix_parameters
    head = shape.vocab_size * shape.hidden_size if setup.keeps_casts else 0
    return shape.num_layers * shape.block_matrix_parameters + head


def joined_parameters(shape: ModelShape, setup: TrainingSetup) -> int:
    """Return the number of a block's weights that are copied side by side for its backward.

    Own kernels of a GPU multiply by query, key and value at once, and by gate and up. Where the
    forward itself casts weights, these copies are the casts, which are counted already.
    """
    if not setup.joins_weights or not (setup.keeps_casts or setup.shards > 1):
        return 0
    widths = shape.attention_width + 2 * shape.kv_width + 2 * shape.intermediate_size
    return shape.hidden_size * widths


def loss_bytes(shape: ModelShape, setup: TrainingSetup) -> int:
    """Return the peak of the loss, which computes its own gradients chunk by chunk."""
    if setup.native_loss:
        return _native_loss_bytes(shape, setup)
    size, head = setup.element_bytes, shape.vocab_size * shape.hidden_size
    tokens = setup.micro_batch * shape.context
    limit = loss_chunk_tokens(shape.vocab_size, setup.device_kind, size)
    chunk = even_chunk(tokens, limit)
    head_gradient = head * FP32_BYTES if setup.lora is None else 0
    if setup.lora is not None:
        beside = head * size if size < setup.frozen_bytes else 0  # the cast weight
    elif setup.device_kind == "cpu":  # one chunk's share of the head's gradient; the cast weight
        beside = head * size * (2 if setup.half_precision else 1)
    else:
        hidden = chunk * shape.hidden_size
        beside = max(head * size + hidden * size, hidden * 2 * FP32_BYTES)
        beside += head * size if setup.half_precision and not setup.keeps_casts else 0
    return (
        chunk * shape.vocab_size * size  # logits, overwritten by their own gradient
        + tokens * shape.hidden_size * size  # gradient of the hidden states
        + head_gradient  # added to the embedding's at the end
        + beside
    )


def _native_loss_bytes(shape: ModelShape, setup: TrainingSetup) -> int:
    """Return the peak of the native loss.

    For the head's gradient it keeps exponentials where the other has a chunk's logits, and a copy
    of the hidden states; without it neither. It adds to the gradient in place.
    """
    tokens, hidden = setup.micro_batch * shape.context, shape.hidden_size
    chunk = native_chunk_tokens(tokens, shape.vocab_size)
    head = shape.vocab_size * hidden
    cast = HALF_BYTES * head if setup.frozen_bytes > HALF_BYTES and not setup.keeps_casts else 0
    of_hidden = HALF_BYTES * tokens * hidden + (HALF_BYTES + FP32_BYTES) * chunk * hidden
    if setup.lora is not None:
        return of_hidden + cast
    kept = HALF_BYTES * chunk * (shape.vocab_size + hidden)
    return of_hidden + cast + kept + FP32_BYTES * head


def optimizer_bytes(
    shape: ModelShape, optimizer: OptimizerName, lora: LoraShape | None = None
) -> int:
    """Return the bytes of AdamW's two moments, or of Muon's one for hidden matrices."""
    if lora is not None:
        return 2 * FP32_BYTES * lora.parameters(shape)
    one_moment = shape.num_layers * shape.block_matrix_parameters if optimizer == "muon" else 0
    return FP32_BYTES * (2 * shape.parameters - one_moment)


def update_bytes(shape: ModelShape, setup: TrainingSetup) -> int:
    """Return Muon's working bytes: a stack before and after an iteration, and two products."""
    if setup.optimizer != "muon":
        return 0
    return max(
        _stack_bytes(rows, columns, -(-number // setup.shards), setup)
        for rows, columns, number in _matrix_forms(shape)
    )


def _matrix_forms(shape: ModelShape) -> list[tuple[int, int, int]]:
    """Return (rows, columns, number) of the model's hidden matrices, with rows ≤ columns."""
    counts: Counter[tuple[int, int]] = Counter()
    widths = {2: (shape.attention_width, shape.kv_width), 3: (shape.intermediate_size,)}
    for number, some in widths.items():
        for width in some:
            rows, columns = sorted((shape.hidden_size, width))
            counts[rows, columns] += number * shape.num_layers
    return [(*form, number) for form, number in counts.items()]


def _stack_bytes(rows: int, columns: int, number: int, setup: TrainingSetup) -> int:
    matrix = rows * columns * setup.element_bytes
    stacked = min(number, max(1, MUON_STACK_BYTES // matrix))
    # of a sharded model also the rows that are sent and received, of two rounds
    copies = 3 if setup.shards == 1 else 3 + 4
    return stacked * (copies * matrix + 2 * rows * rows * setup.element_bytes)


def checkpoint_bytes(
    shape: ModelShape,
    optimizer: OptimizerName,
    lora: LoraShape | None = None,
    local_ranks: int = 0,
) -> int:
    """Return the bytes of a checkpoint's tensors: trained weights and optimizer state.

    `local_ranks`: how many ranks take steps of their own, whose states are all saved.
    """
    trained = shape.parameters if lora is None else lora.parameters(shape)
    weights, state = FP32_BYTES * trained, optimizer_bytes(shape, optimizer, lora)
    return 2 * weights + local_ranks * state if local_ranks else weights + state


def checkpoint_bytes_of(workload: Workload, ranks: int) -> int:
    """Return the bytes of a checkpoint's tensors, of a run on so many ranks."""
    local_ranks = ranks if workload.sync_every > 1 else 0
    found = checkpoint_bytes(workload.shape, workload.optimizer, workload.lora, local_ranks)
    own = FP32_BYTES * workload.trained_parameters if workload.sync_delay else 0
    return found + local_ranks * own
