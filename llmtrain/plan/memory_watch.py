"""Memory watched while a run goes on: looked at now and then, judged by `device.pressure`."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from llmtrain.machine.memory_pressure import Bound, MemoryAction, Neighbours, answer, growing
from llmtrain.machine.memory_usage import peak_resident_bytes, read_bounds, resident_bytes
from llmtrain.plan.planner import Plan, predict
from llmtrain.plan.smaller import smaller_plans
from llmtrain.plan.workload import Workload

_LOOK_EVERY_S = 0.5
_RECENT_LOOKS = 4
_LONGEST_S = 60.0  # between two looks; beyond that the machine slept


@dataclass(frozen=True, slots=True)
class MemorySample:
    """What there is of memory, what this process holds, and the most that it held so far."""

    at_s: float
    bounds: list[Bound]
    held_bytes: int
    peak_bytes: int


def sample_memory() -> MemorySample:
    """The system's figures now. Raises OSError."""
    return MemorySample(time.monotonic(), read_bounds(), resident_bytes(), peak_resident_bytes())


class MemoryWatch:
    """Says before each step whether memory lasts for it.

    What a step takes is what this process held at most, once the plan has shown it; until then
    what was predicted. Other processes of the run on this machine are taken to hold as much.
    """

    def __init__(
        self, workload: Workload, plan: Plan, read: Callable[[], MemorySample] = sample_memory
    ) -> None:
        self._workload = workload
        self._read = read
        self._local = workload.launched_local_processes or plan.processes.value
        # A GPU's plan says nothing of this memory.
        self._is_on_cpu = plan.device.value == "cpu"
        self._known_plan, self._known_bytes = plan, self._predicted(plan)
        self._plan: Plan | None = None
        self._begun_after_step = 0
        self._peak_before_bytes = 0
        self._neighbours = Neighbours()
        self._waits_s: deque[float] = deque(maxlen=_RECENT_LOOKS)

    def look(self, plan: Plan, step: int) -> MemoryAction:
        """What to do after `step` before more is done by `plan`. Reads twice a second at most."""
        if self._neighbours.held_bytes and time.monotonic() < self._neighbours.at_s + _LOOK_EVERY_S:
            return MemoryAction()
        try:
            look = self._read()
        except OSError:
            return MemoryAction()  # a system that does not say cannot be watched
        return self.judge(look, plan, step)

    def judge(self, look: MemorySample, plan: Plan, step: int) -> MemoryAction:
        """What a look says, which is later than the one before it."""
        self._learn(look, plan, step)
        held_bytes = self._local * look.held_bytes
        before, self._neighbours = (
            self._neighbours,
            self._neighbours.now(look.bounds, held_bytes, look.at_s),
        )
        if before.held_bytes:
            self._waits_s.append(min(_LONGEST_S, look.at_s - before.at_s))
        next_look_in_s = max(self._waits_s, default=0.0)
        bounds = growing(look.bounds, before, self._neighbours, next_look_in_s)
        return answer(bounds, held_bytes, self._peaks_bytes(plan, held_bytes))

    def _learn(self, look: MemorySample, plan: Plan, step: int) -> None:
        """A peak that rose under a plan is that plan's, once a whole step was done by it."""
        if plan is not self._plan:
            self._plan, self._begun_after_step = plan, step
            self._peak_before_bytes = look.peak_bytes
        peak_bytes = self._local * look.peak_bytes
        is_its_own = look.peak_bytes > self._peak_before_bytes
        if is_its_own and (step > self._begun_after_step or peak_bytes > self._expected(plan)):
            self._known_plan, self._known_bytes = plan, peak_bytes

    def _peaks_bytes(self, plan: Plan, held_bytes: int) -> list[int]:
        """What this machine's processes will hold: by this plan, then by each smaller one."""
        expected_bytes = max(self._expected(plan), held_bytes)
        if not self._is_on_cpu:
            return [expected_bytes]
        now_bytes = self._predicted(plan)
        less = (now_bytes - self._predicted(smaller) for smaller in smaller_plans(plan))
        return [expected_bytes, *(expected_bytes - saved_bytes for saved_bytes in less)]

    def _expected(self, plan: Plan) -> int:
        """What is known of one plan, carried over to another by what is predicted of both."""
        return self._known_bytes + self._predicted(plan) - self._predicted(self._known_plan)

    def _predicted(self, plan: Plan) -> int:
        return predict(self._workload, plan).total_bytes if self._is_on_cpu else 0
