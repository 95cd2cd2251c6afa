"""How long a run goes on: a number of steps, or of epochs, or a time."""

from __future__ import annotations

from dataclasses import dataclass

from llmtrain.profile.schema import TrainSection

_SHORTEST_STEP_S = 1e-6  # a coarse clock measures a short step as nothing


@dataclass(frozen=True, slots=True)
class Horizon:
    """What was asked: exactly one of the first three is set.

    `deadline_s`: the clock time at which the time is over, where that was asked.
    """

    steps: int | None = None
    time_s: float | None = None
    epochs: float | None = None
    deadline_s: float | None = None

    def in_steps(self, windows: int, windows_per_step: int) -> Horizon:
        """Epochs as steps, of a text of so many windows; other horizons as they are."""
        if self.epochs is None:
            return self
        return Horizon(steps=max(1, round(self.epochs * windows / windows_per_step)))

    def used_s(self, elapsed_s: float, now_s: float) -> float:
        """How much of the time is used: what trained, or what a deadline no longer leaves.

        A machine that slept has not trained, but the deadline has come nearer.
        """
        if self.deadline_s is None or self.time_s is None:
            return elapsed_s
        return max(elapsed_s, self.time_s - (self.deadline_s - now_s))

    def progress(self, *, elapsed_s: float, begun_s: float, reserve_s: float) -> float | None:
        """The share of its time that a run has trained for; None where steps are counted.

        Starting took `begun_s` of it in all, and the end leaves `reserve_s`.
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
        return Horizon(steps=max(1, round(train.tokens / train.chosen_tokens_per_step)))
    if train.epochs is not None:
        return Horizon(epochs=train.epochs)
    return None
