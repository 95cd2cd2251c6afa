"""Construct the facts of another machine from a short specification: `cuda:8x80GiB`, `mps:16GiB`.

    SPEC     = KIND ":" FIELD { ":" FIELD }        KIND = cpu | cuda | mps
    FIELD    = GPUS | SIZE | CORES | FEATURE, in any order, each at most once
    GPUS     = [ NUMBER "x" ] SIZE | SIZE "x" NUMBER    memory of each GPU; cuda only, and first
    SIZE     = 80GiB, 512MB …                      memory of the machine
    CORES    = NUMBER "c"                          physical cores
    FEATURE  = an instruction set, no-bf16 (of the GPUs) or no-compiler

Facts that the specification omits are assumed, and each assumption is listed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from llmtrain.errors import UsageError
from llmtrain.machine.facts import Accelerator, CpuFacts, Facts
from llmtrain.profile.quantities import MOST_THREADS
from llmtrain.units import format_bytes, parse_bytes

EXAMPLES = "cuda:80GiB, cuda:8x80GiB:64c, mps:16GiB, cpu:8c:32GiB or cpu:16c:64GiB:amx_bf16"
INSTRUCTION_SETS = (
    *("avx2", "avx512f", "avx512_bf16", "avx_ne_convert", "amx_bf16"),
    *("neon", "sve", "bf16", "sve_bf16", "sme"),
)
_X86 = ("avx", "amx")
_NO_BF16, _NO_COMPILER = "no-bf16", "no-compiler"
_FEATURES = (*INSTRUCTION_SETS, _NO_BF16, _NO_COMPILER)
_CORES = re.compile(r"(\d{1,9})c", re.ASCII)
_GPUS = re.compile(r"(?:(\d{1,9})[x×])?(\d[\d.]{0,30}[a-z]+)(?:[x×](\d{1,9}))?", re.ASCII)
_LEAST_BYTES, _MOST_BYTES, _MOST_GPUS = 2**26, 2**50, 1024
_CORES_A_GPU = _CORES_OF_A_MAC = 8
# What Metal recommends not to exceed: about 2/3 of a Mac's memory, 3/4 of a large one's.
_LARGE_MAC_BYTES = 36 * 2**30


@dataclass(frozen=True, slots=True)
class AssumedMachine:
    """The facts of another machine, and the assumptions about it."""

    spec: str
    facts: Facts
    assumptions: tuple[str, ...]


@dataclass(slots=True)
class _Words:
    """The parsed fields of a SPEC."""

    spec: str
    kind: str
    gpus: int = 1
    gpu_bytes: int | None = None
    memory_bytes: int | None = None
    cores: int | None = None
    features: list[str] = field(default_factory=list)

    def wrong(self, why: str) -> UsageError:
        return UsageError(f"--assume {self.spec}: {why}", hint=f"write {EXAMPLES}")


def assume_machine(spec: str, *, python_version: str, torch_version: str) -> AssumedMachine:
    """Return the machine that `spec` describes, with those versions. Raises UsageError."""
    words = _parse(spec)
    facts = Facts(
        system={"cuda": "Linux", "mps": "Darwin"}.get(words.kind, "unknown"),
        python_version=python_version,
        torch_version=torch_version,
        torch_build={"cuda": "for CUDA", "mps": "for macOS"}.get(words.kind, "for CPU"),
        cpu=_cpu(words),
        accelerators=tuple(_accelerators(words)),
        cxx_compiler=None if _NO_COMPILER in words.features else "assumed",
        has_triton=words.kind == "cuda",
        backends=("gloo", "nccl") if words.kind == "cuda" else ("gloo",),
    )
    return AssumedMachine(spec, facts, tuple(_assumptions(words, facts)))


def _parse(spec: str) -> _Words:
    kind, *fields = spec.strip().lower().split(":")
    words = _Words(spec, kind)
    if kind not in ("cpu", "cuda", "mps"):
        raise words.wrong(f"{kind!r} is not cpu, cuda or mps")
    for text in fields:
        _take(words, text)
    if kind == "cuda" and words.gpu_bytes is None:
        raise words.wrong("the memory of a GPU is missing")
    if kind != "cuda" and words.memory_bytes is None:
        raise words.wrong("the size of the memory is missing")
    if kind == "cpu" and words.cores is None:
        raise words.wrong("the number of cores is missing")
    return words


def _take(words: _Words, text: str) -> None:
    """Add the field `text` to `words`. Raises UsageError."""
    if text in _FEATURES:
        words.features.append(text)
    elif cores := _CORES.fullmatch(text):
        if words.cores is not None:
            raise words.wrong("the number of cores is given twice")
        words.cores = _bounded(words, int(cores[1]), 1, MOST_THREADS, "cores")
    elif size := _GPUS.fullmatch(text):
        _take_memory(words, text, size)
    else:
        features = ", ".join(_FEATURES)
        raise words.wrong(
            f"{text!r} is not a size (80GiB), a number of cores (8c) or one of {features}"
        )


def _take_memory(words: _Words, text: str, size: re.Match[str]) -> None:
    numbers = [int(number) for number in (size[1], size[3]) if number is not None]
    try:
        memory_bytes = parse_bytes(size[2])
    except ValueError as error:
        raise words.wrong(str(error)) from None
    if not _LEAST_BYTES <= memory_bytes <= _MOST_BYTES:
        least, most = format_bytes(_LEAST_BYTES), format_bytes(_MOST_BYTES)
        raise words.wrong(f"memory is from {least} to {most}, not {format_bytes(memory_bytes)}")
    if words.kind == "cuda" and words.gpu_bytes is None and len(numbers) < 2:
        words.gpu_bytes = memory_bytes
        words.gpus = _bounded(words, numbers[0], 1, _MOST_GPUS, "GPUs") if numbers else 1
    elif numbers:
        raise words.wrong(f"{text!r}: only GPUs are counted, and only once")
    elif words.memory_bytes is not None:
        raise words.wrong("the size of the memory is given twice")
    else:
        words.memory_bytes = memory_bytes


def _bounded(words: _Words, number: int, least: int, most: int, of_what: str) -> int:
    if not least <= number <= most:
        raise words.wrong(f"{number} {of_what}: not from {least} to {most}")
    return number


def _cpu(words: _Words) -> CpuFacts:
    cores = words.cores or (_CORES_OF_A_MAC if words.kind == "mps" else _CORES_A_GPU * words.gpus)
    isa = tuple(name for name in INSTRUCTION_SETS if name in words.features)
    return CpuFacts(
        model=None,
        architecture=_architecture(words.kind, isa),
        physical_cores=cores,
        logical_cores=cores,
        sockets=None,
        affinity_cores=None,
        quota_cores=None,
        isa=isa,
        memory_total_bytes=words.memory_bytes or words.gpus * (words.gpu_bytes or 0),
        memory_limit_bytes=None,
    )


def _architecture(kind: str, isa: tuple[str, ...]) -> str:
    if kind == "mps":
        return "arm64"
    if not isa:
        return "unknown"
    return "x86_64" if any(name.startswith(_X86) for name in isa) else "aarch64"


def _accelerators(words: _Words) -> Iterator[Accelerator]:
    has_bf16 = _NO_BF16 not in words.features
    if words.kind == "cuda" and words.gpu_bytes is not None:
        for index in range(words.gpus):
            yield Accelerator("cuda", index, "assumed GPU", words.gpu_bytes, has_bf16)
    if words.kind == "mps" and words.memory_bytes is not None:
        parts = (3, 4) if words.memory_bytes > _LARGE_MAC_BYTES else (2, 3)
        share_bytes = words.memory_bytes * parts[0] // parts[1]
        yield Accelerator("mps", 0, "assumed Apple GPU", share_bytes, has_bf16)


def _assumptions(words: _Words, facts: Facts) -> Iterator[str]:
    """Yield the assumptions, as sentences."""
    cpu, compiler = facts.cpu, "without" if _NO_COMPILER in words.features else "with"
    system = {"cuda": "Linux", "mps": "macOS"}.get(words.kind, "an unknown system")
    extras = ", nccl and Triton" if words.kind == "cuda" else ""
    yield (
        f"{system}, Python {facts.python_version}, torch {facts.torch_version} "
        f"{facts.torch_build}{extras}, {compiler} a C++ compiler"
    )
    if words.kind == "cuda" and words.cores is None:
        yield f"{cpu.logical_cores} cores: {_CORES_A_GPU} per GPU"
    elif words.cores is None:
        yield f"{cpu.logical_cores} cores"
    if words.kind == "cuda" and words.memory_bytes is None:
        memory = format_bytes(cpu.memory_total_bytes)
        yield f"{memory} of main memory: as much as all GPUs have"
    if words.kind != "cpu" and _NO_BF16 not in words.features:
        yield "the GPU multiplies bf16 natively"
    if words.kind == "mps":
        share = format_bytes(facts.accelerators[0].memory_total_bytes)
        yield f"Metal recommends to use at most {share} of the memory"
    yield "one thread per core, all cores and memory free, and no limits"
    yield "nothing is measured: decisions that need measurements have their defaults"
