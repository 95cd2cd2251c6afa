"""The document of `runs compare`."""

from __future__ import annotations

from typing import Any, Literal

from llmtrain.documents.base import Document, Number, Part, Text, key


class RunCompared(Part):
    """A run of the comparison."""

    run: Text = key("the run directory")
    profile: Text | None = key("the profile's name")
    step: int = key("of its last evaluation; 0: there was none")
    tokens: Number = key("trained on by then; null: no evaluation")
    elapsed_s: Number = key("seconds of all sessions by then; null: no evaluation")
    val_bpb: Number = key("bits per byte then; null: no evaluation")
    seeds: int = key("finished runs beside it with equal settings and other seeds, and itself")


class DifferingValue(Part):
    """A setting, a decision, or a fact of data, versions or machine that is not the same in all."""

    name: Text = key("dotted: of the profile, or below `plan`, `data` and `machine`")
    values: list[Any] = key("of each run in order; null: the run has none")


class EqualAmount(Part):
    """Losses where all runs have trained as much."""

    amount: float = key("tokens or seconds: the most that all reached")
    val_bpb: list[Number] = key(
        "bits per byte of each run, interpolated; null: not evaluated there"
    )


class EqualLoss(Part):
    """The tokens and the time that each run took to a loss that all reached."""

    val_bpb: float = key("bits per byte: the best of the run that ended worst")
    tokens: list[Number] = key("that each run took to it")
    seconds: list[Number] = key("that each run took to it")


class TaskCompared(Part):
    """The newest scores of the runs on a task, from `eval --tasks`."""

    task: Text = key("its name")
    metric: Text = key("as in `eval --tasks`")
    values: list[Number] = key("the score of each run in order; null: not scored on it")
    standard_errors: list[Number] = key("of each score; null: unknown")


class RunVerdict(Part):
    """A run beside the first one."""

    run: Text = key("the other run")
    outcome: Literal["better", "worse", "no difference seen", "incomparable"] = key(
        "of the other run's final bits per byte"
    )
    difference_bpb: Number = key("its bits per byte less the first one's; null: incomparable")
    margin_bpb: Number = key(
        "differences up to this are noise; null: incomparable, or only the seed differs"
    )
    noise: Literal["seeds", "usual"] | None = key(
        "seeds: the spread of repeated seeds; usual: assumed of trainings that were measured; "
        "null: as of `margin_bpb`"
    )
    reason: Text = key("why, in words for people; they may change")


class RunsCompare(Document):
    """`llmtrain runs compare`."""

    runs: list[RunCompared] = key("in the order of the command")
    differing: list[DifferingValue] = key("what is not the same in all runs")
    at_equal_tokens: EqualAmount | None = key("null: a run was not evaluated")
    at_equal_time: EqualAmount | None = key("null: a run was not evaluated")
    to_equal_loss: EqualLoss | None = key("null: a run was not evaluated")
    tasks: list[TaskCompared] = key("scores that any run has")
    verdicts: list[RunVerdict] = key("of each later run beside the first")
