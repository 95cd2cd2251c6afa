"""Every way in which allocators say it is understood, and nothing else is."""

from __future__ import annotations

import errno
import sys

import pytest
import torch

from llmtrain.errors import DataError, DoesNotFitError
from llmtrain.machine import out_of_memory as module
from llmtrain.machine.out_of_memory import memory_errors_mapped, out_of_memory

CPU = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you "
    "tried to allocate 67108864 bytes. Error code 12 (Cannot allocate memory)"
)
WINDOWS = (
    "[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: not enough memory: you tried "
    "to allocate 2147483648 bytes."
)
CUDA = (
    "CUDA out of memory. Tried to allocate 20.50 MiB. GPU 0 has a total capacity of 79.11 GiB of "
    "which 12.00 MiB is free. Process 1 has 70.00 GiB memory in use."
)
MPS = (
    "MPS backend out of memory (MPS allocated: 8.00 GiB, other allocations: 1.00 GiB, max allowed: "
    "9.07 GiB). Tried to allocate 256.00 MiB on private pool."
)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError(CPU), "64 MiB could not be allocated"),
        (RuntimeError(WINDOWS), "2 GiB could not be allocated"),
        (torch.OutOfMemoryError(CUDA), "20.50 MiB could not be allocated"),
        (RuntimeError(MPS), "256.00 MiB could not be allocated"),
        (RuntimeError("CUDA error: out of memory"), "memory ran out"),
        (RuntimeError("std::bad_alloc"), "memory ran out"),
        (MemoryError(), "memory ran out"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "memory ran out"),
    ],
)
def test_what_is_about_memory(error: Exception, expected: str) -> None:
    assert out_of_memory(error) == expected


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
        OSError(errno.ENOSPC, "No space left on device"),
        OSError("out of memory"),  # an OSError says it by its number
        ValueError("out of memory"),
        DataError("the corpus speaks of being out of memory"),
        KeyboardInterrupt(),
    ],
)
def test_what_is_not(error: BaseException) -> None:
    assert out_of_memory(error) is None


@pytest.mark.parametrize("text", ["could not create a primitive", "can't start new thread"])
def test_what_may_have_other_causes_is_believed_where_memory_cannot_be_had(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = RuntimeError(text)
    assert out_of_memory(error) is None
    monkeypatch.setattr(module, "_PROBE_BYTES", 1 << 62)
    assert out_of_memory(error) == "memory ran out"
    assert out_of_memory(RuntimeError("shapes")) is None


def test_errors_about_memory_are_ours_within() -> None:
    with pytest.raises(DoesNotFitError, match="64 MiB") as caught, memory_errors_mapped():
        raise RuntimeError(CPU)
    assert caught.value.exit_code == 3
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_other_errors_are_left_alone_within() -> None:
    with pytest.raises(RuntimeError, match="shapes"), memory_errors_mapped():
        raise RuntimeError("shapes")
    with pytest.raises(DataError), memory_errors_mapped():
        raise DataError("out of memory")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system may lend what it lacks")
def test_this_torch_is_understood() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert out_of_memory(caught.value) is not None
