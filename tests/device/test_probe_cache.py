"""A time is measured once for each key, and no state of the cache stops a run."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from llmtrain.device.facts import MatmulTimes
from llmtrain.device.probe import read_facts
from llmtrain.device.probe_cache import (
    ProbeKey,
    cached_matmul_times,
    kernel_environment,
    probe_key,
)

KEY = ProbeKey("Invented", ("avx2",), 4, "2.13.0", 384, 1024, 4096)
OLD = MatmulTimes(fp32_s=0.1, medium_s=0.05, bf16_s=0.02)
NEW = MatmulTimes(fp32_s=3.0, medium_s=2.0, bf16_s=1.0)


def keep(directory: Path) -> Path:
    """OLD is kept for KEY. Returns the file."""
    assert cached_matmul_times(directory, KEY, lambda: OLD) == (OLD, False)
    (path,) = (directory / "probe").iterdir()
    return path


def test_kept_times_are_not_measured_again(tmp_path: Path) -> None:
    keep(tmp_path)
    assert cached_matmul_times(tmp_path, KEY, lambda: pytest.fail("measured")) == (OLD, True)


def test_the_key_is_stored_in_a_form_people_can_read(tmp_path: Path) -> None:
    assert json.loads(keep(tmp_path).read_text())["key"]["cpu_model"] == "Invented"


@pytest.mark.parametrize(
    "other",
    [
        replace(KEY, cpu_model=None),
        replace(KEY, isa=("avx2", "avx512f")),
        replace(KEY, threads=2),
        replace(KEY, torch_version="2.14.0"),
        replace(KEY, hidden_size=1024, intermediate_size=384),
        replace(KEY, tokens=1),
        replace(KEY, environment=(("ONEDNN_MAX_CPU_ISA", "AVX2"),)),
    ],
)
def test_every_part_of_the_key_matters(tmp_path: Path, other: ProbeKey) -> None:
    keep(tmp_path)
    assert cached_matmul_times(tmp_path, other, lambda: NEW) == (NEW, False)
    assert cached_matmul_times(tmp_path, KEY, lambda: NEW) == (OLD, True)


def test_a_file_with_another_key_inside_is_not_believed(tmp_path: Path) -> None:
    path = keep(tmp_path)
    path.write_text(path.read_text().replace("Invented", "Other"))
    assert cached_matmul_times(tmp_path, KEY, lambda: NEW) == (NEW, False)


@pytest.mark.parametrize(
    "times",
    [
        '{"fp32_s": NaN, "medium_s": 1.0, "bf16_s": 1.0}',
        '{"fp32_s": Infinity, "medium_s": 1.0, "bf16_s": 1.0}',
        '{"fp32_s": 0.0, "medium_s": 1.0, "bf16_s": 1.0}',
        '{"fp32_s": -1.0, "medium_s": 1.0, "bf16_s": 1.0}',
        '{"fp32_s": true, "medium_s": 1.0, "bf16_s": 1.0}',
        '{"fp32_s": "1.0", "medium_s": 1.0, "bf16_s": 1.0}',
        '{"fp32_s": 1.0, "medium_s": 1.0}',
        '{"fp32_s": 1.0, "medium_s": 1.0, "bf16_s": 1.0, "fp8_s": 1.0}',
        "[]",
    ],
)
def test_only_positive_finite_times_are_believed(tmp_path: Path, times: str) -> None:
    path = keep(tmp_path)
    key = json.dumps(json.loads(path.read_text())["key"])
    path.write_text(f'{{"key": {key}, "times": {times}}}')
    assert cached_matmul_times(tmp_path, KEY, lambda: NEW) == (NEW, False)


@pytest.mark.parametrize("damage", [b"", b"\xff\xfe\x00", b"{", b"null", b"[" * 100_000])
def test_a_damaged_file_is_replaced(tmp_path: Path, damage: bytes) -> None:
    keep(tmp_path).write_bytes(damage)
    assert cached_matmul_times(tmp_path, KEY, lambda: NEW) == (NEW, False)
    assert cached_matmul_times(tmp_path, KEY, lambda: OLD) == (NEW, True)


def test_a_cache_that_cannot_be_written_is_passed_over(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    for _ in range(2):
        assert cached_matmul_times(in_the_way, KEY, lambda: NEW) == (NEW, False)


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_cache_is_passed_over(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert cached_matmul_times(tmp_path, KEY, lambda: NEW) == (NEW, False)


def test_an_error_while_measuring_is_not_swallowed(tmp_path: Path) -> None:
    def fail() -> MatmulTimes:
        raise ValueError("measuring failed")

    with pytest.raises(ValueError, match="measuring failed"):
        cached_matmul_times(tmp_path, KEY, fail)


def test_variables_that_change_the_kernels_are_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    shape = {"hidden_size": 8, "intermediate_size": 16, "tokens": 32, "threads": 1}
    assert ("ATEN_CPU_CAPABILITY", "avx2") in probe_key(read_facts(), **shape).environment
    assert kernel_environment({"PATH": "/bin"}) == ()
