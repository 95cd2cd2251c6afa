"""What a script requires is found where it is, and where it is not the reason is told."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmtrain.errors import UsageError
from llmtrain.plan.require import Finding, Requirement, find, parse_requirements
from tests.machines import CPU, CUDA, CUDA_OLD, GIB, MPS, OLD_MPS

AMX = replace(CPU, cpu=replace(CPU.cpu, isa=("avx2", "avx512f", "avx512_bf16", "amx_bf16")))
ZEN4 = replace(CPU, cpu=replace(CPU.cpu, isa=("avx2", "avx512f", "avx512_bf16")))
ALDER = replace(CPU, cpu=replace(CPU.cpu, isa=("avx2", "avx_ne_convert")))
APPLE = replace(MPS, cpu=replace(MPS.cpu, architecture="arm64", isa=("neon", "bf16")))


def only(text: str, facts: object, kind: object) -> Finding:
    (requirement,) = parse_requirements(text)
    return find(requirement, facts, kind)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "facts", "kind", "is_met"),
    [
        ("cpu", CPU, "cpu", True),
        ("cuda", CPU, "cpu", False),
        ("cuda", CUDA, "cuda", True),
        ("cuda", CUDA, "cpu", True),  # it is there, also where it is not used
        ("mps", MPS, "mps", True),
        ("mps", CUDA, "cuda", False),
        ("bf16", CPU, "cpu", False),
        ("bf16", AMX, "cpu", True),
        ("bf16", ZEN4, "cpu", True),
        ("bf16", ALDER, "cpu", False),  # it only converts
        ("bf16", APPLE, "cpu", True),
        ("bf16", CUDA, "cuda", True),
        ("bf16", CUDA, "cpu", False),  # the device that computes counts
        ("bf16", CUDA_OLD, "cuda", False),  # one of two cannot
        ("bf16", OLD_MPS, "mps", False),
        ("amx", AMX, "cpu", True),
        ("amx", ZEN4, "cpu", False),
        ("compile", CPU, "cpu", False),
        ("compile", replace(CPU, cxx_compiler="g++"), "cpu", True),
        ("compile", CUDA, "cuda", True),
        ("compile", replace(CUDA, has_triton=False), "cuda", False),
        ("cores:8", CPU, "cpu", True),
        ("cores:9", CPU, "cpu", False),
        ("memory:16GiB", CPU, "cpu", True),
        ("memory:16.1GiB", CPU, "cpu", False),
        ("memory:24GiB", CUDA, "cuda", True),
        ("memory:17GiB", CUDA, "cpu", False),
    ],
)
def test_what_is_there(text: str, facts: object, kind: str, is_met: bool) -> None:
    assert only(text, facts, kind).is_met is is_met


def test_amounts_are_measured_within_limits() -> None:
    limited = replace(CPU, cpu=replace(CPU.cpu, memory_limit_bytes=2 * GIB, quota_cores=1.5))
    assert only("memory:3GiB", limited, "cpu").measured == 2 * GIB
    assert only("cores:2", limited, "cpu").measured == 1


def test_why_a_gpu_is_missing_is_told() -> None:
    broken = replace(CPU, failures=(("cuda", "driver too old"),), unusable_gpu="built without CUDA")
    assert only("cuda", broken, "cpu").found == "driver too old; built without CUDA"


def test_a_list_is_read_in_its_order() -> None:
    assert parse_requirements(" BF16, cuda,,cores:2 ") == [
        Requirement("bf16"),
        Requirement("cuda"),
        Requirement("cores", 2),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cuad", ("cuad", "did you mean cuda?")),
        ("bf16,core:4", ("core:4", "did you mean cores?")),
        ("", ("names nothing", "cores:4")),
        (" , ", ("names nothing",)),
        ("cores", ("cores", "not a count")),
        ("cores:0", ("cores:0", "every machine")),
        ("cores:-1", ("cores:-1", "not a count")),
        ("memory:lots", ("memory:lots", "not a size")),
        ("memory:nan", ("memory:nan",)),
        ("cuda:2", ("cuda:2", "unknown")),
    ],
)
def test_nonsense_is_refused(text: str, words: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        parse_requirements(text)
    assert all(word in f"{caught.value.message} {caught.value.hint}" for word in words)
