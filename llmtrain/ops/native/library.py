"""The kernels' library: what it is compiled from, and whether this machine can use it."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from llmtrain.choice import Choice
from llmtrain.errors import LlmtrainError
from llmtrain.files import cache_directory
from llmtrain.machine.facts import Facts
from llmtrain.machine.native import Announce, NativeSource, load_native
from llmtrain.machine.probe import read_facts

NAMESPACE = "llmtrain_native"
_INSTRUCTIONS = "avx512_bf16"  # AMX, where there is any, is used by torch's own block products
_FLAGS = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512bf16", "-mfma")

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


def kernel_source() -> NativeSource:
    """Return the C++ files of the kernels."""
    here = Path(__file__).parent
    return NativeSource(
        name="kernels",
        namespace=NAMESPACE,
        operators=_OPERATORS,
        files=tuple(sorted(here.glob("*.cpp"))),
        headers=tuple(sorted(here.glob("*.h"))),
        flags=_FLAGS,
    )


def unsuitable(facts: Facts) -> str | None:
    """Return why no compiler would make the kernels useful on this machine; None: it would."""
    if sys.platform == "win32":
        return "native kernels are not built on Windows"
    if _INSTRUCTIONS not in facts.cpu.isa:
        return "native kernels need a CPU that multiplies bf16 (AVX512_BF16)"
    return None


def load_kernels(
    facts: Facts, announce: Announce | None = None, *, compiles: bool = True
) -> Choice[bool]:
    """Make the kernels available in this process, with the reason where they are not.

    Without `compiles`, only kernels that have been compiled before are.
    """
    reason = unsuitable(facts)
    if reason is not None:
        return Choice(False, reason)
    loaded = load_native(kernel_source(), facts, cache_directory(), announce, compiles=compiles)
    return loaded if not loaded.value else _tried(loaded)


def require_kernels() -> None:
    """Make the kernels available in this process. Raises LlmtrainError where they are not."""
    if kernel_source().is_loaded():
        return
    loaded = load_kernels(read_facts(tries_gpus=False))
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
