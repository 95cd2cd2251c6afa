"""How fast a run goes and what its end will take, measured as it goes."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Iterable, Mapping

from llmtrain.profile.schema import Profile

_STEPS_BEFORE_AN_ESTIMATE = 3  # the first ones fill caches and may compile
_RECENT = 3
# A step that alone takes so many times the usual, and so much more, was suspended or stalled.
_SUSPENDED_TIMES, _SUSPENDED_S = 5.0, 2.0
_SHORTEST_STEP_S = 1e-6  # a coarse clock measures a short step as nothing
_EXIT_S = 3.0  # of the process, after all is saved: it takes one to two where nothing else runs
_EXIT_SLOWED, _LONGEST_EXIT = 2.0, 3.0  # times as slow it still does; at most so many times that
_UNDERESTIMATED = 1.1  # what was tried a little of takes a little longer
# What the end of a run costs, in steps, before it is measured: a forward is a third of a step's
# work, and a token that is drawn reads all weights.
_EVALUATION_STEPS = 0.4  # for a step's tokens
_SAMPLED_TOKEN_STEPS = 0.01
_SAVE_STEPS = 1.2


class Pace:
    """Step times, and the costs of what ends a run in units of steps.

    In those units a cost that was measured while the machine was idle still holds when it is
    busy, and everything takes longer.
    """

    def __init__(
        self,
        used_before_s: float,
        starting_s: float,
        begun_s: float,
        expected_steps: Mapping[str, float],
        *,
        first_step_counts: bool,
    ) -> None:
        """`used_before_s` is what earlier sittings took, of which `begun_s` trained nothing, as in
        this one `starting_s`. `expected_steps`: what each thing at the end costs, for as long as
        it was not measured. A first step that compiles says nothing of the next."""
        self._started_s = time.monotonic() - used_before_s - starting_s
        self._costs = dict(expected_steps)
        self._step_times_s: deque[float] = deque(maxlen=20)
        self._skip_next = not first_step_counts
        self._fastest_s = math.inf  # the least that a median step took
        self.begun_s = begun_s + starting_s

    @property
    def elapsed_s(self) -> float:
        """Seconds that this run has used, in this sitting and those before."""
        return time.monotonic() - self._started_s

    def step_took(self, seconds: float) -> float:
        """Another step is done; of its time so much was trained, and not spent suspended."""
        if self._skip_next:
            self._skip_next = False
            self.begun_s += seconds  # it compiled; the schedule is for what trains
            return seconds
        self._step_times_s.append(seconds)
        if self.is_known:
            self._fastest_s = min(self._fastest_s, self.step_s)
        return self.step_s if self._suspended == seconds else seconds

    def took(self, what: str, seconds: float) -> None:
        """`what` costs this from now on; before a first step nobody knows how many that is."""
        if self._step_times_s:
            self._costs[what] = seconds / max(self.step_s, _SHORTEST_STEP_S)

    @property
    def is_known(self) -> bool:
        """Whether enough steps were taken to say how long one takes."""
        return len(self._step_times_s) >= _STEPS_BEFORE_AN_ESTIMATE

    @property
    def step_s(self) -> float:
        """The median of the last steps; 0 while none is known."""
        return _median(self._step_times_s)

    @property
    def slow_step_s(self) -> float:
        """What the next step is not likely to exceed; 0 while none is known."""
        recent, suspended = self._recent, self._suspended
        if suspended is not None:
            recent.remove(suspended)
        return max(recent, default=0.0)

    @property
    def reserve_s(self) -> float:
        """What comes after the last step."""
        return self.reserve_of_s(*self._costs)

    def reserve_of_s(self, *what: str) -> float:
        """Of what comes after the last step this part, and the exit."""
        steps = sum(self._costs[each] for each in what)
        return self._exit_s + _UNDERESTIMATED * steps * _median(self._recent)

    def cost_s(self, what: str) -> float:
        """What doing it once is expected to take."""
        return self._costs[what] * self.step_s

    @property
    def _exit_s(self) -> float:
        slowed = self.step_s / max(self._fastest_s, _SHORTEST_STEP_S) if self.is_known else 1.0
        return _EXIT_S * min(_LONGEST_EXIT, max(1.0, slowed / _EXIT_SLOWED))

    @property
    def _suspended(self) -> float | None:
        """The one of the last step times that says nothing of the pace, if there is one.

        Where two of them are as long, the machine has become as slow.
        """
        unusual_s = max(_SUSPENDED_TIMES * self.step_s, self.step_s + _SUSPENDED_S)
        unusual = [seconds for seconds in self._recent if seconds > unusual_s]
        return unusual[0] if len(unusual) == 1 else None

    @property
    def _recent(self) -> list[float]:
        return list(self._step_times_s)[-_RECENT:]


def _median(values: Iterable[float]) -> float:
    found = list(values)
    return statistics.median(found) if found else 0.0


def expected_steps(profile: Profile) -> dict[str, float]:
    """What the end of a run costs, in steps, before any of it is measured."""
    options = profile.eval
    sampled = len(options.prompts) * options.sample_tokens if options.sample_every_steps else 0
    return {
        "evaluation": options.tokens / profile.train.chosen_tokens_per_step * _EVALUATION_STEPS,
        "samples": sampled * _SAMPLED_TOKEN_STEPS,
        "save": _SAVE_STEPS,
    }
