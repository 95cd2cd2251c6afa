"""What a step's numbers mean for the run: a verdict on the step, and an answer to many bad ones.

A step whose loss or gradients are not finite, or whose loss leaps, leaves the weights alone; its
batch was read and is not read again. Where skipping does not help the run is to be rewound: to the
state that it had some steps ago, with the data cursor where it is now, so that other text comes.
Where that has not helped either, it is to stop.

Pure: numbers in, a decision and its reason out. All that later decisions depend on is `Course`,
which is saved with the run; so a run that was interrupted decides as one that was not.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, NonNegativeInt

RECENT_LOSSES = 64  # that say what is usual
_FEWEST_LOSSES = 32  # to say so: before, nothing is a spike
# A step's loss varies by the text it reads. In 17,800 steps of twelve small trainings, of 64 to
# 4096 tokens a step, none came half the way from the median to this limit.
_SPIKE_SPREADS = 10.0
_SMALLEST_SPIKE_NATS = 0.5
_SPREAD_OF_NORMAL = 1.4826  # standard deviations in a median absolute deviation
# A leap that stays is where the run now is: its weights were harmed, or the text has become
# another. Updates are what cures both, so after this many in a row they are no longer withheld
# until the loss was usual again; and leaps are among the recent losses, so that they are usual
# soon. For the same reason nothing is rewound for a loss that is finite.
_SPIKES_IN_A_ROW = 3
# While fp16 finds its scale its gradients overflow, and the scaler withholds the update. From 2¹⁶
# this many halvings lead far below any scale that helps.
_ORDINARY_OVERFLOWS = 20

_BAD_STEPS = 5  # that were not finite, among …
BAD_STEPS_WITHIN = 50  # … so many: skipping has not helped
# Chowdhery et al. 2022 (PaLM) went back about 100 steps where the loss had leapt, and on with
# other text.
REWIND_STEPS = 100
_REWINDS = 2  # near one step, before the run stops

MemoryAction = Literal["go on", "rewind", "stop"]


@dataclass(frozen=True, slots=True)
class StepVerdict:
    """Whether a step updates the weights, and if not, why."""

    skipped: str | None = None
    is_finite: bool = True


class Jump(BaseModel):
    """Where the data cursor is moved to as a step is done, since the run was rewound to it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: NonNegativeInt
    windows: NonNegativeInt
    from_step: NonNegativeInt


class DivergenceState(BaseModel):
    """What became of the steps so far, as far as it matters for those to come.

    `jumps` are in order of their steps: replaying the run from an earlier state takes them again.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    losses: tuple[float, ...] = ()  # finite ones of the last steps
    spikes: NonNegativeInt = 0  # skipped since the loss was last usual
    overflows: NonNegativeInt = 0  # of fp16's gradients, in a row
    bad_steps: tuple[NonNegativeInt, ...] = ()  # the latest that were not finite
    is_lost: bool = False  # the weights themselves are not finite: skipping cannot help
    sound_step: NonNegativeInt = 0  # the last that updated the weights
    rewinds: NonNegativeInt = 0  # near `trouble_step`
    trouble_step: NonNegativeInt = 0
    jumps: tuple[Jump, ...] = ()

    @property
    def answer(self) -> MemoryAction:
        """What is to happen before the next step."""
        if len(self.bad_steps) < _BAD_STEPS and not self.is_lost:
            return "go on"
        return "stop" if self._rewinds_near >= _REWINDS else "rewind"

    @property
    def has_come_on(self) -> bool:
        """Whether the weights are others than those that a rewind led to, or is leading to."""
        return not self.jumps or self.sound_step > self.jumps[-1].step

    @property
    def rewind_step(self) -> int:
        """Which step's state to go back to: arithmetic, and not what happens to be saved."""
        return max(0, self.sound_step - REWIND_STEPS)

    @property
    def _rewinds_near(self) -> int:
        """Once a run has come this far past its trouble, it is another trouble."""
        return self.rewinds if self.sound_step <= self.trouble_step + REWIND_STEPS else 0

    def cursor(self, step: int, windows: int) -> int:
        """Where the data cursor stands after `step`, which left it at `windows`."""
        return next((jump.windows for jump in self.jumps if jump.step == step), windows)

    def went_through(self, step: int, before: DivergenceState) -> bool:
        """Whether this course was at `step` where a run was that had come `before`.

        Up to the cursor: a jump at that very step is taken again by whoever goes on from there.
        """
        taken = [jump for jump in self.jumps if jump.step < step]
        return taken == [jump for jump in before.jumps if jump.step < step]

    def rewound(self, step: int, windows: int, from_step: int) -> DivergenceState:
        """This course with a rewind to `step` decided: as it is done the cursor is at `windows`.

        Where a jump that is given up for it led further, it leads as far.
        """
        near = self._rewinds_near
        later = [jump.windows for jump in self.jumps if jump.step >= step]
        jump = Jump(step=step, windows=max([windows, *later]), from_step=from_step)
        return self.model_copy(
            update={
                "rewinds": near + 1,
                "trouble_step": max(self.sound_step, self.trouble_step if near else 0),
                "jumps": (*(known for known in self.jumps if known.step < step), jump),
            }
        )

    def resumed_from(self, before: DivergenceState) -> DivergenceState:
        """This course from where `before` was saved: what it has learnt of rewinds is kept."""
        return before.model_copy(
            update={
                "rewinds": self.rewinds,
                "trouble_step": self.trouble_step,
                "jumps": self.jumps,
            }
        )


def judge(
    course: DivergenceState,
    step: int,
    loss: float,
    grad_norm: float,
    *,
    is_scaled: bool,
    skips_spikes: bool,
) -> tuple[StepVerdict, DivergenceState]:
    """Whether the step that would be number `step` may update the weights, and the course after it.

    `is_scaled` is for gradients of fp16, which overflow now and then in the ordinary course.
    """
    if not math.isfinite(loss):
        return _bad(course, step, f"its loss is {loss:g}")
    losses = (*course.losses, loss)[-RECENT_LOSSES:]
    heard = course.model_copy(update={"losses": losses, "bad_steps": _recent(course, step)})
    if not math.isfinite(grad_norm):
        if is_scaled and course.overflows < _ORDINARY_OVERFLOWS:
            return StepVerdict(), heard.model_copy(update={"overflows": course.overflows + 1})
        return _bad(heard, step, f"its gradient norm is {grad_norm:g}")
    limit = spike_limit(course.losses)
    spikes = course.spikes if loss > limit else 0
    if skips_spikes and loss > limit and spikes < _SPIKES_IN_A_ROW:
        reason = f"its loss of {loss:.3f} is a spike, above {limit:.3f}"
        return StepVerdict(reason), heard.model_copy(update={"spikes": spikes + 1, "overflows": 0})
    update = {"spikes": spikes, "overflows": 0, "sound_step": step}
    return StepVerdict(), heard.model_copy(update=update)


def spike_limit(losses: Sequence[float]) -> float:
    """The highest loss that is usual after `losses`; infinite while they are few.

    Median and median absolute deviation, which a few leaps among them do not move.
    """
    if len(losses) < _FEWEST_LOSSES:
        return math.inf
    usual = statistics.median(losses)
    spread = _SPREAD_OF_NORMAL * statistics.median(abs(loss - usual) for loss in losses)
    return usual + max(_SPIKE_SPREADS * spread, _SMALLEST_SPIKE_NATS)


def _bad(course: DivergenceState, step: int, reason: str) -> tuple[StepVerdict, DivergenceState]:
    bad_steps = (*_recent(course, step), step)
    return StepVerdict(reason, is_finite=False), course.model_copy(update={"bad_steps": bad_steps})


def _recent(course: DivergenceState, step: int) -> tuple[int, ...]:
    return tuple(bad for bad in course.bad_steps if bad > step - BAD_STEPS_WITHIN)
