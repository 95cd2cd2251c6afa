"""Check, while a run trains, whether memory lasts for its next step."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from llmtrain.machine.memory_pressure import (
    Bound,
    MemoryAction,
    OtherUse,
    choose_action,
    with_growth,
)
from llmtrain.machine.memory_usage import peak_resident_bytes, read_bounds, resident_bytes
from llmtrain.plan.planner import Plan, predict
from llmtrain.plan.smaller import smaller_plans
from llmtrain.plan.workload import Workload

_CHECK_EVERY_S = 0.5
_RECENT_CHECKS = 4
_LONGEST_S = 60.0  # between two checks; a machine that slept longer than that says nothing


@dataclass(frozen=True, slots=True)
class MemorySample:
    """The limits on memory, what this process holds, and its peak."""

    at_s: float
    bounds: list[Bound]
    held_bytes: int
    peak_bytes: int


def sample_memory() -> MemorySample:
    """Return the system's figures now. Raises OSError."""
    return MemorySample(time.monotonic(), read_bounds(), resident_bytes(), peak_resident_bytes())


class MemoryWatch:
    """Decides before each step whether memory lasts for it.

    A step is expected to take this process's peak, once a step by this plan has shown it; until
    then what was predicted. The run's other processes on this machine are taken to hold as much.
    """

    def __init__(
        self, workload: Workload, plan: Plan, sample: Callable[[], MemorySample] = sample_memory
    ) -> None:
        self._workload = workload
        self._sample = sample
        self._local = workload.launched_local_processes or plan.processes.value
        # A GPU's plan does not predict this memory.
        self._is_on_cpu = plan.device.value == "cpu"
        self._known_plan, self._known_bytes = plan, self._predicted(plan)
        self._plan: Plan | None = None
        self._started_after_step = 0
        self._peak_before_bytes = 0
        self._others = OtherUse()
        self._intervals_s: deque[float] = deque(maxlen=_RECENT_CHECKS)

    def check(self, plan: Plan, step: int) -> MemoryAction:
        """Return what to do after `step` before more is computed by `plan`.

        Reads memory at most twice per second, and always before the first use of another plan.
        """
        is_recent = time.monotonic() < self._others.at_s + _CHECK_EVERY_S
        if self._others.held_bytes and is_recent and plan is self._plan:
            return MemoryAction()
        try:
            sample = self._sample()
        except OSError:
            return MemoryAction()  # a system that gives no figures cannot be watched
        return self.judge(sample, plan, step)

    def judge(self, sample: MemorySample, plan: Plan, step: int) -> MemoryAction:
        """Return what to do given a sample that is later than the one before it."""
        self._learn(sample, plan, step)
        held_bytes = self._local * sample.held_bytes
        bounds = [bound.of_processes(self._local) for bound in sample.bounds]
        before, self._others = self._others, self._others.updated(bounds, held_bytes, sample.at_s)
        if before.held_bytes:
            self._intervals_s.append(min(_LONGEST_S, sample.at_s - before.at_s))
        next_check_in_s = max(self._intervals_s, default=0.0)
        grown = with_growth(bounds, before, self._others, next_check_in_s)
        return choose_action(grown, held_bytes, self._peaks_bytes(plan, held_bytes))

    def _learn(self, sample: MemorySample, plan: Plan, step: int) -> None:
        """Attribute a peak that rose under a plan to it, once a whole step was done by it."""
        if plan is not self._plan:
            self._plan, self._started_after_step = plan, step
            self._peak_before_bytes = sample.peak_bytes
        peak_bytes = self._local * sample.peak_bytes
        is_its_own = sample.peak_bytes > self._peak_before_bytes
        if is_its_own and (step > self._started_after_step or peak_bytes > self._expected(plan)):
            self._known_plan, self._known_bytes = plan, peak_bytes

    def _peaks_bytes(self, plan: Plan, held_bytes: int) -> list[int]:
        """Return the peaks expected on this machine: by this plan, then by each smaller one."""
        expected_bytes = max(self._expected(plan), held_bytes)
        if not self._is_on_cpu:
            return [expected_bytes]
        now_bytes = self._predicted(plan)
        less = (now_bytes - self._predicted(smaller) for smaller in smaller_plans(plan))
        return [expected_bytes, *(expected_bytes - saved_bytes for saved_bytes in less)]

    def _expected(self, plan: Plan) -> int:
        """Return what was measured of one plan plus the predicted difference to another."""
        return self._known_bytes + self._predicted(plan) - self._predicted(self._known_plan)

    def _predicted(self, plan: Plan) -> int:
        return predict(self._workload, plan).total_bytes if self._is_on_cpu else 0
