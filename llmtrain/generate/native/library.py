"""The compiled decode step: what it is compiled from, and whether this machine can use it."""

from __future__ import annotations

from pathlib import Path

from llmtrain.choice import Choice
from llmtrain.files import cache_directory
from llmtrain.machine.facts import Facts
from llmtrain.machine.native import Announce, NativeSource, load_native

_INSTRUCTIONS = "avx512_bf16"
_FLAGS = (
    "-mavx512f",
    "-mavx512bw",
    "-mavx512vl",
    "-mavx512dq",
    "-mavx512bf16",
    "-mavx512vnni",
    "-mfma",
)


def decode_source() -> NativeSource:
    """Return the C++ file of the decode step."""
    return NativeSource(
        name="decode",
        namespace="llmtrain_decode",
        operators=("step",),
        files=(Path(__file__).with_name("decode.cpp"),),
        flags=_FLAGS,
    )


def load_decode_step(
    facts: Facts, announce: Announce | None = None, *, compiles: bool = True
) -> Choice[bool]:
    """Make the compiled step available in this process, with the reason where it is not.

    Without `compiles`, only one that has been compiled before is.
    """
    if _INSTRUCTIONS not in facts.cpu.isa:
        return Choice(False, "this CPU does not multiply bf16 (AVX512_BF16)")
    return load_native(decode_source(), facts, cache_directory(), announce, compiles=compiles)
