"""What a session starts from: the state before its first step, the time used, the horizon."""

from __future__ import annotations

from llmtrain.engine.find_run import ResolvedRun
from llmtrain.plan.planned import Planned
from llmtrain.plan.planner import Plan
from llmtrain.prepare.chat import encoder_of
from llmtrain.prepare.dataset import Dataset
from llmtrain.profile.horizon import Horizon
from llmtrain.profile.schema import DataSection
from llmtrain.train.build import RandomState
from llmtrain.train.checkpoint.format import Checkpoint, SavedState
from llmtrain.train.divergence.policy import DivergenceState
from llmtrain.train.events import Started
from llmtrain.train.loop import Position

_FINAL_SAVE_S = 2.0  # of the last checkpoint, which is written after the time in it was read


def difference_from_run(
    resolved: ResolvedRun, resumed: Checkpoint | None, plan: Plan
) -> str | None:
    """Return why the session computes other bits than the run without a stop; None if the same."""
    if resolved.state is None or resolved.recorded is None:
        return None
    if resumed is not None and not resumed.has_optimizer:
        return "the checkpoint has no optimizer state, so its weights get a fresh optimizer"
    recorded = resolved.recorded.plan
    # The plan may have changed after run.yaml was written: then the state has another.
    before = (resolved.state.numerics, recorded.numerics() if recorded is not None else None)
    if all(found is not None and plan.has_numerics(found) for found in before):
        return None
    return "the plan differs from the run's"


def prompt_example(section: DataSection, dataset: Dataset) -> str:
    """Return the beginning of the validation text, and of conversations their first words."""
    tokens = dataset.shards.validation
    values = tokens.read(0, min(64, tokens.num_tokens)).tolist()
    return encoder_of(section, dataset.tokenizer).decode(values)


def set_horizon(position: Position, resolved: ResolvedRun, horizon: Horizon) -> None:
    """Set the horizon that the schedule follows; under a new time the old estimate is dropped."""
    if horizon.time_s is None:
        position.horizon_steps, position.time_progress = horizon.steps, None
    elif position.time_progress is None or resolved.has_new_horizon:
        position.horizon_steps, position.time_progress = None, 0.0


def first_state(resolved: ResolvedRun, plan: Plan, *, is_bitwise: bool) -> SavedState:
    """Return the state before the session's first step: the checkpoint's, or a new run's."""
    before = resolved.state
    if before is None:
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
    drifted = before.not_bitwise_from_step
    if drifted is None and not is_bitwise:
        drifted = before.step
    return before.model_copy(
        update={"numerics": plan.numerics(), "not_bitwise_from_step": drifted, "finished": False}
    )


def used_before_s(resolved: ResolvedRun) -> float:
    """Return the seconds that earlier sessions used, with what the last did after its last reading.

    A session that ended by itself recorded its time once its checkpoint was durable, which on a
    slow disk may be long after the time in the checkpoint.
    """
    if resolved.state is None or resolved.recorded is None:
        return 0.0
    ended = resolved.recorded.values.get("result") or {}
    is_newest = ended.get("checkpoint") == str(resolved.checkpoint)
    ended_s = ended.get("seconds", 0.0) if is_newest else 0.0
    return max(resolved.state.elapsed_s, ended_s) + _FINAL_SAVE_S


def started_event(
    resolved: ResolvedRun, planned: Planned, dataset: Dataset, step: int, horizon: Horizon
) -> Started:
    """Return the event that announces the session."""
    index = dataset.shards.index
    return Started(
        run=resolved.path,
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
