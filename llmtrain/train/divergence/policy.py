"""What a step's numbers mean for the run: a verdict on it, and an action after many bad steps.

A step whose loss or gradients are not finite, or whose loss spikes, does not update the weights;
its batch is not read again. If skipping does not help, the run has to be rewound: to the state of
some steps ago, with the data cursor where it is now, so that other text follows. If that has not
helped either, it has to stop.

Pure: numbers in, a decision and its reason out. Everything that later decisions depend on is in
`DivergenceState`, which is saved with the run, so an interrupted run decides like an uninterrupted
one.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, NonNegativeInt

RECENT_LOSSES = 64  # from which the usual loss is estimated
_FEWEST_LOSSES = 32  # with fewer, nothing is a spike
# A step's loss varies with its text. In 17,800 steps of twelve small trainings, of 64 to 4096
# tokens per step, no loss came half the way from the median to this limit.
_SPIKE_SPREADS = 10.0
_SMALLEST_SPIKE_NATS = 0.5
_SPREAD_OF_NORMAL = 1.4826  # standard deviations in a median absolute deviation
# A spike that persists is the new level: the weights were harmed, or the text has changed. Updates
# cure both, so after this many in a row they are applied until the loss was usual again. Spikes
# count among the recent losses, so they soon are usual. For the same reason a finite loss never
# causes a rewind.
_SPIKES_IN_A_ROW = 3
# While fp16 finds its loss scale, gradients overflow and the scaler skips the update. From 2¹⁶ this
# many halvings lead far below any useful scale.
_ORDINARY_OVERFLOWS = 20

# The run is rewound after 5 steps among the last 50 that were not finite: skipping did not help.
_BAD_STEPS, BAD_STEPS_WITHIN = 5, 50
# Chowdhery et al. 2022 (PaLM) restarted about 100 steps before a spike and continued with other
# text.
REWIND_STEPS = 100
_REWINDS = 2  # near one step, before the run stops

DivergenceAction = Literal["continue", "rewind", "stop"]


@dataclass(frozen=True, slots=True)
class StepVerdict:
    """The decision whether a step updates the weights, with the reason if not."""

    skipped: str | None = None
    is_finite: bool = True


class Jump(BaseModel):
    """A jump of the data cursor to `windows` after `step`, which the run was rewound to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: NonNegativeInt
    windows: NonNegativeInt
    from_step: NonNegativeInt


class DivergenceState(BaseModel):
    """The history that later decisions depend on; saved as `course` in state.json.

    `jumps` are ordered by step: replaying the run from an earlier state takes them again.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    losses: tuple[float, ...] = ()  # finite ones of the last steps
    spikes: NonNegativeInt = 0  # skipped since the loss was last usual
    overflows: NonNegativeInt = 0  # of fp16 gradients, in a row
    bad_steps: tuple[NonNegativeInt, ...] = ()  # recent ones that were not finite
    is_lost: bool = False  # the weights themselves are not finite, so skipping cannot help
    sound_step: NonNegativeInt = 0  # the last step that updated the weights
    rewinds: NonNegativeInt = 0  # that began within REWIND_STEPS of `trouble_step`
    trouble_step: NonNegativeInt = 0  # the last step that updated the weights before the rewind
    jumps: tuple[Jump, ...] = ()

    @property
    def action(self) -> DivergenceAction:
        """The action before the next step."""
        if len(self.bad_steps) < _BAD_STEPS and not self.is_lost:
            return "continue"
        return "stop" if self._rewinds_nearby >= _REWINDS else "rewind"

    @property
    def has_updated_since_rewind(self) -> bool:
        """True if an update was applied after the last rewind and its replay."""
        return not self.jumps or self.sound_step > self.jumps[-1].step

    @property
    def rewind_step(self) -> int:
        """The step to rewind to: computed, so independent of which checkpoints exist."""
        return max(0, self.sound_step - REWIND_STEPS)

    @property
    def _rewinds_nearby(self) -> int:
        """The rewinds that count; 0 once the run is `REWIND_STEPS` past `trouble_step`."""
        return self.rewinds if self.sound_step <= self.trouble_step + REWIND_STEPS else 0

    def cursor_after(self, step: int, windows: int) -> int:
        """Return the data cursor after `step`: a jump's, else `windows`."""
        return next((jump.windows for jump in self.jumps if jump.step == step), windows)

    def passed_through(self, step: int, earlier: DivergenceState) -> bool:
        """Return whether this run passed `step` with the state `earlier`: both made the same jumps.

        A jump at `step` itself does not count, because it is made again on resuming there.
        """
        taken = [jump for jump in self.jumps if jump.step < step]
        return taken == [jump for jump in earlier.jumps if jump.step < step]

    def with_rewind(self, step: int, windows: int, from_step: int) -> DivergenceState:
        """Return the state with a rewind to `step`, after which the data cursor jumps to `windows`.

        It jumps at least as far as the later jumps that the rewind discards.
        """
        nearby = self._rewinds_nearby
        later = [jump.windows for jump in self.jumps if jump.step >= step]
        jump = Jump(step=step, windows=max([windows, *later]), from_step=from_step)
        return self.model_copy(
            update={
                "rewinds": nearby + 1,
                "trouble_step": max(self.sound_step, self.trouble_step if nearby else 0),
                "jumps": (*(known for known in self.jumps if known.step < step), jump),
            }
        )

    def replayed_from(self, earlier: DivergenceState) -> DivergenceState:
        """Return the state at `earlier`, keeping what is known of rewinds."""
        return earlier.model_copy(
            update={
                "rewinds": self.rewinds,
                "trouble_step": self.trouble_step,
                "jumps": self.jumps,
            }
        )


def judge(
    state: DivergenceState,
    step: int,
    loss: float,
    grad_norm: float,
    *,
    is_scaled: bool,
    skips_spikes: bool,
) -> tuple[StepVerdict, DivergenceState]:
    """Return whether step number `step` may update the weights, and the state after it.

    `is_scaled`: gradients are fp16 with a loss scale, and overflow now and then.
    """
    if not math.isfinite(loss):
        return _bad(state, step, f"its loss is {loss:g}")
    losses = (*state.losses, loss)[-RECENT_LOSSES:]
    updated = state.model_copy(update={"losses": losses, "bad_steps": _recent(state, step)})
    if not math.isfinite(grad_norm):
        if is_scaled and state.overflows < _ORDINARY_OVERFLOWS:
            return StepVerdict(), updated.model_copy(update={"overflows": state.overflows + 1})
        return _bad(updated, step, f"its gradient norm is {grad_norm:g}")
    limit = spike_limit(state.losses)
    spikes = state.spikes if loss > limit else 0
    if skips_spikes and loss > limit and spikes < _SPIKES_IN_A_ROW:
        reason = f"its loss of {loss:.3f} is a spike, above {limit:.3f}"
        return StepVerdict(reason), updated.model_copy(
            update={"spikes": spikes + 1, "overflows": 0}
        )
    update = {"spikes": spikes, "overflows": 0, "sound_step": step}
    return StepVerdict(), updated.model_copy(update=update)


def judge_alone(loss: float, grad_norm: float) -> StepVerdict:
    """Return whether a local step may update a rank's weights: where its numbers are finite.

    What it means for the run is judged with the other ranks' steps, when they are known.
    """
    if not math.isfinite(loss):
        return StepVerdict(f"its loss is {loss:g}", is_finite=False)
    if not math.isfinite(grad_norm):
        return StepVerdict(f"its gradient norm is {grad_norm:g}", is_finite=False)
    return StepVerdict()


def spike_limit(losses: Sequence[float]) -> float:
    """Return the highest usual loss after `losses`; infinite while they are few.

    By median and median absolute deviation, which a few spikes do not move.
    """
    if len(losses) < _FEWEST_LOSSES:
        return math.inf
    median = statistics.median(losses)
    spread = _SPREAD_OF_NORMAL * statistics.median(abs(loss - median) for loss in losses)
    return median + max(_SPIKE_SPREADS * spread, _SMALLEST_SPIKE_NATS)


def _bad(state: DivergenceState, step: int, reason: str) -> tuple[StepVerdict, DivergenceState]:
    bad_steps = (*_recent(state, step), step)
    return StepVerdict(reason, is_finite=False), state.model_copy(update={"bad_steps": bad_steps})


def _recent(state: DivergenceState, step: int) -> tuple[int, ...]:
    return tuple(bad for bad in state.bad_steps if bad > step - BAD_STEPS_WITHIN)
