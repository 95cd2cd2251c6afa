"""What the matrix products of a model take on a GPU: by two libraries in bf16, and in fp8.

    python -m tests.benchmarks.gpu_products --profile gpu-small

Each linear layer has three products: forward, and the gradients of its input and its weight. In
fp8 (e4m3, a scale a tensor from its largest value) the casts count too: each tensor is read for
its largest value, read again, and written in the two layouts that Hopper's products need; with
`delayed` scales it is read once. Times are medians of turns; errors are relative, against fp32.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmtrain.profile.load import load_profile
from llmtrain.profile.shape import ModelShape, shape_of

_CALLS, _TURNS = 10, 7
_LARGEST = torch.finfo(torch.float8_e4m3fn).max
_LIBRARIES = ("cublas", "cublaslt")


@dataclass(frozen=True)
class Linear:
    """A layer's features, and how many of its kind a model has."""

    name: str
    inputs: int
    outputs: int
    number: int


def main(arguments: Sequence[str]) -> int:
    """Print the times of each layer's products, their sums over a step, and the errors of fp8."""
    options = _parser().parse_args(arguments)
    if not torch.cuda.is_available():
        sys.stderr.write("error: this needs a CUDA GPU\n")
        return 2
    shape = shape_of(load_profile(options.profile).profile.model)
    tokens = options.micro_batch * shape.context
    _say(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {tokens} tokens; ms a step")
    total: dict[str, float] = {}
    for linear in _linears(shape):
        found = _measured(linear, tokens)
        calls = linear.number * options.accumulation
        step_ms = {name: calls * 1e3 * seconds for name, seconds in found.items()}
        _say(f"{linear.name:16} " + "  ".join(f"{n} {ms:.1f}" for n, ms in step_ms.items()))
        for name, ms in step_ms.items():
            total[name] = total.get(name, 0.0) + (0.0 if linear.name == "head" else ms)
    _say(f"{'all but head':16} " + "  ".join(f"{n} {ms:.1f}" for n, ms in total.items()))
    return 0


def _linears(shape: ModelShape) -> list[Linear]:
    width, inner = shape.hidden_size, shape.intermediate_size
    qkv = shape.attention_width + 2 * shape.kv_width
    return [
        Linear("query, key, value", width, qkv, shape.num_layers),
        Linear("attention output", shape.attention_width, width, shape.num_layers),
        Linear("gate, up", width, 2 * inner, shape.num_layers),
        Linear("down", inner, width, shape.num_layers),
        Linear("head", width, shape.vocab_size, 1),
    ]


def _measured(linear: Linear, tokens: int) -> dict[str, float]:
    """Return the seconds of a layer's three products by each way, and of the casts of fp8."""
    torch.manual_seed(0)
    x = torch.randn(tokens, linear.inputs, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(linear.outputs, linear.inputs, device="cuda", dtype=torch.bfloat16) * 0.02
    d_y = torch.randn(tokens, linear.outputs, device="cuda", dtype=torch.bfloat16) * 1e-3
    cast, delayed = torch.compile(_cast), torch.compile(_cast_with, dynamic=False)
    x8, weight8, d_y8 = cast(x), cast(weight), cast(d_y)
    ways: dict[str, Callable[[], object]] = {
        **{library: _by(library, x, weight, d_y) for library in _LIBRARIES},
        "fp8": lambda: _fp8(x8, weight8, d_y8),
        "casts": lambda: (cast(x), cast(d_y)),
        "delayed": lambda: (delayed(x, x8[2]), delayed(d_y, d_y8[2])),
    }
    errors = _errors(_bf16(x, weight, d_y), _fp8(x8, weight8, d_y8), x, weight, d_y)
    _say(f"  {linear.name}: errors of output, d input, d weight: {errors}")
    return _in_turns(ways)


def _by(library: str, x: Tensor, weight: Tensor, d_y: Tensor) -> Callable[[], object]:
    def compute() -> object:
        torch.backends.cuda.preferred_blas_library(library)
        return _bf16(x, weight, d_y)

    return compute


def _bf16(x: Tensor, weight: Tensor, d_y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return x @ weight.t(), d_y @ weight, d_y.t() @ x


Cast = tuple[Tensor, Tensor, Tensor]  # by rows, by columns, and what a value is multiplied by


def _cast(x: Tensor) -> Cast:
    return _cast_with(x, x.abs().amax().float().clamp_min(1e-12) / _LARGEST)


def _cast_with(x: Tensor, scale: Tensor) -> Cast:
    rows = (x.float() / scale).clamp(-_LARGEST, _LARGEST).to(torch.float8_e4m3fn)
    return rows, rows.t().contiguous(), scale


def _fp8(x: Cast, weight: Cast, d_y: Cast) -> tuple[Tensor, Tensor, Tensor]:
    return (
        _scaled(x[0], weight[0].t(), x[2], weight[2], fast=True),
        _scaled(d_y[0], weight[1].t(), d_y[2], weight[2], fast=False),
        _scaled(d_y[1], x[1].t(), d_y[2], x[2], fast=False),
    )


def _scaled(a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, *, fast: bool) -> Tensor:
    return torch._scaled_mm(
        a, b, scale_a=a_scale, scale_b=b_scale, out_dtype=torch.bfloat16, use_fast_accum=fast
    )


def _errors(
    half: Sequence[Tensor], eighth: Sequence[Tensor], x: Tensor, weight: Tensor, d_y: Tensor
) -> str:
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    exact = _bf16(x.float(), weight.float(), d_y.float())
    torch.backends.cuda.matmul.allow_tf32 = allowed
    found = [
        [
            float((got.float() - want).norm() / want.norm())
            for got, want in zip(way, exact, strict=True)
        ]
        for way in (half, eighth)
    ]
    return "  ".join(f"{a:.1e} in bf16, {b:.1e} in fp8" for a, b in zip(*found, strict=True))


def _in_turns(ways: dict[str, Callable[[], object]]) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(_TURNS + 1):
        for name, compute in ways.items():
            torch.cuda.synchronize()
            began = time.perf_counter()
            for _ in range(_CALLS):
                compute()
            torch.cuda.synchronize()
            if turn > 0:  # the first call of a way compiles
                seconds[name].append((time.perf_counter() - began) / _CALLS)
    return {name: statistics.median(each) for name, each in seconds.items()}


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--profile", default="gpu-small")
    parser.add_argument("--micro-batch", type=int, default=64)
    parser.add_argument("--accumulation", type=int, default=8, help="micro-batches of a step")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
