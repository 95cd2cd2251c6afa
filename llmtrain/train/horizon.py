"""How long a run goes on: a number of steps, or a time that becomes one."""

from __future__ import annotations

from dataclasses import dataclass

from llmtrain.profile.schema import TrainSection
from llmtrain.train.schedule import Schedule

# Estimates from the very first steps would count the start-up of caches and kernels.
_STEPS_BEFORE_ESTIMATE = 3
_SHORTEST_STEP_S = 1e-6  # a coarse clock measures a short step as nothing


@dataclass(frozen=True, slots=True)
class Horizon:
    """What was asked: exactly one of the two is set."""

    steps: int | None = None
    time_s: float | None = None

    def estimate(
        self,
        schedule: Schedule,
        *,
        step: int,
        known: int | None,
        elapsed_s: float,
        step_s: float,
        reserve_s: float,
    ) -> int | None:
        """The number of steps that the run will have, after `step` of them.

        Under a time it follows the measured pace for as long as the learning rate has not begun
        to fall; from then on it stays, so that the decay is a straight line.
        """
        if self.time_s is None:
            return self.steps
        if step < _STEPS_BEFORE_ESTIMATE:
            return known
        if known is not None and step >= schedule.decay_start(known):
            return known
        left = (self.time_s - reserve_s - elapsed_s) / max(step_s, _SHORTEST_STEP_S)
        return max(step + 1, step + int(left))

    def is_over(
        self, *, step: int, known: int | None, elapsed_s: float, step_s: float, reserve_s: float
    ) -> bool:
        """Whether `step` was the last one: all are done, or another would end too late."""
        if self.time_s is None:
            return self.steps is not None and step >= self.steps
        if known is not None and step >= known:
            return True
        return elapsed_s + step_s + reserve_s > self.time_s


def horizon_of(train: TrainSection) -> Horizon | None:
    """The horizon that a profile asks for; None where it names none."""
    if train.time is not None:
        return Horizon(time_s=train.time)
    if train.steps is not None:
        return Horizon(steps=train.steps)
    if train.tokens is not None:
        return Horizon(steps=max(1, round(train.tokens / train.tokens_per_step)))
    return None
