"""Joules are what counters counted since they were made."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from llmtrain.machine.energy import EnergyMeter, gpu_counters, package_counters

RANGE_UJ = 262_143_328_850


def zone(root: Path, name: str, what: str, energy_uj: int) -> Path:
    place = root / "sys" / "class" / "powercap" / name
    place.mkdir(parents=True, exist_ok=True)
    (place / "name").write_text(what + "\n")
    (place / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
    (place / "energy_uj").write_text(f"{energy_uj}\n")
    return place


def test_packages_are_added_and_their_parts_are_not(tmp_path: Path) -> None:
    zones = [zone(tmp_path, f"intel-rapl:{n}", f"package-{n}", 10_000_000) for n in (0, 1)]
    zone(tmp_path, "intel-rapl:0:0", "core", 5_000_000)
    meter = EnergyMeter(package_counters(tmp_path))
    assert meter.joules() == 0
    for place in zones:
        (place / "energy_uj").write_text("12500000\n")
    assert meter.joules() == pytest.approx(5.0)


def test_a_counter_that_began_anew_loses_nothing(tmp_path: Path) -> None:
    place = zone(tmp_path, "intel-rapl:0", "package-0", RANGE_UJ - 1_000_000)
    meter = EnergyMeter(package_counters(tmp_path))
    (place / "energy_uj").write_text("1999999\n")
    assert meter.joules() == pytest.approx(3.0)
    (place / "energy_uj").write_text("2999999\n")
    assert meter.joules() == pytest.approx(4.0)


def test_where_nothing_counts_nothing_is_said(tmp_path: Path) -> None:
    assert EnergyMeter(package_counters(tmp_path)).joules() is None


def test_a_counter_that_may_not_be_read_is_none(tmp_path: Path) -> None:
    place = zone(tmp_path, "intel-rapl:0", "package-0", 0)
    (place / "energy_uj").unlink()  # as for who may not read it
    assert package_counters(tmp_path) == []
    meter = EnergyMeter(package_counters(tmp_path))
    with meter.watching():
        assert meter.joules() is None


def test_a_counter_that_vanishes_ends_the_count_and_not_the_run(tmp_path: Path) -> None:
    place = zone(tmp_path, "intel-rapl:0", "package-0", 0)
    with EnergyMeter(package_counters(tmp_path)).watching() as meter:
        (place / "energy_uj").unlink()
        assert meter.joules() is None


class NVMLError(Exception):
    pass


def pretend_nvml(monkeypatch: pytest.MonkeyPatch, readings: dict[str, list[int]]) -> None:
    """GPUs by UUID that give these readings, in mJ, and then are lost; others do not count."""
    module = ModuleType("pynvml")

    def handle(uuid: str) -> str:
        if uuid not in readings:
            raise NVMLError(uuid)
        return uuid

    def reading(uuid: str) -> int:
        if not readings[uuid]:
            raise NVMLError("GPU is lost")
        return readings[uuid].pop(0)

    names = {
        "NVMLError": NVMLError,
        "nvmlInit": lambda: None,
        "nvmlDeviceGetHandleByUUID": handle,
        "nvmlDeviceGetTotalEnergyConsumption": reading,
    }
    for name, value in names.items():
        setattr(module, name, value)
    monkeypatch.setitem(sys.modules, "pynvml", module)
    properties = {index: SimpleNamespace(uuid=uuid) for index, uuid in enumerate("ab")}
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties.__getitem__)


def test_gpus_count_from_the_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_nvml(monkeypatch, {"GPU-a": [70_000, 71_500], "GPU-b": [5, 1_005]})
    assert EnergyMeter(gpu_counters([0, 1])).joules() == pytest.approx(2.5)


def test_a_gpu_that_is_lost_ends_the_count_and_not_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pretend_nvml(monkeypatch, {"GPU-a": [70_000, 71_500]})
    meter = EnergyMeter(gpu_counters([0]))
    assert meter.joules() == pytest.approx(1.5)
    assert meter.joules() is None


def test_a_gpu_that_does_not_count_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_nvml(monkeypatch, {})
    assert gpu_counters([0]) == []


def test_without_the_library_no_gpu_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpu_counters([0]) == []
