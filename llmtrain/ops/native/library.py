"""The kernels' library: what it is compiled from, and whether this machine can use it."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from llmtrain.choice import Choice, Precision
from llmtrain.errors import LlmtrainError
from llmtrain.files import cache_directory
from llmtrain.machine.facts import Facts
from llmtrain.machine.native import Announce, NativeSource, load_native, vector_instructions
from llmtrain.machine.probe import read_facts

NAMESPACE = "llmtrain_native"
FP32_NAMESPACE = "llmtrain_fp32"
_INSTRUCTIONS = "avx512_bf16"  # AMX, where there is any, is used by torch's own block products
_AVX512_FLAGS = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma")
_AVX2_FLAGS = ("-mavx2", "-mfma")

_OPERATORS = (
    "adapted_block",
    "adapted_block_backward",
    "attention",
    "attention_backward",
    "block",
    "block_backward",
    "linear_cross_entropy",
    "sum_of_squares",
    "adamw",
    "nesterov",
    "descend",
    "normalize",
)


def kernel_source(precision: Precision = "bf16") -> NativeSource:
    """Return the C++ files of the kernels for products in this precision."""
    here = Path(__file__).parent
    headers = tuple(sorted(here.glob("*.h")))
    if precision == "bf16":
        return NativeSource(
            name="kernels",
            namespace=NAMESPACE,
            operators=_OPERATORS,
            files=tuple(sorted(here.glob("*.cpp"))),
            headers=headers,
            flags=(*_AVX512_FLAGS, "-mavx512bf16"),
        )
    return NativeSource(
        name="fp32_kernels",
        namespace=FP32_NAMESPACE,
        operators=("attention", "attention_backward"),
        files=tuple(sorted((here / "fp32").glob("*.cpp"))),
        headers=(*headers, *sorted((here / "fp32").glob("*.h"))),
        # as wide as the vectors of torch's own kernels, which a variable may limit
        flags=_AVX512_FLAGS if vector_instructions() == "AVX512" else _AVX2_FLAGS,
    )


def unsuitable(facts: Facts, precision: Precision = "bf16") -> str | None:
    """Return why no compiler would make the kernels useful on this machine; None: it would."""
    if sys.platform == "win32":
        return "native kernels are not built on Windows"
    if precision == "bf16" and _INSTRUCTIONS not in facts.cpu.isa:
        return "native kernels need a CPU that multiplies bf16 (AVX512_BF16)"
    if precision == "fp32" and "avx2" not in facts.cpu.isa:
        return "native kernels for fp32 need a CPU with AVX2"
    if precision == "fp16":
        return "native kernels are for bf16 and fp32"
    return None


def load_kernels(
    facts: Facts,
    announce: Announce | None = None,
    *,
    precision: Precision = "bf16",
    compiles: bool = True,
) -> Choice[bool]:
    """Make the kernels for products in this precision available in this process.

    The reason says where they are not. Without `compiles`, only kernels that have been compiled
    before are.
    """
    reason = unsuitable(facts, precision)
    if reason is not None:
        return Choice(False, reason)
    source = kernel_source(precision)
    loaded = load_native(source, facts, cache_directory(), announce, compiles=compiles)
    return _tried(loaded) if loaded.value and precision == "bf16" else loaded


def require_kernels(precision: Precision = "bf16") -> None:
    """Make the kernels available in this process. Raises LlmtrainError where they are not."""
    if kernel_source(precision).is_loaded():
        return
    loaded = load_kernels(read_facts(tries_gpus=False), precision=precision)
    if not loaded.value:
        hint = "--set device.attention=auto --set device.loss=auto --set device.block_kernels=auto"
        raise LlmtrainError(f"the native kernels of this run: {loaded.reason}", hint=hint)


def _tried(loaded: Choice[bool]) -> Choice[bool]:
    """Return `loaded`, or why torch's block products refuse bf16: an environment may forbid it."""
    x = torch.zeros(1, 1, 2, 32, dtype=torch.bfloat16)
    try:
        torch.ops.llmtrain_native.attention(x, x, x, None)
    except RuntimeError as error:
        return Choice(False, f"torch does not multiply blocks of bf16 here: {_first_line(error)}")
    return loaded


def _first_line(error: RuntimeError) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
