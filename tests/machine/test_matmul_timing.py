"""Timing leaves torch as it was. What it measures depends on the machine and is not asserted."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import astuple

import pytest
import torch

from llmtrain.machine import matmul_timing
from llmtrain.machine.facts import MatmulTimes
from llmtrain.machine.matmul_timing import time_matmuls
from llmtrain.machine.timing import Timing


@pytest.mark.parametrize("tokens", [1, 100, 5000])
def test_times_are_positive_and_finite(tokens: int) -> None:
    times = time_matmuls(64, 96, tokens, threads=1)
    assert all(math.isfinite(seconds) and seconds > 0 for seconds in astuple(times))
    assert times.flops == 6 * 2 * tokens * 64 * 96  # two layers, three products each


def test_precision_threads_and_random_state_are_restored() -> None:
    precision, threads = torch.get_float32_matmul_precision(), torch.get_num_threads()
    random_state = torch.get_rng_state()
    torch.set_float32_matmul_precision("high")
    torch.set_num_threads(2)
    try:
        time_matmuls(64, 96, 64, threads=1)
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.get_num_threads() == 2
        assert torch.equal(torch.get_rng_state(), random_state)
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.set_num_threads(threads)


def test_settings_are_restored_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> list[float]:
        raise RuntimeError("could not create a primitive")

    before = torch.get_float32_matmul_precision(), torch.get_num_threads()
    monkeypatch.setattr(matmul_timing, "_products", fail)
    with pytest.raises(RuntimeError, match="primitive"):
        time_matmuls(64, 96, 64, threads=1)
    assert (torch.get_float32_matmul_precision(), torch.get_num_threads()) == before


def invented(monkeypatch: pytest.MonkeyPatch, **seconds: float) -> list[tuple[str, int]]:
    """Each candidate takes `seconds` per row of any layers. Returns what will have been timed."""
    timed: list[tuple[str, int]] = []

    def time_(
        names: Iterable[str], operands: matmul_timing._Operands, *_: object
    ) -> dict[str, Timing]:
        rows = operands[torch.float32][0].shape[0]
        timed.extend((name, rows) for name in names)
        return {name: Timing(9.0, rows * seconds[name]) for name in names}

    monkeypatch.setattr(matmul_timing, "_time", time_)
    return timed


def seconds(times: MatmulTimes) -> tuple[float, float, float]:
    return times.fp32_s, times.medium_s, times.bf16_s


def test_a_hopeless_candidate_is_only_screened(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = invented(monkeypatch, fp32=1e-6, medium=1e-6, bf16=5e-5)
    times = time_matmuls(64, 96, 1000, threads=1)
    assert {rows for name, rows in timed if name == "bf16"} == {matmul_timing._SCREENING_SIZE}
    assert seconds(times) == pytest.approx((1e-3, 1e-3, 5e-2))


def test_fewer_rows_are_timed_where_they_take_long(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = invented(monkeypatch, fp32=1e-4, medium=1e-4, bf16=1e-4)
    times = time_matmuls(256, 256, 10**6, threads=1)
    rows = timed[-1][1]
    assert rows * 3e-4 * matmul_timing._LEAST_ROUNDS <= matmul_timing._BUDGET_S < 10**6 * 3e-4
    assert seconds(times) == pytest.approx((100.0, 100.0, 100.0))


def test_seconds_are_those_of_threads_that_all_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPU time is over all threads; a busy machine changes the wall time and not that."""
    invented(monkeypatch, fp32=4e-6, medium=4e-6, bf16=2e-6)
    assert seconds(time_matmuls(64, 96, 1000, threads=2)) == pytest.approx((2e-3, 2e-3, 1e-3))


def test_bf16_loses_where_the_processor_has_no_instruction_for_it() -> None:
    if torch.backends.cpu.get_cpu_capability() not in {"AVX2", "AVX512"}:
        pytest.skip("needs an x86 processor with AVX2")
    script = (
        "from llmtrain.machine.matmul_timing import time_matmuls;"
        "m = time_matmuls(256, 256, 256, threads=1);"
        "print(m.bf16_s / m.fp32_s)"
    )
    capped = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=capped, capture_output=True, text=True, check=True
    )
    assert float(done.stdout) > 2  # 13 measured
