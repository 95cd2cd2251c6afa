"""A time is measured once for each key, and no state of the cache stops a run."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from llmtrain.machine.facts import AttentionTimes, BlockTimes, MatmulTimes
from llmtrain.machine.measurement_cache import (
    MeasurementKey,
    Times,
    kernel_environment,
    load_failure,
    load_measurement,
    measurement_key,
    save_failure,
    save_measurement,
)
from llmtrain.machine.probe import read_facts

SHAPE = (("hidden", 384), ("intermediate", 1024), ("tokens", 4096))
KEY = MeasurementKey("products", "Invented", ("avx2",), 4, "2.13.0", SHAPE)
OLD = MatmulTimes(fp32_s=0.1, medium_s=0.05, bf16_s=0.02, flops=2.0)
NEW = MatmulTimes(fp32_s=3.0, medium_s=2.0, bf16_s=1.0, flops=2.0)


def times_of(directory: Path, key: MeasurementKey, measured: MatmulTimes) -> MatmulTimes:
    """What the cache answers where measuring would give `measured`."""
    kept = load_measurement(directory, key, MatmulTimes)
    if kept is None:
        save_measurement(directory, key, measured)
    return measured if kept is None else kept


def keep(directory: Path) -> Path:
    """OLD is kept for KEY. Returns the file."""
    assert times_of(directory, KEY, OLD) == OLD
    (path,) = (directory / "probe").iterdir()
    return path


def test_kept_times_are_not_measured_again(tmp_path: Path) -> None:
    keep(tmp_path)
    assert times_of(tmp_path, KEY, NEW) == OLD


def test_looking_measures_nothing(tmp_path: Path) -> None:
    assert load_measurement(tmp_path, KEY, MatmulTimes) is None
    assert not list(tmp_path.iterdir())
    keep(tmp_path)
    assert load_measurement(tmp_path, KEY, MatmulTimes) == OLD


def test_a_failure_is_kept_in_place_of_times(tmp_path: Path) -> None:
    assert load_failure(tmp_path, KEY) is None
    save_failure(tmp_path, KEY, "out of resource: shared memory " + 1000 * "x")
    reason = load_failure(tmp_path, KEY)
    assert reason is not None
    assert reason.startswith("out of resource: shared memory")
    assert load_failure(tmp_path, replace(KEY, threads=3)) is None
    assert load_measurement(tmp_path, KEY, MatmulTimes) is None
    save_measurement(tmp_path, KEY, NEW)
    assert load_failure(tmp_path, KEY) is None


def test_times_kept_last_are_those_believed(tmp_path: Path) -> None:
    keep(tmp_path)
    save_measurement(tmp_path, KEY, NEW)
    assert load_measurement(tmp_path, KEY, MatmulTimes) == NEW


@pytest.mark.parametrize(
    "times", [OLD, AttentionTimes(0.2, 0.1), BlockTimes(0.4, 0.3, 12.0)], ids=lambda t: type(t)
)
def test_times_of_each_kind_come_back_and_pass_for_no_other(tmp_path: Path, times: Times) -> None:
    save_measurement(tmp_path, KEY, times)
    found = [
        load_measurement(tmp_path, KEY, kind) for kind in (MatmulTimes, AttentionTimes, BlockTimes)
    ]
    assert [t for t in found if t is not None] == [times]


def test_the_key_is_stored_in_a_form_people_can_read(tmp_path: Path) -> None:
    assert json.loads(keep(tmp_path).read_text())["key"]["cpu_model"] == "Invented"


@pytest.mark.parametrize(
    "other",
    [
        replace(KEY, cpu_model=None),
        replace(KEY, isa=("avx2", "avx512f")),
        replace(KEY, threads=2),
        replace(KEY, torch_version="2.14.0"),
        replace(KEY, what="attention"),
        replace(KEY, arguments=(("hidden", 1024), ("intermediate", 384), ("tokens", 4096))),
        replace(KEY, arguments=SHAPE[:2]),
        replace(KEY, environment=(("ONEDNN_MAX_CPU_ISA", "AVX2"),)),
    ],
)
def test_every_part_of_the_key_matters(tmp_path: Path, other: MeasurementKey) -> None:
    keep(tmp_path)
    assert times_of(tmp_path, other, NEW) == NEW
    assert times_of(tmp_path, KEY, NEW) == OLD


def test_a_file_with_another_key_inside_is_not_believed(tmp_path: Path) -> None:
    path = keep(tmp_path)
    path.write_text(path.read_text().replace("Invented", "Other"))
    assert times_of(tmp_path, KEY, NEW) == NEW


@pytest.mark.parametrize(
    "times",
    [
        '{"fp32_s": NaN, "medium_s": 1.0, "bf16_s": 1.0, "flops": 2.0}',
        '{"fp32_s": Infinity, "medium_s": 1.0, "bf16_s": 1.0, "flops": 2.0}',
        '{"fp32_s": 0.0, "medium_s": 1.0, "bf16_s": 1.0, "flops": 2.0}',
        '{"fp32_s": -1.0, "medium_s": 1.0, "bf16_s": 1.0, "flops": 2.0}',
        '{"fp32_s": true, "medium_s": 1.0, "bf16_s": 1.0, "flops": 2.0}',
        '{"fp32_s": "1.0", "medium_s": 1.0, "bf16_s": 1.0, "flops": 2.0}',
        '{"fp32_s": 1.0, "medium_s": 1.0, "bf16_s": 1.0}',
        '{"fp32_s": 1.0, "medium_s": 1.0, "bf16_s": 1.0, "flops": 2.0, "fp8_s": 1.0}',
        "[]",
    ],
)
def test_only_positive_finite_times_are_believed(tmp_path: Path, times: str) -> None:
    path = keep(tmp_path)
    key = json.dumps(json.loads(path.read_text())["key"])
    path.write_text(f'{{"key": {key}, "times": {times}}}')
    assert times_of(tmp_path, KEY, NEW) == NEW


@pytest.mark.parametrize("damage", [b"", b"\xff\xfe\x00", b"{", b"null", b"[" * 100_000])
def test_a_damaged_file_is_replaced(tmp_path: Path, damage: bytes) -> None:
    keep(tmp_path).write_bytes(damage)
    assert times_of(tmp_path, KEY, NEW) == NEW
    assert times_of(tmp_path, KEY, OLD) == NEW


def test_a_cache_that_cannot_be_written_is_passed_over(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    for _ in range(2):
        assert times_of(in_the_way, KEY, NEW) == NEW


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_cache_is_passed_over(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert times_of(tmp_path, KEY, NEW) == NEW


def test_variables_that_change_the_kernels_are_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    key = measurement_key(read_facts(), "products", 1, hidden=8)
    assert ("ATEN_CPU_CAPABILITY", "avx2") in key.environment
    assert kernel_environment({"PATH": "/bin"}) == ()


def test_the_order_of_arguments_is_no_part_of_the_key() -> None:
    facts = read_facts()
    one = measurement_key(facts, "products", 1, hidden=8, tokens=32)
    assert one == measurement_key(facts, "products", 1, tokens=32, hidden=8)
    assert one != measurement_key(facts, "products", 1, hidden=32, tokens=8)
