"""The horizon of a run: a number of steps, a number of epochs, or a time."""

from __future__ import annotations

from dataclasses import dataclass

from llmtrain.profile.schema import TrainSection

SHORTEST_STEP_S = 1e-6  # a coarse clock may measure a short step as 0 s


@dataclass(frozen=True, slots=True)
class Horizon:
    """The length of a run; exactly one of `steps`, `time_s` and `epochs` is set.

    `deadline_s` is the clock time, in seconds, at which `time_s` ends, if there is a deadline.
    """

    steps: int | None = None
    time_s: float | None = None
    epochs: float | None = None
    deadline_s: float | None = None

    def in_steps(self, windows: int, windows_per_step: int) -> Horizon:
        """Return epochs of `windows` windows converted to steps; other horizons are unchanged."""
        if self.epochs is None:
            return self
        return Horizon(steps=max(1, round(self.epochs * windows / windows_per_step)))

    def used_s(self, elapsed_s: float, now_s: float) -> float:
        """Return the used part of `time_s`, in seconds.

        That is `elapsed_s`, or the time that the deadline no longer allows if that is more, as
        after the machine was suspended.
        """
        if self.deadline_s is None or self.time_s is None:
            return elapsed_s
        return max(elapsed_s, self.time_s - (self.deadline_s - now_s))

    def progress(self, *, elapsed_s: float, begun_s: float, reserve_s: float) -> float | None:
        """Return the share of the training time that has passed, at most 1; None without `time_s`.

        Training time excludes `begun_s`, spent on starting, and `reserve_s`, kept for the end.
        """
        if self.time_s is None:
            return None
        whole_s = self.time_s - reserve_s - begun_s
        return min(1.0, (elapsed_s - begun_s) / whole_s) if whole_s > 0 else 1.0

    def estimate(
        self, *, step: int, elapsed_s: float, step_s: float, reserve_s: float
    ) -> int | None:
        """Return the expected number of steps, given that `step` are done and one takes `step_s`.

        None if the horizon is in epochs.
        """
        if self.time_s is None:
            return self.steps
        left = (self.time_s - reserve_s - elapsed_s) / max(step_s, SHORTEST_STEP_S)
        return max(step, step + int(left))

    def is_over(self, *, step: int, elapsed_s: float, step_s: float, reserve_s: float) -> bool:
        """Return whether `step` was the last: all are done, or another would exceed the time."""
        if self.time_s is None:
            return self.steps is not None and step >= self.steps
        return elapsed_s + step_s + reserve_s > self.time_s


def horizon_of(train: TrainSection) -> Horizon | None:
    """Return the horizon of a profile's train section; None if it sets none.

    Raises ValueError if `tokens` is set and `tokens_per_step` is still "auto".
    """
    if train.time is not None:
        return Horizon(time_s=train.time)
    if train.steps is not None:
        return Horizon(steps=train.steps)
    if train.tokens is not None:
        return Horizon(steps=max(1, round(train.tokens / train.chosen_tokens_per_step)))
    if train.epochs is not None:
        return Horizon(epochs=train.epochs)
    return None
