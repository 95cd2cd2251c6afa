"""Timing leaves torch as it was, and a compiler that does not work is named."""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._dynamo.exc import BackendCompilerFailed

from llmtrain.choice import Precision
from llmtrain.machine.facts import BlockTimes
from llmtrain.model import timing
from llmtrain.model.block import Block
from llmtrain.model.timing import CompileError, KernelError, time_attention, time_block, time_loss
from llmtrain.profile.shape import ModelShape


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_BUDGET_S", 0.0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("context", [48, 5000])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_times_are_positive_and_finite(
    small_shape: ModelShape, masked: bool, context: int, precision: Precision
) -> None:
    times = time_attention(dataclasses.replace(small_shape, context=context), precision, 1, masked)
    assert all(math.isfinite(s) and s > 0 for s in (times.sdpa_s, times.blocks_s))
    assert times.native_s is None


@pytest.mark.usefixtures("native_kernels")
def test_native_kernels_are_timed_beside_the_others(small_shape: ModelShape) -> None:
    assert time_attention(small_shape, "bf16", 1, native=True).native_s is not None
    times = dataclasses.astuple(time_loss(small_shape, 100, 1))
    assert all(math.isfinite(s) and s > 0 for s in times)


def eager(block: Block) -> None:
    """In place of compiling, which takes ten seconds."""


def block_times(
    shape: ModelShape, threads: int = 1, *, keep_casts: bool = True, masked: bool = False
) -> BlockTimes:
    return time_block(
        shape,
        micro_batch=2,
        precision="bf16",
        attention="blocks",
        checkpointing="off",  # only what is compiled can be told more while casts are kept
        keep_casts=keep_casts,
        threads=threads,
        masked=masked,
    )


@pytest.mark.parametrize("keep_casts", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_block_times_are_positive_and_finite(
    small_shape: ModelShape, monkeypatch: pytest.MonkeyPatch, keep_casts: bool, masked: bool
) -> None:
    monkeypatch.setattr(timing, "compile_block", eager)
    monkeypatch.setattr(timing, "importing_compiler_s", lambda: 2.0)
    times = block_times(small_shape, keep_casts=keep_casts, masked=masked)
    assert all(math.isfinite(s) and s > 0 for s in dataclasses.astuple(times))


def test_threads_and_random_state_are_restored(
    small_shape: ModelShape, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "compile_block", eager)
    before, random_state = torch.get_num_threads(), torch.get_rng_state()
    time_attention(small_shape, "fp32", before + 1)
    block_times(small_shape, before + 1)
    assert torch.get_num_threads() == before
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "raised:\nCommand:\ng++ a\n\n  a:1: fatal error: no omp.h\nb",
            "a:1: fatal error: no omp.h",
        ),
        (
            "\n  InvalidCxxCompiler: No working compiler\nb",
            "InvalidCxxCompiler: No working compiler",
        ),
        ("", "BackendCompilerFailed"),
    ],
)
def test_the_compilers_telling_line_is_the_message(
    monkeypatch: pytest.MonkeyPatch, said: str, told: str
) -> None:
    class Failed(BackendCompilerFailed):
        def __init__(self) -> None:
            Exception.__init__(self, said)

    Failed.__name__ = "BackendCompilerFailed"

    def fail() -> None:
        raise Failed

    with pytest.raises(CompileError) as caught:
        timing.compiling_s(fail)
    assert caught.value.message == told


def test_a_kernel_that_a_gpu_refuses_is_told_from_a_failed_compiler(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class TritonError(Exception):
        pass

    def fail() -> None:
        raise TritonError("out of resource: shared memory, Required: 300000")

    monkeypatch.setattr(timing, "_triton_error", lambda: TritonError)
    with pytest.raises(KernelError, match=r"^out of resource: shared memory"):
        timing.compiling_s(fail)


def test_what_is_not_the_compilers_failure_is_not_taken_for_one() -> None:
    def fail() -> None:
        raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"):
        timing.compiling_s(fail)


BROKEN = """
from llmtrain.model.timing import CompileError, importing_compiler_s, time_block
from llmtrain.profile.schema import ModelSection
from llmtrain.profile.shape import shape_of
print("imported", importing_compiler_s() > 0, importing_compiler_s())
from torch._inductor.cpu_vec_isa import valid_vec_isa_list
print("probed", valid_vec_isa_list.cache_info().misses)
shape = shape_of(ModelSection(hidden_size=32, num_heads=2, num_layers=1, context=16))
try:
    time_block(shape, micro_batch=1, precision="fp32", attention="blocks",
               checkpointing="selective", keep_casts=False, threads=1)
except CompileError as error:
    print(error.message)
"""


@pytest.mark.skipif(shutil.which("false") is None, reason="needs a program that fails")
def test_the_compilers_import_is_timed_once_and_a_broken_one_is_named(tmp_path: Path) -> None:
    broken = os.environ | {"CXX": "false", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "compiled")}
    done = subprocess.run(
        [sys.executable, "-c", BROKEN], env=broken, capture_output=True, text=True, check=True
    )
    assert "imported True None" in done.stdout
    assert "probed 1" in done.stdout
    assert "No working C++ compiler" in done.stdout
    assert "false" in done.stdout
