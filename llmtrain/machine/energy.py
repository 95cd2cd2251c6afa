"""Read energy counters: Linux's RAPL of CPU packages, NVIDIA's NVML of GPUs."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Protocol

_ZONES = "sys/class/powercap"
_READ_EVERY_S = 60.0  # a package's counter overflows after a few minutes to an hour


class Counter(Protocol):
    """A counter of joules since it was created."""

    def joules(self) -> float:
        """Return the joules so far. Raises OSError if they can no longer be read."""


class PackageCounter:
    """A CPU package's counter. It overflows, and must be read more often than that."""

    def __init__(self, zone: Path) -> None:
        """Raise OSError or ValueError if the zone cannot be read; most are for root only."""
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
    """An NVIDIA GPU's counter, which starts when its driver is loaded."""

    def __init__(self, nvml: ModuleType, uuid: str) -> None:
        """Raise OSError if the GPU has no counter."""
        self._nvml = nvml
        with _nvml_errors(nvml):
            self._handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
        self._start_mj = self._read_mj()

    def joules(self) -> float:
        return (self._read_mj() - self._start_mj) / 1e3

    def _read_mj(self) -> int:
        with _nvml_errors(self._nvml):
            return int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle))


@contextmanager
def _nvml_errors(nvml: ModuleType) -> Iterator[None]:
    """Raise the module's NVMLError of the block as an OSError, as other counters fail."""
    try:
        yield
    except nvml.NVMLError as error:
        raise OSError(str(error)) from error


class EnergyMeter:
    """The sum of all counters. A thread reads them, so that no overflow is missed."""

    def __init__(self, counters: Sequence[Counter]) -> None:
        self._counters = tuple(counters)
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def joules(self) -> float | None:
        """Return the joules so far; None without counters, or if one can no longer be read."""
        if not self._counters:
            return None
        with self._lock, suppress(OSError, ValueError):
            return sum(counter.joules() for counter in self._counters)
        return None

    @contextmanager
    def watching(self) -> Iterator[EnergyMeter]:
        """Read the counters once per minute within the block."""
        thread = threading.Thread(target=self._watch, name="energy", daemon=True)
        if self._counters:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()

    def _watch(self) -> None:
        while not self._stop.wait(_READ_EVERY_S):
            self.joules()


def package_counters(root: Path = Path("/")) -> list[Counter]:
    """Return a counter for each CPU package that can be read: by root only on most machines."""
    found: list[Counter] = []
    for zone in sorted((root / _ZONES).glob("intel-rapl:*")):  # AMD's have that name, too
        with suppress(OSError, ValueError):
            if (zone / "name").read_text(encoding="ascii").startswith("package"):
                found.append(PackageCounter(zone))
    return found


def gpu_counters(indices: Sequence[int]) -> list[Counter]:
    """Return a counter for each CUDA device that has one; none without `nvidia-ml-py`."""
    if not indices:
        return []
    try:
        import pynvml
    except ImportError:
        return []
    found: list[Counter] = []
    with suppress(OSError):
        with _nvml_errors(pynvml):
            pynvml.nvmlInit()
        for index in indices:
            found.append(GpuCounter(pynvml, _uuid(index)))
    return found


def _uuid(index: int) -> str:
    """Return NVML's name of a device: NVML's indices ignore CUDA_VISIBLE_DEVICES."""
    import torch

    return f"GPU-{torch.cuda.get_device_properties(index).uuid}"
