"""Memory as a run tells it with every step, too cheap to be noticed."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass

from llmtrain.machine.memory_readings import AcceleratorMemory
from llmtrain.machine.memory_usage import (
    read_accelerator_memory,
    read_bounds,
    read_process_memory,
    resident_bytes,
)

_LOOK_EVERY_S = 1.0
_WORTH = 100  # a look may cost a hundredth of the time: a machine can have very many processes


@dataclass(frozen=True, slots=True)
class LiveMemory:
    """What a run holds on this machine, and what there is left for it."""

    process_bytes: int  # resident, of all its processes
    available_bytes: int | None  # within the limit that is nearest; None: the system does not say
    percent: float | None  # of that limit, taken by whomever
    accelerator: AcceleratorMemory | None  # this rank's

    @property
    def tightest_percent(self) -> float | None:
        """Of the accelerator's memory where there is one, else of the machine's."""
        return self.percent if self.accelerator is None else self.accelerator.percent


class MemoryMeter:
    """`now()` is asked at every step: of this process each time, of all others now and then."""

    def __init__(
        self, *, launcher_pid: int | None, is_on_cpu: bool, device_index: int | None
    ) -> None:
        """`launcher_pid` is what started all of this machine's ranks, where something did."""
        self._launcher_pid = launcher_pid
        self._is_on_cpu = is_on_cpu
        self._device_index = device_index
        self._look_again_s = 0.0
        self._others_bytes = 0
        self._available_bytes: int | None = None
        self._percent: float | None = None

    def now(self) -> LiveMemory:
        """The figures, those of other processes up to a second old or more."""
        own_bytes = resident_bytes()
        if time.monotonic() >= self._look_again_s:
            began_s = time.monotonic()
            with suppress(OSError):
                self._look(own_bytes)
            took_s = time.monotonic() - began_s
            self._look_again_s = time.monotonic() + max(_LOOK_EVERY_S, _WORTH * took_s)
        return LiveMemory(
            own_bytes + self._others_bytes,
            self._available_bytes,
            self._percent,
            self._accelerator(),
        )

    def _look(self, own_bytes: int) -> None:
        bounds = read_bounds()
        tightest = min(bounds, key=lambda bound: bound.limit_bytes - bound.used_bytes)
        self._available_bytes = max(0, tightest.limit_bytes - tightest.used_bytes)
        self._percent = round(100 * tightest.used_bytes / tightest.limit_bytes, 1)
        run_bytes = read_process_memory(self._launcher_pid).resident_bytes
        if self._launcher_pid is not None:  # which only waits
            run_bytes -= resident_bytes(self._launcher_pid)
        self._others_bytes = max(0, run_bytes - own_bytes)

    def _accelerator(self) -> AcceleratorMemory | None:
        if self._is_on_cpu:
            return None
        return next(iter(read_accelerator_memory(self._device_index)), None)
