"""What a sitting begins with: the state, the time used, the horizon."""

from __future__ import annotations

from llmtrain.engine.resume import Target, has_new_horizon
from llmtrain.plan.planned import Planned
from llmtrain.plan.planner import Plan
from llmtrain.prepare.dataset import Dataset
from llmtrain.profile.horizon import Horizon
from llmtrain.train.build import RandomState
from llmtrain.train.checkpoint.format import Checkpoint, SavedState
from llmtrain.train.divergence.policy import DivergenceState
from llmtrain.train.events import Started
from llmtrain.train.loop import Position

_AFTER_THE_CLOCK_S = 2.0  # a checkpoint is written and the process exits


def used_before_s(target: Target, resumed: Checkpoint | None) -> float:
    """What the sittings before this one used, with what the last did after it read the clock.

    A sitting that ended by itself has said what it used when its checkpoint was durable, which
    a slow disk may put long after the checkpoint's own time.
    """
    if resumed is None:
        return 0.0
    ended = (target.record or {}).get("result") or {}
    ended_s = ended.get("seconds", 0.0) if ended.get("checkpoint") == str(target.checkpoint) else 0
    return max(resumed.state.elapsed_s, ended_s) + _AFTER_THE_CLOCK_S


def set_horizon(position: Position, target: Target, horizon: Horizon) -> None:
    """The position knows its horizon. Under a new time what was known of the old one is void."""
    if horizon.time_s is None:
        position.horizon_steps, position.time_progress = horizon.steps, None
    elif position.time_progress is None or has_new_horizon(target):
        position.horizon_steps, position.time_progress = None, 0.0


def state_to_begin_with(resumed: Checkpoint | None, plan: Plan, is_same_plan: bool) -> SavedState:
    """That of the checkpoint or of a new run, by this plan."""
    if resumed is None:
        return SavedState(
            step=0,
            tokens=0,
            windows=0,
            elapsed_s=0.0,
            horizon_steps=None,
            torch_rng=RandomState.now().text,
            course=DivergenceState(),
            numerics=plan.numerics(),
        )
    before = resumed.state
    drifted = before.not_bitwise_from_step
    if drifted is None and not is_same_plan:
        drifted = before.step
    return before.model_copy(
        update={"numerics": plan.numerics(), "not_bitwise_from_step": drifted, "finished": False}
    )


def started_event(
    target: Target, planned: Planned, dataset: Dataset, step: int, horizon: Horizon
) -> Started:
    """What an observer is told of a sitting that begins."""
    index = dataset.shards.index
    return Started(
        run=target.directory.path,
        plan=planned.plan,
        prediction=planned.prediction,
        parameters=planned.workload.shape.parameters,
        train_tokens=index.train.tokens,
        validation_tokens=index.validation.tokens,
        tokens_per_step=planned.workload.tokens_per_step,
        from_step=step,
        horizon_steps=horizon.steps,
        horizon_s=horizon.time_s,
    )
