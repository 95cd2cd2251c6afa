"""Native kernels beside torch's and our own in Python: `python -m tests.benchmarks.native_kernels`.

Attention forward and backward, and the loss with both its gradients, at the work of shapes S and M
or of `--shape`; with `--precision fp32` attention alone. The ways take turns, and each counts with
its least wall time; the least CPU time of all threads over their number is shown beside it, which a
busy machine hardly changes. The rate of the best product is measured in the same run, and each time
is shown as a share of what its products alone would take at that rate. Errors are relative, against
fp32, or fp64 of fp32.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from llmtrain.machine.startup import prepare_for_torch

prepare_for_torch()

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from llmtrain.choice import AttentionKernel  # noqa: E402
from llmtrain.machine.probe import read_facts  # noqa: E402
from llmtrain.ops.attention import causal_attention  # noqa: E402
from llmtrain.ops.loss import (  # noqa: E402
    Exponentiate,
    compiled_exponentiate,
    exponentiate,
    linear_cross_entropy,
)
from llmtrain.ops.native.library import load_kernels  # noqa: E402

Result = tuple[Tensor, ...]


@dataclass(frozen=True)
class Work:
    """Sequences, heads, tokens, features a head, and rows of vocabulary."""

    sequences: int
    heads: int
    tokens: int
    size: int
    vocabulary: int

    @property
    def width(self) -> int:
        """Hidden features."""
        return self.heads * self.size

    @property
    def attention_flops(self) -> float:
        """Of the products of causal attention, seven of them half of which is masked."""
        return 7 * self.sequences * self.heads * self.tokens**2 * self.size

    @property
    def loss_flops(self) -> float:
        """Of the three products of the loss."""
        return 6 * self.sequences * self.tokens * self.width * self.vocabulary


SHAPES = {
    "S": Work(8, 6, 512, 64, 32_000),
    "M": Work(4, 12, 1024, 64, 50_304),
    "long": Work(1, 12, 4096, 64, 32_000),
    "tiny": Work(16, 3, 256, 64, 4096),
}


def main() -> int:
    """Print the tables of each shape; return 1 without native kernels."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=["S", "M"], choices=SHAPES)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="time the compiled loss too")
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    options = parser.parse_args()
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    facts = read_facts(tries_gpus=False)
    torch.set_num_threads(options.threads or facts.cpu.usable_cores)
    loaded = load_kernels(facts, precision=options.precision)
    if not loaded.value:
        sys.stdout.write(f"{loaded.reason}\n")
        return 1
    say(f"{facts.cpu.model}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for name in options.shapes:
        work = SHAPES[name]
        say(f"\n{name}: {work}")
        ways = attention_ways(work, dtype)
        show("attention", ways, work.attention_flops, options.rounds, dtype)
        if options.precision == "fp32":
            attention_errors(replace(work, sequences=1), dtype, torch.float64)
            continue
        ways = loss_ways(work, compiled=options.compile)
        show("loss", ways, work.loss_flops, options.rounds, dtype)
        errors(work)
    return 0


def attention_ways(work: Work, dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """Return attention forward and backward by each kernel."""
    shape = (work.sequences, work.tokens, work.heads, work.size)
    inputs = [torch.randn(shape).to(dtype).transpose(1, 2).requires_grad_() for _ in range(3)]
    d_y = torch.randn(work.sequences, work.tokens, work.width).to(dtype)
    kernels: tuple[AttentionKernel, ...] = ("native", "sdpa", "blocks")
    return {name: partial(attention, name, inputs, d_y) for name in kernels}


def attention(kernel: AttentionKernel, inputs: list[Tensor], d_y: Tensor) -> Result:
    """Return attention and its gradients."""
    y = causal_attention(inputs[0], inputs[1], inputs[2], kernel)
    return y.detach(), *torch.autograd.grad(y, inputs, d_y.to(y.dtype))


def loss_ways(work: Work, *, compiled: bool) -> dict[str, Callable[[], object]]:
    """Return the loss and its gradients by each way to compute it."""
    hidden, weight, targets = loss_inputs(work)
    ways: dict[str, Callable[[], object]] = {
        "native": lambda: loss(None, hidden, weight, targets),
        "eager": lambda: loss(exponentiate, hidden, weight, targets),
    }
    if compiled:
        fast = compiled_exponentiate()
        ways["compiled"] = lambda: loss(fast, hidden, weight, targets)
    return ways


def loss_inputs(work: Work) -> tuple[Tensor, Tensor, Tensor]:
    """Return hidden states, the head's weight and targets."""
    tokens = work.sequences * work.tokens
    weight = torch.randn(work.vocabulary, work.width) * 0.02
    return (
        torch.randn(tokens, work.width).bfloat16(),
        weight,
        torch.randint(work.vocabulary, (tokens,)),
    )


def loss(way: Exponentiate | None, hidden: Tensor, weight: Tensor, targets: Tensor) -> Result:
    """Return the loss and its gradients; `way` None: by the native kernel."""
    h, w = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        total = linear_cross_entropy(
            h,
            w,
            targets,
            weight_cast_vd=weight.bfloat16(),
            exponentiate=way or exponentiate,
            kernel="native" if way is None else "chunks",
        )
    return total.detach(), *torch.autograd.grad(total / len(targets), (h, w))


def show(
    what: str,
    ways: Mapping[str, Callable[[], object]],
    flops: float,
    rounds: int,
    dtype: torch.dtype,
) -> None:
    """Time the ways in turn, with the best product among them, and print a table."""
    a, b = torch.randn(4096, 1024).to(dtype), torch.randn(1024, 4096).to(dtype)
    found = timed({**ways, "product": lambda: a @ b}, rounds)
    product_flops = 2 * 4096 * 1024 * 4096
    wall_s, cpu_s = found.pop("product")
    peak, peak_by_cpu = product_flops / wall_s, product_flops / cpu_s
    say(f"  product: {peak / 1e9:,.0f} GFLOP/s ({peak_by_cpu / 1e9:,.0f} by CPU time)")
    for name, (wall_s, cpu_s) in found.items():
        say(
            f"  {what:<10} {name:<9} {1e3 * wall_s:8.1f} ms, by CPU time {1e3 * cpu_s:8.1f} ms, "
            f"products at the peak: {flops / cpu_s / peak_by_cpu:4.0%} of it"
        )


def timed(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, tuple[float, float]]:
    """Return the least wall seconds, and CPU seconds over threads, of each way."""
    best = dict.fromkeys(ways, (float("inf"), float("inf")))
    for _ in range(rounds):
        for name, run in ways.items():
            start_s, start_cpu_s = time.perf_counter(), time.process_time()
            run()
            cpu_s = (time.process_time() - start_cpu_s) / torch.get_num_threads()
            wall_s = time.perf_counter() - start_s
            best[name] = (min(best[name][0], wall_s), min(best[name][1], cpu_s))
    return best


def errors(work: Work) -> None:
    """Print relative errors against fp32, of fewer sequences and a smaller vocabulary."""
    small = replace(work, sequences=1, vocabulary=min(work.vocabulary, 4096))
    attention_errors(small, torch.bfloat16, torch.float32)
    for factor in (1, 4):
        hidden, weight, targets = loss_inputs(small)
        rounded = factor * weight.bfloat16()
        h, w = hidden.float().requires_grad_(), rounded.float().requires_grad_()
        total = linear_cross_entropy(h, w, targets)
        exact = (total.detach(), *torch.autograd.grad(total / len(targets), (h, w)))
        for name, way in (("native", None), ("eager", exponentiate)):
            found = loss(way, hidden, rounded.float(), targets)
            say(f"  errors, loss, logits × {factor}, {name}: {relative(found, exact)}")


def attention_errors(work: Work, dtype: torch.dtype, exactly: torch.dtype) -> None:
    """Print the errors of attention in one type against it in another."""
    shape = (work.sequences, work.tokens, work.heads, work.size)
    d_y = torch.randn(work.sequences, work.tokens, work.width).to(dtype)
    kernels: tuple[AttentionKernel, ...] = ("native", "sdpa", "blocks")
    for factor in (1, 4):
        inputs = [torch.randn(shape).to(dtype).transpose(1, 2) for _ in range(3)]
        inputs[0] = factor * inputs[0]
        exact = attention("sdpa", [x.to(exactly).requires_grad_() for x in inputs], d_y)
        for kernel in kernels:
            found = attention(kernel, [x.detach().requires_grad_() for x in inputs], d_y)
            say(f"  errors, attention, scores × {factor}, {kernel}: {relative(found, exact)}")


def relative(found: Result, exact: Result) -> str:
    """Return the relative errors as text."""
    pairs = zip(found, exact, strict=True)
    return ", ".join(f"{((a.to(b.dtype) - b).norm() / b.norm()).item():.1e}" for a, b in pairs)


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
