"""Runs side by side: what differs, loss at equal tokens and time, and whether it is noise.

1. Runs are comparable if they hold out the same text. Bits per byte compare between tokenizers.
2. The noise is what another seed changes. Where runs with equal settings but other seeds lie in
   the same directory, their spread is the noise, and their means are compared (Student's t).
3. Without repeated seeds the noise is that of recorded trainings: a standard deviation of 0.76% of
   the loss, pooled over 19 trainings of five settings (tests/benchmarks/test_seeds.py).
4. A bootstrap over the validation text does not stand in for seeds: it says what another text would
   change. By it alone 7 of 15 pairs of seeds of one training would differ.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import numpy as np

from llmtrain.errors import LlmtrainError
from llmtrain.eval.student import student_quantile
from llmtrain.profile.load import flat_values
from llmtrain.train.run_directory.directory import RunDirectory
from llmtrain.train.run_directory.find import all_runs, find_run
from llmtrain.train.run_directory.history import LoggedEvaluation, RunHistory, read_history
from llmtrain.train.run_directory.task_scores import read_scores

Axis = Literal["tokens", "elapsed_s"]
Outcome = Literal["better", "worse", "no difference seen", "incomparable"]
USUAL_SEED_NOISE = 0.0076  # of bits per byte
USUAL_DEGREES = 14  # of freedom, of that estimate
_FEWEST_DEGREES = 2
_SEED = "train.seed"
# Settings that change neither the model nor what it is trained on.
_WITHOUT_EFFECT = {"name", "train.log_every_steps", "log_to", "report"}
_SPLIT = ("validation", "validation_fraction")  # of the data section: what is held out
_ASIDE = ("checkpoint.", "eval.", "device.")


@dataclass(frozen=True, slots=True)
class ComparedRun:
    """A run with its curves, and the final losses of runs that differ from it by the seed alone."""

    path: Path
    record: Mapping[str, Any]
    history: RunHistory
    same_settings_bpb: tuple[float, ...]  # its own first

    @property
    def last(self) -> LoggedEvaluation | None:
        """The last evaluation with a finite loss."""
        return next((e for e in reversed(self.history.evaluations) if _is_known(e)), None)


@dataclass(frozen=True, slots=True)
class Differing:
    """A setting, a decision or a fact that is not the same in all runs."""

    name: str  # dotted
    values: tuple[Any, ...]  # None: the run has no such value


@dataclass(frozen=True, slots=True)
class TaskRow:
    """The newest saved scores of each run on a task."""

    task: str
    metric: str
    values: tuple[float | None, ...]  # None: the run was not scored on it
    standard_errors: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class AtEqual:
    """Bits per byte of each run where all have trained for the same tokens or time."""

    amount: float
    val_bpb: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class ToEqual:
    """The tokens and seconds each run took to a loss that all reached."""

    val_bpb: float
    tokens: tuple[float | None, ...]
    seconds: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """A run beside the first: the difference of their losses, and what noise would explain."""

    run: Path
    outcome: Outcome
    difference_bpb: float | None
    margin_bpb: float | None
    noise: Literal["seeds", "usual"] | None
    reason: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """Runs side by side, in the order they were named."""

    runs: tuple[ComparedRun, ...]
    differing: tuple[Differing, ...]
    at_equal_tokens: AtEqual | None
    at_equal_time: AtEqual | None
    to_equal_loss: ToEqual | None
    tasks: tuple[TaskRow, ...]
    verdicts: tuple[Verdict, ...]


def compare_runs(names: Sequence[str]) -> Comparison:
    """Return the runs that `names` name side by side. Raises UsageError."""
    runs = tuple(_compared(find_run(name)) for name in names)
    first, *others = runs
    curves = [run.history.evaluations for run in runs]
    return Comparison(
        runs,
        tuple(_differing([run.record for run in runs])),
        _at_equal(curves, "tokens"),
        _at_equal(curves, "elapsed_s"),
        _to_equal(curves),
        tuple(_tasks([RunDirectory(run.path) for run in runs])),
        tuple(verdict_between(first, other) for other in others),
    )


def _compared(run: RunDirectory) -> ComparedRun:
    record, history = run.read_record(), read_history(run)
    own = [each.val_bpb for each in history.evaluations if _is_known(each)][-1:]
    return ComparedRun(run.path, record, history, (*own, *_repeated_seeds(run, record)))


def _repeated_seeds(run: RunDirectory, record: Mapping[str, Any]) -> Iterable[float]:
    """Yield the last loss of each finished run beside this one that differs by its seed alone."""
    settings, seeds = _settings(record), {_seed(record)}
    for other in all_runs(run.path.absolute().parent):
        if other.path.name == run.path.absolute().name:
            continue
        try:
            found = other.read_record()
        except LlmtrainError:
            continue  # `runs list` warns of it
        is_finished = (found.get("result") or {}).get("stopped") in ("done", "time")
        if is_finished and _seed(found) not in seeds and _settings(found) == settings:
            seeds.add(_seed(found))
            last = [e.val_bpb for e in read_history(other).evaluations if _is_known(e)][-1:]
            yield from last


def _settings(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a training's result depends on, but for the seed."""
    settings = {
        key: value
        for key, value in flat_values(record["profile"])
        if key != _SEED and key not in _WITHOUT_EFFECT and not key.startswith(_ASIDE)
    }
    data = record.get("data") or {}
    return settings | {name: data.get(name) for name in ("corpus_sha256", "tokenizer_sha256")}


def _seed(record: Mapping[str, Any]) -> Any:
    return dict(flat_values(record["profile"])).get(_SEED)


def _differing(records: Sequence[Mapping[str, Any]]) -> Iterable[Differing]:
    facts = [dict(_facts(record)) for record in records]
    for key in dict.fromkeys(key for each in facts for key in each):
        values = tuple(each.get(key) for each in facts)
        if any(value != values[0] for value in values):
            yield Differing(key, values)


def _facts(record: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    """Yield profile, plan, data, versions and machine of a run by dotted keys."""
    yield from flat_values(record["profile"])
    for name, choice in (record.get("plan") or {}).items():
        yield f"plan.{name}", choice["value"]
    data = record.get("data") or {}
    for name in ("corpus_sha256", "tokenizer_sha256", "train_tokens", "validation_tokens"):
        if name in data:
            value = data[name]
            yield f"data.{name}", value[:12] if isinstance(value, str) else value
    yield "llmtrain", record.get("llmtrain")
    yield from (record.get("versions") or {}).items()
    for name, value in flat_values(record.get("machine") or {}):
        yield f"machine.{name}", value


def _tasks(runs: Sequence[RunDirectory]) -> Iterable[TaskRow]:
    """Yield a row for each task and metric that any run was scored on."""
    scores = [
        {(each.score.task, each.score.metric): each.score for each in read_scores(run)}
        for run in runs
    ]
    for task, metric in dict.fromkeys(key for each in scores for key in each):
        found = [each.get((task, metric)) for each in scores]
        yield TaskRow(
            task,
            metric,
            tuple(None if score is None else score.value for score in found),
            tuple(None if score is None else score.standard_error for score in found),
        )


def _at_equal(curves: Sequence[Sequence[LoggedEvaluation]], axis: Axis) -> AtEqual | None:
    """Return the losses at the largest amount that all runs reached."""
    reached = [max((getattr(e, axis) for e in c if _is_known(e)), default=None) for c in curves]
    known = [amount for amount in reached if amount is not None]
    if len(known) < len(curves):
        return None
    amount = min(known)
    return AtEqual(amount, tuple(_value_at(curve, axis, amount) for curve in curves))


def _value_at(curve: Sequence[LoggedEvaluation], axis: Axis, amount: float) -> float | None:
    """Return the loss at an amount, between two evaluations on the line that joins them."""
    known = [each for each in curve if _is_known(each)]
    amounts = [getattr(each, axis) for each in known]
    if not known or not amounts[0] <= amount <= amounts[-1]:
        return None
    return float(np.interp(amount, amounts, [each.val_bpb for each in known]))


def _to_equal(curves: Sequence[Sequence[LoggedEvaluation]]) -> ToEqual | None:
    """Return what each run took to the best loss of the one that ended worst."""
    best = [min((e.val_bpb for e in c if _is_known(e)), default=None) for c in curves]
    known = [loss for loss in best if loss is not None]
    if len(known) < len(curves):
        return None
    loss = max(known)
    tokens, seconds = (
        tuple(_first_at(curve, axis, loss) for curve in curves) for axis in ("tokens", "elapsed_s")
    )
    return ToEqual(loss, tokens, seconds)


def _first_at(curve: Sequence[LoggedEvaluation], axis: Any, loss: float) -> float | None:
    """Return where the curve first comes down to a loss."""
    before: LoggedEvaluation | None = None
    for each in curve:
        if not _is_known(each):
            continue
        if each.val_bpb <= loss:
            at: float = getattr(each, axis)
            if before is None or each.val_bpb == before.val_bpb:
                return at
            share = (before.val_bpb - loss) / (before.val_bpb - each.val_bpb)
            begin: float = getattr(before, axis)
            return begin + share * (at - begin)
        before = each
    return None


def verdict_between(first: ComparedRun, other: ComparedRun) -> Verdict:
    """Return whether the other run is better than the first, or within the noise of seeds."""
    problem = _incomparable(first, other)
    if problem is not None:
        return Verdict(other.path, "incomparable", None, None, None, problem)
    one, two = first.same_settings_bpb, other.same_settings_bpb
    if _settings(first.record) == _settings(other.record):
        reason = "the settings are equal but for the seed, so what differs is the seed's noise"
        return Verdict(other.path, "no difference seen", two[0] - one[0], None, None, reason)
    difference = fmean(two) - fmean(one)
    degrees = len(one) + len(two) - 2
    if degrees >= _FEWEST_DEGREES:
        noise: Literal["seeds", "usual"] = "seeds"
        spread = math.sqrt(sum((x - fmean(s)) ** 2 for s in (one, two) for x in s) / degrees)
        quantile = student_quantile(degrees)
        reason = f"means of {len(one)} and {len(two)} seeds; their spread is the noise"
    else:
        noise, quantile = "usual", student_quantile(USUAL_DEGREES)
        spread = USUAL_SEED_NOISE * (fmean(one) + fmean(two)) / 2
        reason = (
            f"too few repeated seeds: {USUAL_SEED_NOISE:.2%} between seeds is assumed; train each "
            "again with --seed 1 and --seed 2 to measure it"
        )
    margin = quantile * spread * math.sqrt(1 / len(one) + 1 / len(two))
    outcome: Outcome = "no difference seen"
    if abs(difference) > margin:
        outcome = "better" if difference < 0 else "worse"
    return Verdict(other.path, outcome, difference, margin, noise, reason)


def _incomparable(first: ComparedRun, other: ComparedRun) -> str | None:
    """Return why the losses of two runs cannot be compared; None if they can."""
    for run in (first, other):
        if run.last is None:
            return f"{run.path} has no evaluation yet"
    data = [run.record.get("data") or {} for run in (first, other)]
    splits = [
        [dict(flat_values(run.record["profile"])).get(f"data.{name}") for name in _SPLIT]
        for run in (first, other)
    ]
    texts = [each.get("corpus_sha256") for each in data]
    if texts[0] is not None and texts[0] == texts[1] and splits[0] == splits[1]:
        return None
    return "they are validated on different text; llmtrain eval A B --data FILE compares on one"


def _is_known(evaluation: LoggedEvaluation) -> bool:
    return math.isfinite(evaluation.val_bpb)
