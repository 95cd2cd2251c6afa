"""How many cores and how much memory a process may use, for machines one does not have."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from llmtrain.machine.facts import Accelerator, CpuFacts, Facts

XEON = CpuFacts(
    model="16-core Xeon",
    architecture="x86_64",
    physical_cores=16,
    logical_cores=32,
    sockets=1,
    affinity_cores=32,
    quota_cores=None,
    isa=("avx2", "avx512f", "amx_bf16"),
    memory_total_bytes=64 * 2**30,
    memory_limit_bytes=None,
)


def test_hardware_threads_are_not_cores() -> None:
    assert XEON.usable_cores == 16


def test_a_fractional_quota_is_rounded_down_to_at_least_one() -> None:
    assert replace(XEON, quota_cores=1.5).usable_cores == 1
    assert replace(XEON, quota_cores=0.25).usable_cores == 1
    assert replace(XEON, quota_cores=7.9).usable_cores == 7


def test_affinity_is_scaled_where_it_is_not_known_who_shares_a_core() -> None:
    assert replace(XEON, affinity_cores=8).usable_cores == 4


def test_affinity_to_one_thread_of_each_core_keeps_every_core() -> None:
    one_each = replace(XEON, affinity_cores=16, affinity_physical_cores=16)
    both_of_half = replace(XEON, affinity_cores=16, affinity_physical_cores=8)
    assert (one_each.usable_cores, both_of_half.usable_cores) == (16, 8)


def test_unknown_physical_cores_fall_back_to_logical() -> None:
    assert replace(XEON, physical_cores=None).usable_cores == 32
    assert replace(XEON, physical_cores=None, affinity_cores=None).usable_cores == 32


@given(
    physical=st.none() | st.integers(1, 256),
    threads_per_core=st.integers(1, 4),
    affinity=st.none() | st.integers(1, 1024),
    affinity_physical=st.none() | st.integers(1, 256),
    quota=st.none() | st.floats(0.01, 1e4),
)
def test_usable_cores_never_exceeds_a_limit_that_allows_one(
    physical: int | None,
    threads_per_core: int,
    affinity: int | None,
    affinity_physical: int | None,
    quota: float | None,
) -> None:
    cpu = replace(
        XEON,
        physical_cores=physical,
        logical_cores=(physical or 8) * threads_per_core,
        affinity_cores=affinity,
        affinity_physical_cores=affinity_physical,
        quota_cores=quota,
    )
    usable = cpu.usable_cores
    assert 1 <= usable <= (physical or cpu.logical_cores)
    assert usable <= max(1, affinity_physical or affinity or usable)
    assert usable <= max(1.0, quota or usable)


def test_usable_memory_is_the_smaller_of_total_and_limit() -> None:
    assert XEON.usable_memory_bytes == 64 * 2**30
    assert replace(XEON, memory_limit_bytes=2**30).usable_memory_bytes == 2**30


def test_of_kind_keeps_the_order() -> None:
    gpus = tuple(Accelerator("cuda", index, f"gpu {index}", 2**34, True) for index in range(2))
    facts = Facts("Linux", "3.12.0", "2.13.0", "cu130", XEON, accelerators=gpus)
    assert facts.of_kind("cuda") == gpus
    assert facts.of_kind("mps") == ()
