"""How fast a run trains, what its end will cost, and when it will end (the ETA)."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from llmtrain.profile.horizon import SHORTEST_STEP_S, Horizon
from llmtrain.profile.schema import EvalSection, Profile

_STEPS_BEFORE_AN_ESTIMATE = 3  # the first ones fill caches and may compile
_RECENT = 3  # steps that a reserve is estimated from
# A single step that takes 5 times the median, and 2 s more, was suspended or stalled.
_SUSPENDED_TIMES, _SUSPENDED_S = 5.0, 2.0
_EXIT_S = 3.0  # of the process, after the last save: one to two seconds on an idle machine
# On a busy machine the exit takes longer: in proportion to the steps once these take more than
# twice the fastest, and at most 3 times as long.
_EXIT_SLOWED, _LONGEST_EXIT = 2.0, 3.0
_UNDERESTIMATED = 1.1  # extrapolated costs turn out a little higher
# The cost of a run's end in steps, before it is measured: a forward is a third of a step's work,
# and a sampled token reads all weights.
_EVALUATION_STEPS = 0.4  # for the tokens of one step
_SAMPLED_TOKEN_STEPS = 0.01
_SAVE_STEPS = 1.2


class Pace:
    """Step times, and the costs of what ends a run in units of steps.

    In steps, a cost measured on an idle machine still holds when the machine is busy and
    everything takes longer.
    """

    def __init__(
        self,
        used_before_s: float,
        starting_s: float,
        startup_before_s: float,
        expected_steps: Mapping[str, float],
        *,
        first_step_counts: bool,
    ) -> None:
        """Start the clock of a session that began `starting_s` ago.

        Earlier sessions used `used_before_s`, of which `startup_before_s` were startup.
        `expected_steps` are the costs until they are measured. A first step that compiles does
        not count: it says nothing about the next.
        """
        self._started_s = time.monotonic() - used_before_s - starting_s
        self._costs = dict(expected_steps)
        self._step_times_s: deque[float] = deque(maxlen=20)
        self._skip_next = not first_step_counts
        self._fastest_s = math.inf  # the lowest median
        self.startup_s = startup_before_s + starting_s  # of elapsed_s: starting and compiling

    @property
    def elapsed_s(self) -> float:
        """Seconds that this run has used, in this session and those before."""
        return time.monotonic() - self._started_s

    def record_step(self, seconds: float) -> float:
        """Record a step's time; return how much of it was training and not suspension."""
        if self._skip_next:
            self._skip_next = False
            self.startup_s += seconds  # it compiled; the schedule covers what trains
            return seconds
        self._step_times_s.append(seconds)
        if self.is_known:
            self._fastest_s = min(self._fastest_s, self.step_s)
        return self.step_s if self._suspended == seconds else seconds

    def record_cost(self, activity: str, seconds: float) -> None:
        """Record what an activity costs; ignored before the first step, as its unit is unknown."""
        if self._step_times_s:
            self._costs[activity] = seconds / max(self.step_s, SHORTEST_STEP_S)

    @contextmanager
    def measured(self, activity: str, times: float = 1.0) -> Iterator[None]:
        """Record `times` the block's time as the activity's cost."""
        started_s = time.monotonic()
        yield
        self.record_cost(activity, times * (time.monotonic() - started_s))

    @property
    def is_known(self) -> bool:
        """True if enough steps were measured for an estimate."""
        return len(self._step_times_s) >= _STEPS_BEFORE_AN_ESTIMATE

    @property
    def step_s(self) -> float:
        """The median of the last steps; 0 before the first."""
        return _median(self._step_times_s)

    @property
    def slow_step_s(self) -> float:
        """The time that the next step is unlikely to exceed; 0 before the first."""
        recent, suspended = self._recent, self._suspended
        if suspended is not None:
            recent.remove(suspended)
        return max(recent, default=0.0)

    @property
    def reserve_s(self) -> float:
        """The time that the run needs after its last step."""
        return self.reserve_for_s(*self._costs)

    def reserve_for_s(self, *activities: str) -> float:
        """Return the time that these activities and the exit need after the last step."""
        steps = sum(self._costs[activity] for activity in activities)
        return self._exit_s + _UNDERESTIMATED * steps * _median(self._recent)

    def cost_s(self, activity: str) -> float:
        """Return the expected time of an activity."""
        return self._costs[activity] * self.step_s

    def remaining_s(
        self, horizon: Horizon, options: EvalSection, step: int, steps: int | None
    ) -> float | None:
        """Return the estimated seconds until the run is saved; None if they are unknown.

        `step` of `steps` are done; `steps` is None while their number is unknown. Expected costs,
        not those of `reserve_s`, which a time limit has to allow for.
        """
        if not self.is_known:
            return None
        if horizon.time_s is not None:
            return max(0.0, horizon.time_s - horizon.used_s(self.elapsed_s, time.time()))
        if steps is None:
            return None
        between_steps_s = sum(
            self.cost_s(activity) * ((steps - 1) // every - step // every)
            for activity, every in _intervals(options)
        )
        end_s = sum(self.cost_s(activity) for activity in self._costs)
        return (steps - step) * self.step_s + between_steps_s + end_s

    @property
    def _exit_s(self) -> float:
        slowed = self.step_s / max(self._fastest_s, SHORTEST_STEP_S) if self.is_known else 1.0
        return _EXIT_S * min(_LONGEST_EXIT, max(1.0, slowed / _EXIT_SLOWED))

    @property
    def _suspended(self) -> float | None:
        """The recent step time that was an interruption, if there is exactly one.

        Two such times mean that the machine has become slower.
        """
        unusual_s = max(_SUSPENDED_TIMES * self.step_s, self.step_s + _SUSPENDED_S)
        unusual = [seconds for seconds in self._recent if seconds > unusual_s]
        return unusual[0] if len(unusual) == 1 else None

    @property
    def _recent(self) -> list[float]:
        return list(self._step_times_s)[-_RECENT:]


def _intervals(options: EvalSection) -> Iterator[tuple[str, int]]:
    """Yield each activity between steps with its interval in steps.

    Those after the last step are counted with the end of the run.
    """
    yield "evaluation", options.every_steps
    if options.sample_every_steps is not None:
        yield "samples", options.sample_every_steps


def _median(values: Iterable[float]) -> float:
    found = list(values)
    return statistics.median(found) if found else 0.0


def expected_steps(profile: Profile) -> dict[str, float]:
    """Return the cost of each activity at the end of a run, in steps, before it is measured."""
    options = profile.eval
    prompts = 2 if options.prompts == "auto" else len(options.prompts)  # at most two
    sampled = prompts * options.sample_tokens if options.sample_every_steps else 0
    return {
        "evaluation": options.tokens / profile.train.chosen_tokens_per_step * _EVALUATION_STEPS,
        "samples": sampled * _SAMPLED_TOKEN_STEPS,
        "save": _SAVE_STEPS,
    }
