"""Joules, where the machine counts them: Linux's RAPL of CPU packages, NVIDIA's NVML of GPUs."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Protocol

_ZONES = "sys/class/powercap"
_LOOK_EVERY_S = 60.0  # a package's counter begins anew after a few minutes to an hour


class Counter(Protocol):
    """Counts joules since it was made."""

    def joules(self) -> float:
        """So far. Raises OSError where it can no longer be read."""


class PackageCounter:
    """A CPU package's, which begins anew at its end: to be asked more often than that."""

    def __init__(self, zone: Path) -> None:
        """Raises OSError and ValueError where the zone cannot be read, as most can by root only."""
        self._path = zone / "energy_uj"
        self._range_uj = int((zone / "max_energy_range_uj").read_text(encoding="ascii"))
        self._last_uj = self._read_uj()
        self._total_uj = 0

    def joules(self) -> float:
        now_uj = self._read_uj()
        self._total_uj += (now_uj - self._last_uj) % (self._range_uj + 1)
        self._last_uj = now_uj
        return self._total_uj / 1e6

    def _read_uj(self) -> int:
        return int(self._path.read_text(encoding="ascii"))


class GpuCounter:
    """An NVIDIA GPU's, which counts since its driver was loaded."""

    def __init__(self, nvml: ModuleType, uuid: str) -> None:
        """Raises the module's NVMLError where the GPU does not count."""
        self._nvml = nvml
        self._handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
        self._begun_mj = self._read_mj()

    def joules(self) -> float:
        return (self._read_mj() - self._begun_mj) / 1e3

    def _read_mj(self) -> int:
        return int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle))


class EnergyMeter:
    """What all counters together counted. A thread asks them, so that none begins anew unseen."""

    def __init__(self, counters: Sequence[Counter]) -> None:
        self._counters = tuple(counters)
        self._lock = threading.Lock()
        self._over = threading.Event()

    def joules(self) -> float | None:
        """So far; None where nothing counts, or a counter can no longer be read."""
        if not self._counters:
            return None
        with self._lock, suppress(OSError, ValueError):
            return sum(counter.joules() for counter in self._counters)
        return None

    @contextmanager
    def watching(self) -> Iterator[EnergyMeter]:
        """Within the block the counters are asked once a minute."""
        thread = threading.Thread(target=self._watch, name="energy", daemon=True)
        if self._counters:
            thread.start()
        try:
            yield self
        finally:
            self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(_LOOK_EVERY_S):
            self.joules()


def package_counters(root: Path = Path("/")) -> list[Counter]:
    """One a CPU package that can be read: none on most machines for who is not root."""
    found: list[Counter] = []
    for zone in sorted((root / _ZONES).glob("intel-rapl:*")):  # AMD's have that name, too
        with suppress(OSError, ValueError):
            if (zone / "name").read_text(encoding="ascii").startswith("package"):
                found.append(PackageCounter(zone))
    return found


def gpu_counters(indices: Sequence[int]) -> list[Counter]:
    """One for each of these CUDA devices that counts; none without `nvidia-ml-py`."""
    if not indices:
        return []
    try:
        import pynvml
    except ImportError:
        return []
    found: list[Counter] = []
    with suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        for index in indices:
            found.append(GpuCounter(pynvml, _uuid(index)))
    return found


def _uuid(index: int) -> str:
    """NVML's name for it: its numbers do not heed CUDA_VISIBLE_DEVICES."""
    import torch

    return f"GPU-{torch.cuda.get_device_properties(index).uuid}"
