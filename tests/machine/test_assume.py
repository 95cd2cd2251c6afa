"""Machines from a few words: what was said is there, what was not is said to be assumed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtrain.errors import UsageError
from llmtrain.machine import cpu
from llmtrain.machine.assume import EXAMPLES, INSTRUCTION_SETS, AssumedMachine, assume_machine
from llmtrain.machine.facts import AcceleratorKind

GIB = 2**30


def assumed(spec: str) -> AssumedMachine:
    return assume_machine(spec, python_version="3.12.3", torch_version="2.13.0")


def gpus(spec: str, kind: AcceleratorKind = "cuda") -> list[int]:
    return [gpu.memory_total_bytes for gpu in assumed(spec).facts.of_kind(kind)]


@pytest.mark.parametrize(
    ("spec", "memory_bytes"),
    [
        ("cuda:80GiB", [80 * GIB]),
        ("cuda:8x80GiB", [80 * GIB] * 8),
        ("cuda:8×80GiB", [80 * GIB] * 8),
        ("cuda:80GiB×8", [80 * GIB] * 8),
        ("cuda:80GiBx2:64c:1TiB", [80 * GIB] * 2),
        ("CUDA:2X80gib", [80 * GIB] * 2),
        ("cuda:16c:24GB", [24 * 10**9]),
        ("cpu:8c:32GiB", []),
        ("mps:16GiB", []),
    ],
)
def test_gpus(spec: str, memory_bytes: list[int]) -> None:
    assert gpus(spec) == memory_bytes
    assert [gpu.index for gpu in assumed(spec).facts.accelerators] == list(
        range(len(assumed(spec).facts.accelerators))
    )


def test_what_a_cpu_was_said_to_have() -> None:
    facts = assumed("cpu:16c:64GiB:amx_bf16").facts
    assert (facts.cpu.usable_cores, facts.cpu.usable_memory_bytes) == (16, 64 * GIB)
    assert facts.cpu.isa == ("amx_bf16",)
    assert facts.cpu.architecture == "x86_64"
    assert facts.system == "unknown"
    assert facts.cpu.model is None


def test_a_mac_shares_its_memory_with_its_gpu() -> None:
    (small,), (large,) = gpus("mps:16GiB", "mps"), gpus("mps:64GiB", "mps")
    assert small == 16 * GIB * 2 // 3
    assert large == 48 * GIB
    said = " ".join(assumed("mps:16GiB").assumptions)
    assert "at most 10.7 GiB" in said


def test_features_turn_something_off() -> None:
    old = assumed("cuda:16GiB:no-bf16:no-compiler")
    assert [gpu.supports_bf16 for gpu in old.facts.accelerators] == [False]
    assert old.facts.cxx_compiler is None
    assert "without a C++ compiler" in old.assumptions[0]
    assert not any("bf16" in text for text in old.assumptions)


@pytest.mark.parametrize(
    ("spec", "unsaid", "said"),
    [
        ("cuda:2x80GiB", "16 cores", "cuda:2x80GiB:24c"),
        ("cuda:2x80GiB", "160 GiB of main memory", "cuda:2x80GiB:512GiB"),
        ("cuda:80GiB", "multiplies bf16", "cuda:80GiB:no-bf16"),
        ("mps:16GiB", "8 cores", "mps:16GiB:10c"),
    ],
)
def test_only_what_was_not_said_is_assumed(spec: str, unsaid: str, said: str) -> None:
    assert unsaid in "\n".join(assumed(spec).assumptions)
    assert unsaid.split()[-1] not in "\n".join(assumed(said).assumptions[1:-2])


@pytest.mark.parametrize("spec", [each.strip() for each in EXAMPLES.replace(" or", ",").split(",")])
def test_what_the_hint_says_is_understood(spec: str) -> None:
    assert assumed(spec).spec == spec


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("", "'' is not cpu, cuda or mps"),
        ("tpu:16GiB", "'tpu' is not"),
        ("cuda", "memory of a GPU is missing"),
        ("cuda:16c", "memory of a GPU is missing"),
        ("mps:8c", "size of the memory is missing"),
        ("cpu:8c", "size of the memory is missing"),
        ("cpu:8GiB", "number of cores is missing"),
        ("cuda:80", "'80' is not a size (80GiB)"),
        ("cuda:80GiB:", "'' is not a size"),
        ("cuda:80QiB", "'80qib' is not a size"),
        ("cuda:1.2.3GiB", "'1.2.3gib' is not a size"),
        ("cuda:0x80GiB", "0 GPUs: not from 1 to"),
        ("cuda:99999x80GiB", "99999 GPUs: not from 1 to"),
        ("cuda:8x80GiBx8", "only GPUs are counted, and only once"),
        ("mps:2x16GiB", "only GPUs are counted, and only once"),
        ("cuda:80GiB:2x64GiB", "only GPUs are counted, and only once"),
        ("cpu:0c:8GiB", "0 cores: not from 1 to 4096"),
        ("cpu:5000c:8GiB", "5000 cores: not from 1 to 4096"),
        ("cpu:8c:4c:8GiB", "cores is given twice"),
        ("cpu:8c:8GiB:9GiB", "memory is given twice"),
        ("cpu:8c:1B", "memory is from 64 MiB to"),
        ("cpu:8c:9999999TiB", "memory is from 64 MiB to"),
        ("cpu:8c:8GiB:amx", "'amx' is not"),
    ],
)
def test_what_is_not_understood_is_refused(spec: str, why: str) -> None:
    with pytest.raises(UsageError, match=r"^--assume ") as caught:
        assumed(spec)
    assert why in caught.value.message
    assert caught.value.hint == f"write {EXAMPLES}"


@given(st.text(alphabet="cpudamsx×:0123456789.GMiB_-bf", max_size=40) | st.text(max_size=20))
def test_any_words_are_a_machine_or_refused(text: str) -> None:
    for spec in (text, f"cuda:{text}", f"cpu:8c:{text}"):
        try:
            machine = assumed(spec)
        except UsageError:
            continue
        assert machine.facts.cpu.usable_memory_bytes > 0
        assert machine.assumptions


def test_every_instruction_set_that_is_read_can_be_said() -> None:
    read = {*cpu._LINUX_ISA.values(), *cpu._SYSCTL_ISA.values()}
    assert set(INSTRUCTION_SETS) == read
