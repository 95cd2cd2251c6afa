"""Which trial is next: of a plan's own list, or suggested by Optuna from the results so far.

Suggestions are by the tree-structured Parzen estimator (Bergstra et al. 2011). Each is recorded in
trials.jsonl before its training begins, so that a sweep that is killed continues what it began.
"""

from __future__ import annotations

import importlib.util
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from llmtrain.engine.sweep.plan import Range, SweepPlan, Trial, trials_of
from llmtrain.engine.sweep.results import SweepResults
from llmtrain.errors import UsageError
from llmtrain.files import write_pieces_atomically
from llmtrain.untrusted import parse_model, read_lines

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

TRIALS_FILE = "trials.jsonl"
_MOST_RANDOM = 10  # trials at the beginning that are drawn at random


def require_search(plan: SweepPlan) -> None:
    """Raise UsageError unless the library of the plan's method is installed."""
    if plan.method == "tpe" and importlib.util.find_spec("optuna") is None:
        raise UsageError(
            "method: tpe needs optuna, which is not installed",
            hint="pip install 'llmtrain[sweep]'",
        )


def trials_left(plan: SweepPlan, results: SweepResults) -> Iterator[Trial]:
    """Yield the trials that have no result, in order; suggested when the next one is asked for.

    Raises UsageError where the results are those of another plan.
    """
    if plan.method == "tpe":
        return _Suggestions(plan, results).left()
    trials = trials_of(plan)
    for trial in trials:
        results.require_settings(trial.number, trial.settings)
    return iter([trial for trial in trials if trial.number not in results.by_trial])


@dataclass(frozen=True, slots=True)
class _Begun:
    """A line of trials.jsonl."""

    trial: int
    settings: dict[str, Any]


class _Suggestions:
    """Trials of a plan, each suggested from the results at the time when it begins."""

    def __init__(self, plan: SweepPlan, results: SweepResults) -> None:
        self._plan, self._results = plan, results
        self._path = results.path.with_name(TRIALS_FILE)
        self._begun = {each.trial: each.settings for each in self._read()}
        for number, settings in self._begun.items():
            if settings.keys() != plan.random.keys():
                raise UsageError(
                    f"{self._path} is of another plan: trial {number} varies {', '.join(settings)}",
                    hint="choose another --out",
                )
            results.require_settings(number, settings)

    def left(self) -> Iterator[Trial]:
        for number in range(self._plan.trials or 0):
            if number in self._results.by_trial:
                continue
            if number not in self._begun:
                self._record(number, self._suggested(number))
            yield Trial(number, self._begun[number])

    def _read(self) -> list[_Begun]:
        try:
            return [parse_model(_Begun, line) for line in read_lines(self._path)]
        except FileNotFoundError:
            return []
        except ValueError as error:
            raise UsageError(
                f"{self._path} does not hold the trials of a sweep: {error}",
                hint="choose another --out",
            ) from None

    def _record(self, number: int, settings: dict[str, Any]) -> None:
        self._begun[number] = settings
        begun = [json.dumps(asdict(_Begun(n, s))) + "\n" for n, s in self._begun.items()]
        write_pieces_atomically(self._path, (line.encode() for line in begun))

    def _suggested(self, number: int) -> dict[str, Any]:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        plan = self._plan
        sampler = optuna.samplers.TPESampler(
            seed=zlib.crc32(f"{plan.seed}/{number}".encode()),
            n_startup_trials=min(_MOST_RANDOM, max(3, (plan.trials or 0) // 3)),
        )
        study = optuna.create_study(sampler=sampler)
        distributions = {key: _distribution(each) for key, each in plan.random.items()}
        study.add_trials(list(self._known(distributions)))
        found = study.ask(distributions).params
        return {key: _value(plan.random[key], value) for key, value in found.items()}

    def _known(self, distributions: Mapping[str, BaseDistribution]) -> Iterator[FrozenTrial]:
        """Yield what began, with its loss; what diverged or failed is as bad as the worst."""
        import optuna

        done = self._results.by_trial
        losses = [each.val_bpb for each in done.values() if each.val_bpb is not None]
        for number, settings in sorted(self._begun.items()):
            parameters = {
                key: value
                if isinstance(self._plan.random[key], Range)
                else json.dumps(value, sort_keys=True)
                for key, value in settings.items()
            }
            result = done.get(number)
            if result is None:  # in training: another worker's
                state, loss = optuna.trial.TrialState.RUNNING, None
            else:
                state = optuna.trial.TrialState.COMPLETE
                loss = result.val_bpb
                if loss is None or result.outcome in ("diverged", "failed"):
                    loss = max(losses, default=None)
            if result is not None and loss is None:
                continue
            yield optuna.trial.create_trial(
                state=state, value=loss, params=parameters, distributions=dict(distributions)
            )


def _distribution(choice: Range | tuple[Any, ...]) -> BaseDistribution:
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if not isinstance(choice, Range):
        return CategoricalDistribution([json.dumps(each, sort_keys=True) for each in choice])
    if choice.integer:
        return IntDistribution(round(choice.low), round(choice.high), log=choice.log)
    return FloatDistribution(choice.low, choice.high, log=choice.log)


def _value(choice: Range | tuple[Any, ...], value: Any) -> Any:
    """Return a suggestion as the plan writes it."""
    if isinstance(choice, Range):
        return choice.rounded(value)
    return next(each for each in choice if json.dumps(each, sort_keys=True) == value)
