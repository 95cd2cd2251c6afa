"""Time parts of the model on this CPU with each available kernel."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from llmtrain.choice import (
    ActivationCheckpointing,
    AttentionKernel,
    LossKernel,
    MatmulPrecision,
    Precision,
)
from llmtrain.errors import LlmtrainError
from llmtrain.machine.core_wait import ran_share, read_core_times
from llmtrain.machine.facts import AttentionTimes, BlockTimes, LossTimes
from llmtrain.machine.timing import Run, Timing, compare
from llmtrain.model.block import (
    COMPILER_MODULES,
    Block,
    compile_block,
    load_compiler,
    run_eagerly,
)
from llmtrain.model.lora import add_adapters, freeze_matrices
from llmtrain.ops.attention import causal_attention
from llmtrain.ops.documents import DocumentMask, document_mask
from llmtrain.ops.loss import linear_cross_entropy
from llmtrain.ops.precision import WeightCasts, autocast_as, compute_dtype
from llmtrain.ops.rotary import rotary_table
from llmtrain.profile.lora_shape import LoraShape
from llmtrain.profile.shape import ModelShape

_BUDGET_S = 0.4
_LEAST_ROUNDS, _MOST_ROUNDS = 3, 8
# Scores and tokens of attention that are timed, unless one sequence has more (0.3 s on two cores).
_SCORES, _TOKENS = 64 << 20, 4096
_LOSS_TOKENS = 1024  # whose loss is timed (0.5 s for 32,000 rows of vocabulary on two cores)
_LONGEST_CONTEXT = 4096  # longer ones take quadratic time and do not change the result


class CompileError(LlmtrainError):
    """torch.compile failed; the message is the compiler's first error line."""


class KernelError(CompileError):
    """A GPU cannot run one of our own kernels, and never will: the reason is worth keeping."""


def time_attention(
    shape: ModelShape,
    precision: Precision,
    threads: int,
    masked: bool = False,
    native: bool = False,
) -> AttentionTimes:
    """Return the seconds for attention forward and backward over some sequences, for each kernel.

    `masked`: attention stays within documents, of which each sequence has two. There are as many
    sequences as in a micro-batch, or fewer if they are long: a kernel's speed depends on the
    number of heads that it has at once. `native`: the native kernels are loaded.
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

    kernels: tuple[AttentionKernel, ...] = ("sdpa", "blocks", *(("native",) if native else ()))
    masks = {
        name: two_documents(name, sequences, context, dtype) if masked else None for name in kernels
    }

    def run(kernel: AttentionKernel) -> None:
        y = causal_attention(q, k, v, kernel, masks[kernel])
        torch.autograd.grad(y, (q, k, v), y)

    with thread_count(threads):
        timed = _compare({kernel: partial(run, kernel) for kernel in kernels})
    sdpa_s = timed["sdpa"].wall_s
    times = {name: sdpa_s * timing.ratio_to(timed["sdpa"]) for name, timing in timed.items()}
    return AttentionTimes(sdpa_s, times["blocks"], times.get("native"))


def time_loss(shape: ModelShape, tokens: int, threads: int, trains_head: bool = True) -> LossTimes:
    """Return the seconds for the loss of some tokens in bf16 and its gradients, eager and native.

    The native kernels are loaded. There are as many tokens as in a micro-batch, or fewer. The head
    has no gradient unless `trains_head`.
    """
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape.vocab_size, shape.hidden_size, generator=generator).mul_(0.02)
    rows = max(1, min(tokens, _LOSS_TOKENS))
    hidden = torch.randn(rows, shape.hidden_size, generator=generator).to(torch.bfloat16)
    targets = torch.randint(shape.vocab_size, (rows,), generator=generator)
    cast = weight.to(torch.bfloat16)
    leaves = [hidden.requires_grad_(), *([weight.requires_grad_()] if trains_head else [])]

    def run(kernel: LossKernel) -> None:
        with autocast_as("bf16", hidden.device):
            total = linear_cross_entropy(
                hidden, weight, targets, weight_cast_vd=cast, kernel=kernel
            )
        torch.autograd.grad(total, leaves)

    kernels: tuple[LossKernel, ...] = ("native", "chunks")  # the standing choice first
    with thread_count(threads):
        timed = _compare({kernel: partial(run, kernel) for kernel in kernels})
    chunks_s = timed["chunks"].wall_s
    return LossTimes(chunks_s, chunks_s * timed["native"].ratio_to(timed["chunks"]))


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
    lora: LoraShape | None = None,
) -> BlockTimes:
    """Return the seconds for one block forward and backward on a micro-batch, eager and compiled.

    A run with the same values finds the compiled code in the compiler's cache. Raises
    CompileError.
    """
    with torch.random.fork_rng(devices=()):  # measuring must not change a run's random numbers
        x = torch.randn(micro_batch, shape.context, shape.hidden_size, requires_grad=True)
        blocks = {
            name: new_block(shape, attention, lora, precision) for name in ("eager", "compiled")
        }
    cos, sin = rotary_table(shape.head_dim, shape.context, shape.rope_theta)
    import_s = importing_compiler_s()
    blocks["compiled"].checkpointing = checkpointing
    compile_block(blocks["compiled"])
    casts = WeightCasts(torch.bfloat16) if keep_casts else None
    with autocast_as(precision, x.device):
        dtype = compute_dtype(x)
    documents = two_documents(attention, micro_batch, shape.context, dtype) if masked else None

    def run(block: nn.Module) -> None:
        inputs = x, cos, sin, documents
        with autocast_as(precision, x.device):
            y: Tensor = block(*inputs) if casts is None else casts.call(block, *inputs)
        torch.autograd.backward(y, y.detach())
        block.zero_grad(set_to_none=False)

    with thread_count(threads):
        compile_s = compiling_s(partial(run, blocks["compiled"]))
        torch.compiler.reset()  # forgets what is compiled in this process
        load_s = compiling_s(partial(run, blocks["compiled"]))
        before = read_core_times()  # compiling keeps all cores busy
        timed = _compare({name: partial(run, block) for name, block in blocks.items()})
    run_eagerly(blocks["compiled"])  # what is compiled refers to its block: now both are freed
    eager_s = timed["eager"].wall_s
    return BlockTimes(
        eager_s=eager_s,
        compiled_s=eager_s * timed["compiled"].ratio_to(timed["eager"]),
        compile_s=compile_s,
        wall_s=timed["compiled"].wall_s,
        ran_share=ran_share(before, read_core_times()),
        load_s=load_s,
        import_s=import_s,
    )


def two_documents(
    attention: AttentionKernel,
    sequences: int,
    tokens: int,
    dtype: torch.dtype,
    device: torch.device | None = None,
) -> DocumentMask:
    """Return a mask of two documents per sequence, with the boundary at different positions."""
    starts_b1 = torch.arange(1, sequences + 1)[:, None] * tokens // (sequences + 1)
    first_bt = torch.where(torch.arange(tokens) < starts_b1, 0, starts_b1)
    return document_mask(attention, first_bt.to(device, torch.int32), dtype)


def new_block(
    shape: ModelShape,
    attention: AttentionKernel,
    lora: LoraShape | None = None,
    precision: Precision = "fp32",
) -> Block:
    """Return a block that computes attention by this kernel.

    With adapters its matrices are those that products read: bf16 where `precision` is.
    """
    block = Block(shape)
    block.self_attn.kernel = attention
    if lora is not None:
        freeze_matrices(block, precision)
        add_adapters(block, lora)
    return block


def importing_compiler_s() -> float | None:
    """Return the seconds of `load_compiler`; None where this process has torch's compiler.

    Where Python keeps no bytecode the import alone takes tens of them.
    """
    if COMPILER_MODULES[-1] in sys.modules:
        return None
    start_s = time.perf_counter()
    load_compiler(torch.device("cpu"))
    return time.perf_counter() - start_s


def compiling_s(run: Run) -> float:
    """Return the seconds of the first call of something compiled.

    Raises CompileError, and KernelError where Triton refuses a kernel.
    """
    # Importing it takes longer than torch, and 60 MB; only those who compile need it.
    from torch._dynamo.exc import TorchDynamoException

    triton_error, start_s = _triton_error(), time.perf_counter()
    try:
        run()
    except (TorchDynamoException, triton_error) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        first_error = next((line for line in lines if "error:" in line), lines[0] if lines else "")
        kind = KernelError if isinstance(error, triton_error) else CompileError
        raise kind(first_error or type(error).__name__) from error
    return time.perf_counter() - start_s


def _triton_error() -> type[Exception]:
    """Return what Triton raises where a kernel cannot be compiled for a GPU, or not run on it."""
    if find_spec("triton") is None:
        return KernelError
    from triton.errors import TritonError

    found: type[Exception] = TritonError
    return found


def _compare(runs: Mapping[str, Run]) -> dict[str, Timing]:
    return compare(
        {name: [run] for name, run in runs.items()},
        budget_s=_BUDGET_S,
        least_rounds=_LEAST_ROUNDS,
        most_rounds=_MOST_ROUNDS,
    )


@contextmanager
def thread_count(count: int) -> Iterator[None]:
    """Compute with `count` threads within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def multiplied_in(precision: MatmulPrecision) -> Iterator[None]:
    """Set the precision of fp32 products within the block."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
