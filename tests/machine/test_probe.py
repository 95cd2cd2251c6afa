"""What the probe says of this machine holds together, and a broken device is a failure."""

from __future__ import annotations

import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from llmtrain.machine.facts import Facts
from llmtrain.machine.probe import read_cpu, read_facts


@pytest.fixture(scope="module")
def facts() -> Facts:
    return read_facts()


def test_facts_agree_with_python_and_torch(facts: Facts) -> None:
    assert facts.torch_version == torch.__version__
    assert facts.cpu.logical_cores == os.cpu_count()
    assert len(facts.of_kind("cuda")) <= torch.cuda.device_count()
    assert ("gloo" in facts.backends) == torch.distributed.is_gloo_available()


def test_facts_agree_with_themselves(facts: Facts) -> None:
    cpu = facts.cpu
    assert 1 <= cpu.usable_cores <= cpu.logical_cores
    assert 1 <= (cpu.physical_cores or 1) <= cpu.logical_cores
    assert (cpu.affinity_physical_cores or 0) <= (cpu.affinity_cores or 0)
    assert 0 < cpu.usable_memory_bytes <= cpu.memory_total_bytes
    assert facts.cxx_compiler is None or Path(facts.cxx_compiler).exists()
    assert {kind for kind, _ in facts.failures} <= {"cuda", "mps"}


def test_facts_are_read_quickly(facts: Facts) -> None:
    if facts.accelerators:
        pytest.skip("opening a GPU takes its time")
    start_s = time.perf_counter()
    read_facts()
    assert time.perf_counter() - start_s < 0.5


@pytest.mark.skipif(sys.platform != "linux", reason="reads an invented Linux")
def test_an_invented_container(tmp_path: Path) -> None:
    for name, text in {
        "proc/self/cgroup": "0::/\n",
        "proc/cpuinfo": "processor : 0\nmodel name : Invented\nflags : avx2\n",
        "sys/fs/cgroup/cpu.max": "150000 100000\n",
        "sys/fs/cgroup/memory.max": f"{2**20}\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    cpu = read_cpu(tmp_path)
    assert (cpu.model, cpu.isa, cpu.quota_cores) == ("Invented", ("avx2",), 1.5)
    assert cpu.memory_limit_bytes == cpu.usable_memory_bytes == 2**20
    assert cpu.usable_cores == 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no affinity")
def test_affinity_limits_the_usable_cores() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        cpu = read_cpu()
    finally:
        os.sched_setaffinity(0, allowed)
    assert (cpu.affinity_cores, cpu.usable_cores) == (1, 1)


def pretend_cuda(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    """Two CUDA devices of which the second cannot be computed on."""

    def ones(*_: object, device: str) -> torch.Tensor:
        if device == "cuda:1":
            raise RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be…")
        return torch.zeros(1)

    def properties(_: int) -> SimpleNamespace:
        major, minor = capability
        return SimpleNamespace(name="GPU", total_memory=2**34, major=major, minor=minor)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    monkeypatch.setattr(torch, "ones", ones)


def test_a_device_that_does_not_initialise_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_cuda(monkeypatch, (9, 0))
    facts = read_facts()
    assert [gpu.index for gpu in facts.of_kind("cuda")] == [0]
    assert facts.failures == (("cuda", "device 1: CUDA error: out of memory"),)


def test_a_rank_initialises_only_its_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_cuda(monkeypatch, (9, 0))
    facts = read_facts(cuda_index=0)
    assert [gpu.index for gpu in facts.of_kind("cuda")] == [0, 1]
    assert facts.failures == ()


def test_no_device_is_initialised_where_the_cpu_was_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pretend_cuda(monkeypatch, (9, 0))
    monkeypatch.setattr(torch, "ones", pytest.fail)
    facts = read_facts(tries_gpus=False)
    assert [gpu.index for gpu in facts.of_kind("cuda")] == [0, 1]


@pytest.mark.parametrize(("capability", "native"), [((7, 5), False), ((8, 0), True)])
def test_emulated_bf16_does_not_count(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], native: bool
) -> None:
    pretend_cuda(monkeypatch, capability)
    gpu = read_facts().of_kind("cuda")[0]
    assert (gpu.supports_bf16, gpu.compute_capability) == (native, capability)


def test_rocm_is_cuda_by_another_build(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_cuda(monkeypatch, (9, 4))
    monkeypatch.setattr(torch.version, "hip", "6.4.43482-0f2d60242")
    facts = read_facts()
    assert facts.torch_build == "rocm6.4"
    gpu = facts.of_kind("cuda")[0]
    assert (gpu.supports_bf16, gpu.compute_capability) == (True, None)


def test_why_torch_sees_no_gpu_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def is_available() -> bool:
        warnings.warn("CUDA initialization: The NVIDIA driver is too old\nmore", stacklevel=2)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    assert ("cuda", "CUDA initialization: The NVIDIA driver is too old") in read_facts().failures


def which_only(*present: str) -> Callable[[str], str | None]:
    return lambda name: f"/usr/bin/{name}" if name in present else None


def test_a_gpu_that_a_cpu_build_cannot_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(shutil, "which", which_only("nvidia-smi"))
    assert f"torch {torch.__version__} is built without CUDA" in (read_facts().unusable_gpu or "")


def test_a_cuda_build_leaves_no_gpu_unusable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(shutil, "which", which_only("nvidia-smi"))
    facts = read_facts()
    assert (facts.unusable_gpu, facts.torch_build) == (None, "cu130")


def test_the_compiler_is_the_one_inductor_would_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", which_only("g++", "clang++", "cl", "my-c++"))
    monkeypatch.setenv("CXX", "my-c++")
    assert read_facts().cxx_compiler == "/usr/bin/my-c++"
    monkeypatch.setenv("CXX", "not-there")
    assert read_facts().cxx_compiler is None
    monkeypatch.delenv("CXX")
    assert read_facts().cxx_compiler in {"/usr/bin/g++", "/usr/bin/clang++", "/usr/bin/cl"}
