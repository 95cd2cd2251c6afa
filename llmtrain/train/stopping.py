"""What all ranks do after a step: by rank 0's clock, and by everybody's signals and memory."""

from __future__ import annotations

import time
from dataclasses import dataclass

from llmtrain.profile.horizon import Horizon
from llmtrain.train.checkpoint.saver import Saver
from llmtrain.train.distributed.signals import StopRequest
from llmtrain.train.loop import Run
from llmtrain.train.memory_guard import MemoryGuard
from llmtrain.train.pace import Pace

_COUNTED_STEPS = 3  # as many of the last ones are likely to be slower than the median


@dataclass(frozen=True, slots=True)
class StopDecision:
    """What all ranks do after a step."""

    is_over: bool
    stop_requested: bool
    save_is_due: bool


class StopPolicy:
    """Decides after every step, with all ranks, and tells the run's position how far it is."""

    def __init__(
        self,
        run: Run,
        horizon: Horizon,
        pace: Pace,
        saver: Saver,
        guard: MemoryGuard,
        stop: StopRequest,
    ) -> None:
        self.run, self.horizon, self.pace = run, horizon, pace
        self.saver, self.guard, self.stop = saver, guard, stop

    @property
    def used_s(self) -> float:
        """What of the horizon's time is used, in seconds."""
        return self.horizon.used_s(self.pace.elapsed_s, time.time())

    def after_step(self) -> StopDecision:
        """The decision after the step that was just done."""
        position, pace, horizon = self.run.position, self.pace, self.horizon
        used_s, reserve_s = self.used_s, pace.reserve_s
        known = position.horizon_steps
        progress = horizon.progress(elapsed_s=used_s, begun_s=pace.begun_s, reserve_s=reserve_s)
        if pace.is_known:
            known, fewest = (
                horizon.estimate(
                    step=position.step, elapsed_s=used_s, step_s=step_s, reserve_s=reserve_s
                )
                for step_s in (pace.step_s, pace.slow_step_s)
            )
            if progress is not None and fewest is not None:
                progress = max(progress, _counted(position.step, fewest))
        is_over = horizon.is_over(
            step=position.step, elapsed_s=used_s, step_s=pace.slow_step_s, reserve_s=reserve_s
        )
        save_is_due = self.stop.take_save() or self.saver.is_due(position.step)
        ours = [known or 0, progress or 0.0, is_over, save_is_due]
        if not self.run.world.is_main:
            ours = [0] * len(ours)
        answer = self.guard.look()
        agreed = self._sum([*ours, self.stop.is_made, answer.smaller, answer.stop])
        self.guard.heed(agreed[5], agreed[6])
        position.horizon_steps = int(agreed[0]) or None
        if position.time_progress is not None:  # costs that turn out lower do not raise the rate
            position.time_progress = max(position.time_progress, agreed[1])
        return StopDecision(agreed[2] > 0, agreed[4] > 0 or self.guard.is_over, agreed[3] > 0)

    def before_steps(self) -> StopDecision:
        """The decision on a resumed run: stopped after its last step, it has none left."""
        step = self.run.position.step
        is_over = self.horizon.is_over(step=step, elapsed_s=self.used_s, step_s=0.0, reserve_s=0.0)
        agreed = self._sum([is_over and self.run.world.is_main])
        return StopDecision(agreed[0] > 0, stop_requested=False, save_is_due=False)

    def left_to_look_s(self) -> float | None:
        """How long the last evaluation and the samples may take; None: as long as they do."""
        time_s = self.horizon.time_s
        return None if time_s is None else time_s - self.used_s - self.pace.reserve_of_s("save")

    def _sum(self, values: list[float]) -> list[float]:
        return self.run.world.sum_values(values, self.run.device)


def _counted(step: int, steps: int) -> float:
    """The share of its steps that a run has done which is near its end; 0 before that.

    The last ones are counted: which of them ends the run depends on how slow one may be, and by
    the clock alone it would still have the rate of one or two before it. One less is counted on
    than fits, as the next may be slower still.
    """
    fitting = steps - step
    return step / (step + max(1, fitting - 1)) if fitting <= _COUNTED_STEPS else 0.0
