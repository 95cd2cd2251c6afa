"""How long a run goes on: a number of steps, or a time."""

from __future__ import annotations

from dataclasses import dataclass

from llmtrain.profile.schema import TrainSection

_SHORTEST_STEP_S = 1e-6  # a coarse clock measures a short step as nothing


@dataclass(frozen=True, slots=True)
class Horizon:
    """What was asked: exactly one of the two is set."""

    steps: int | None = None
    time_s: float | None = None

    def progress(self, *, elapsed_s: float, begun_s: float, reserve_s: float) -> float | None:
        """The share of its time that a run has trained for; None where steps are counted.

        Training began after `begun_s`, and its end leaves `reserve_s`.
        """
        if self.time_s is None:
            return None
        whole_s = self.time_s - reserve_s - begun_s
        return min(1.0, (elapsed_s - begun_s) / whole_s) if whole_s > 0 else 1.0

    def estimate(
        self, *, step: int, elapsed_s: float, step_s: float, reserve_s: float
    ) -> int | None:
        """The number of steps that the run will have, after `step` of them, at this pace."""
        if self.time_s is None:
            return self.steps
        left = (self.time_s - reserve_s - elapsed_s) / max(step_s, _SHORTEST_STEP_S)
        return max(step, step + int(left))

    def is_over(self, *, step: int, elapsed_s: float, step_s: float, reserve_s: float) -> bool:
        """Whether `step` was the last one: all are done, or another would end too late."""
        if self.time_s is None:
            return self.steps is not None and step >= self.steps
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
