"""Benchmark the model's attention kernels and blocks on this CPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from llmtrain.choice import ActivationCheckpointing, AttentionKernel, Precision
from llmtrain.errors import LlmtrainError
from llmtrain.machine.facts import AttentionTimes, BlockTimes
from llmtrain.model.decoder import Block, compile_block
from llmtrain.ops.attention import causal_attention
from llmtrain.ops.documents import DocumentMask, document_mask
from llmtrain.ops.precision import WeightCasts, autocast_as, compute_dtype
from llmtrain.ops.rotary import rotary_table
from llmtrain.profile.shape import ModelShape

_BUDGET_S = 0.4
_LEAST_ROUNDS, _MOST_ROUNDS = 2, 8
# Limits of the attention that is timed, unless one sequence exceeds them: up to 0.3 s on two cores.
_SCORES, _TOKENS = 64 << 20, 4096
_LONGEST_CONTEXT = 4096  # longer ones take longer and give the same answer

Run = Callable[[], None]


class CompileError(LlmtrainError):
    """torch.compile does not work here; the message is the compiler's first error line."""


def time_attention(
    shape: ModelShape, precision: Precision, threads: int, masked: bool = False
) -> AttentionTimes:
    """Return the seconds of attention forward and backward by each kernel.

    The batch has as many sequences as a micro-batch, or fewer if they are long, because a kernel's
    speed depends on the number of heads. Kernels take turns; the best of several rounds counts.
    `masked`: within documents, of which each sequence has two.
    """
    context = min(shape.context, _LONGEST_CONTEXT)
    sequences = max(1, min(_TOKENS // context, _SCORES // (shape.num_heads * context**2)))
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(sequences, heads, context, shape.head_dim, generator=generator)
        .to(dtype)
        .requires_grad_()
        for heads in (shape.num_heads, shape.num_kv_heads, shape.num_kv_heads)
    )

    kernels: tuple[AttentionKernel, ...] = ("sdpa", "blocks")
    masks = {
        name: _documents(name, sequences, context, dtype) if masked else None for name in kernels
    }

    def run(kernel: AttentionKernel) -> None:
        y = causal_attention(q, k, v, kernel, masks[kernel])
        torch.autograd.grad(y, (q, k, v), y)

    with _threads(threads):
        best = _best_s({kernel: _bound(run, kernel) for kernel in kernels})
    return AttentionTimes(sdpa_s=best["sdpa"], blocks_s=best["blocks"])


def time_block(
    shape: ModelShape,
    *,
    micro_batch: int,
    precision: Precision,
    attention: AttentionKernel,
    checkpointing: ActivationCheckpointing,
    keep_casts: bool,
    threads: int,
    masked: bool = False,
) -> BlockTimes:
    """Return the seconds of one block forward and backward, eager and compiled, and to compile.

    The kernels compiled here are those of a run with these values, which finds them in the cache.
    Raises CompileError.
    """
    with torch.random.fork_rng(devices=()):  # measuring must not change a run's random numbers
        x = torch.randn(micro_batch, shape.context, shape.hidden_size, requires_grad=True)
        blocks = {name: _block(shape, attention) for name in ("eager", "compiled")}
    cos, sin = rotary_table(shape.head_dim, shape.context, shape.rope_theta)
    blocks["compiled"].checkpointing = checkpointing
    compile_block(blocks["compiled"])
    casts = WeightCasts(torch.bfloat16) if keep_casts else None
    with autocast_as(precision, x.device):
        dtype = compute_dtype(x)
    documents = _documents(attention, micro_batch, shape.context, dtype) if masked else None

    def run(block: nn.Module) -> None:
        inputs = x, cos, sin, documents
        with autocast_as(precision, x.device):
            y: Tensor = block(*inputs) if casts is None else casts.call(block, *inputs)
        torch.autograd.backward(y, y.detach())
        block.zero_grad(set_to_none=False)

    with _threads(threads):
        compile_s = _compile_s(_bound(run, blocks["compiled"]))
        best = _best_s({name: _bound(run, block) for name, block in blocks.items()})
    return BlockTimes(eager_s=best["eager"], compiled_s=best["compiled"], compile_s=compile_s)


def _documents(
    attention: AttentionKernel, sequences: int, tokens: int, dtype: torch.dtype
) -> DocumentMask:
    """Return a mask of two documents per sequence, with the boundary at different positions."""
    starts_b1 = torch.arange(1, sequences + 1)[:, None] * tokens // (sequences + 1)
    first_bt = torch.where(torch.arange(tokens) < starts_b1, 0, starts_b1)
    return document_mask(attention, first_bt.to(torch.int32), dtype)


def _block(shape: ModelShape, attention: AttentionKernel) -> Block:
    block = Block(shape)
    block.self_attn.kernel = attention
    return block


def _compile_s(run: Run) -> float:
    # Importing it takes half as long as torch, and 60 MB; only those who compile need it.
    from torch._dynamo.exc import TorchDynamoException

    start_s = time.perf_counter()
    try:
        run()
    except TorchDynamoException as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        first_error = next((line for line in lines if "error:" in line), lines[0] if lines else "")
        raise CompileError(first_error or type(error).__name__) from error
    return time.perf_counter() - start_s


def _bound(run: Callable[..., None], argument: object) -> Run:
    return lambda: run(argument)


def _best_s(runs: dict[str, Run]) -> dict[str, float]:
    """Return the best seconds of each, after a warm-up round. They take turns."""
    for run in runs.values():
        run()
    deadline_s = time.perf_counter() + _BUDGET_S
    best = dict.fromkeys(runs, float("inf"))
    for rounds in range(_MOST_ROUNDS):
        if rounds >= _LEAST_ROUNDS and time.perf_counter() > deadline_s:
            break
        for name, run in runs.items():
            start_s = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - start_s)
    return best


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
