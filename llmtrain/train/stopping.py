"""Decide after each step, on all ranks alike, whether the run ends, saves or changes its plan.

Time and schedule are rank 0's; a signal or a memory shortage on any rank counts for all.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch

from llmtrain.machine.memory_pressure import MemoryAction
from llmtrain.profile.horizon import Horizon
from llmtrain.profile.schema import EvalSection
from llmtrain.train.checkpoint.format import SavedState
from llmtrain.train.distributed.world import World
from llmtrain.train.loop import Position
from llmtrain.train.memory_guard import agreed_action
from llmtrain.train.pace import Pace

_COUNTED_STEPS = 3  # the last ones of a run, where progress is counted in steps


@dataclass(frozen=True, slots=True)
class StopDecision:
    """The decision that all ranks agree on after a step."""

    is_over: bool
    stop_requested: bool
    save_is_due: bool
    memory: MemoryAction = field(default_factory=MemoryAction)

    @property
    def ends_run(self) -> bool:
        """True if no other step follows in this session."""
        return self.is_over or self.stop_requested


class StopPolicy:
    """Decides with all ranks; every rank has to call it after the same steps."""

    def __init__(
        self, horizon: Horizon, options: EvalSection, world: World, device: torch.device
    ) -> None:
        self._horizon, self._options = horizon, options
        self._world, self._device = world, device

    def after_step(
        self,
        position: Position,
        pace: Pace,
        *,
        save_is_due: bool,
        memory: MemoryAction,
        stop_requested: bool,
    ) -> StopDecision:
        """Return what all ranks do after a step; the arguments are what this rank asks for.

        Updates the horizon and the progress in `position`.
        """
        horizon, used_s, reserve_s = self._horizon, self._used_s(pace), pace.reserve_s
        steps = position.horizon_steps
        progress = horizon.progress(elapsed_s=used_s, begun_s=pace.startup_s, reserve_s=reserve_s)
        if pace.is_known:
            steps, fewest = (
                horizon.estimate(
                    step=position.step, elapsed_s=used_s, step_s=step_s, reserve_s=reserve_s
                )
                for step_s in (pace.step_s, pace.slow_step_s)
            )
            if progress is not None and fewest is not None:
                progress = max(progress, _progress_by_steps(position.step, fewest))
        is_over = horizon.is_over(
            step=position.step, elapsed_s=used_s, step_s=pace.slow_step_s, reserve_s=reserve_s
        )
        own = [steps or 0, progress or 0.0, is_over, save_is_due]
        if not self._world.is_main:
            own = [0] * len(own)
        agreed = self._sum([*own, stop_requested, memory.smaller, memory.stop])
        position.horizon_steps = int(agreed[0]) or None
        if position.time_progress is not None:  # costs that turn out lower do not raise the rate
            position.time_progress = max(position.time_progress, agreed[1])
        action = agreed_action(memory, agreed[5], agreed[6], self._world.size)
        return StopDecision(agreed[2] > 0, agreed[4] > 0 or action.stop, agreed[3] > 0, action)

    def before_steps(self, step: int, pace: Pace) -> StopDecision:
        """Return whether a run that was resumed after its last step is over."""
        is_over = self._horizon.is_over(
            step=step, elapsed_s=self._used_s(pace), step_s=0.0, reserve_s=0.0
        )
        agreed = self._sum([is_over and self._world.is_main])
        return StopDecision(agreed[0] > 0, stop_requested=False, save_is_due=False)

    def patience_is_over(self, state: SavedState) -> bool:
        """Return whether `eval.patience` evaluations in a row were no new best."""
        patience = self._options.patience
        return patience is not None and state.evaluations_without_best >= patience

    def evaluation_limit_s(self, pace: Pace) -> float | None:
        """Return how long the last evaluation and samples may take; None without a time limit."""
        time_s = self._horizon.time_s
        return None if time_s is None else time_s - self._used_s(pace) - pace.reserve_for_s("save")

    def _used_s(self, pace: Pace) -> float:
        """Return how much of the horizon's time is used."""
        return self._horizon.used_s(pace.elapsed_s, time.time())

    def _sum(self, values: list[float]) -> list[float]:
        return self._world.sum_values(values, self._device)


def _progress_by_steps(step: int, steps: int) -> float:
    """Return the share of `steps` that is done, for the last few steps of a run; 0 before.

    Time alone cannot tell which step will be the last, because a slow one ends the run earlier:
    the learning rate would not reach the end of its schedule. So the last steps are counted. One
    step fewer than fits is assumed, because the next may be slower still.
    """
    remaining = steps - step
    return step / (step + max(1, remaining - 1)) if remaining <= _COUNTED_STEPS else 0.0
