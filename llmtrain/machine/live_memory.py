"""Read the memory that a run reports with every step, at little cost."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass

from llmtrain.machine.gpu_memory import read_accelerator_memory
from llmtrain.machine.memory_readings import AcceleratorMemory
from llmtrain.machine.memory_usage import read_bounds, read_process_memory, resident_bytes

_READ_EVERY_S = 1.0
_MOST_OVERHEAD = 0.01  # of the time, for reading: a machine can have many processes


@dataclass(frozen=True, slots=True)
class LiveMemory:
    """The memory that a run uses on this machine, and the memory left for it."""

    process_bytes: int  # resident, of all its processes
    available_bytes: int | None  # within the tightest limit; None: unknown
    percent: float | None  # of that limit, used by all processes
    accelerator: AcceleratorMemory | None  # this rank's

    @property
    def tightest_percent(self) -> float | None:
        """The percentage in use of the accelerator's memory, or of the machine's without one."""
        return self.percent if self.accelerator is None else self.accelerator.percent


class MemoryMeter:
    """A reader of this process at every call, and of all other processes about once per second."""

    def __init__(
        self, *, launcher_pid: int | None, is_on_cpu: bool, device_index: int | None
    ) -> None:
        """Include `launcher_pid`, the process that started this machine's ranks, if any."""
        self._launcher_pid = launcher_pid
        self._is_on_cpu = is_on_cpu
        self._device_index = device_index
        self._next_read_s = 0.0
        self._others_bytes = 0
        self._available_bytes: int | None = None
        self._percent: float | None = None

    def now(self) -> LiveMemory:
        """Return the figures; those of other processes may be a second old, or older."""
        own_bytes = resident_bytes()
        if time.monotonic() >= self._next_read_s:
            started_s = time.monotonic()
            with suppress(OSError):
                self._read_all(own_bytes)
            elapsed_s = time.monotonic() - started_s
            self._next_read_s = time.monotonic() + max(_READ_EVERY_S, elapsed_s / _MOST_OVERHEAD)
        return LiveMemory(
            own_bytes + self._others_bytes,
            self._available_bytes,
            self._percent,
            self._accelerator(),
        )

    def _read_all(self, own_bytes: int) -> None:
        bounds = read_bounds()
        tightest = min(bounds, key=lambda bound: bound.limit_bytes - bound.used_bytes)
        self._available_bytes = max(0, tightest.limit_bytes - tightest.used_bytes)
        self._percent = round(100 * tightest.used_bytes / tightest.limit_bytes, 1)
        run_bytes = read_process_memory(self._launcher_pid).resident_bytes
        if self._launcher_pid is not None:  # which only waits for its ranks
            run_bytes -= resident_bytes(self._launcher_pid)
        self._others_bytes = max(0, run_bytes - own_bytes)

    def _accelerator(self) -> AcceleratorMemory | None:
        if self._is_on_cpu:
            return None
        return next(iter(read_accelerator_memory(self._device_index)), None)
