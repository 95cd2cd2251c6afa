"""A search follows what it finds, and continues as it would have without a kill."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from llmtrain.engine.sweep.plan import Range, SweepPlan, Trial
from llmtrain.engine.sweep.results import SweepResults, TrialResult
from llmtrain.engine.sweep.search import require_search, trials_left
from llmtrain.errors import UsageError

RATE, NAME = "optim.learning_rate", "optim.name"


def plan(trials: int = 30, **changes: Any) -> SweepPlan:
    return SweepPlan(
        random={RATE: Range(low=1e-4, high=1.0, log=True), NAME: ("muon", "adamw")},
        trials=trials,
        method="tpe",
        **changes,
    )


def loss(trial: Trial) -> float:
    """Best at a rate of 0.02 with the first optimizer."""
    settings = trial.settings
    return 1 + abs(math.log10(settings[RATE] / 0.02)) + 0.5 * (settings[NAME] != "muon")


def result(trial: Trial, bits: float | None, outcome: str = "done") -> TrialResult:
    return TrialResult(trial.number, "", dict(trial.settings), outcome, bits, 1, 1, 1.0, "")  # type: ignore[arg-type]


def searched(directory: Path, stop_after: int = 99) -> list[dict[str, Any]]:
    directory.mkdir(exist_ok=True)
    results = SweepResults(directory)
    for count, trial in enumerate(trials_left(plan(), results)):
        if count == stop_after:
            break
        bits = loss(trial)
        results.add(result(trial, *((bits,) if bits < 3 else (None, "diverged"))))
    return [each.settings for each in results.by_trial.values()]


def test_later_trials_are_nearer_to_the_best(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    found = [loss(Trial(n, s)) for n, s in enumerate(searched(tmp_path / "a"))]
    assert len(found) == 30
    assert sum(found[-10:]) < 0.7 * sum(found[:10])


def test_a_search_that_is_killed_goes_on_as_if_it_was_not(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    whole = searched(tmp_path / "whole")
    for count in (3, 9, 99):
        parts = searched(tmp_path / "parts", count)
    assert parts == whole


def test_what_was_begun_keeps_its_settings_whatever_ended_since(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    results = SweepResults(tmp_path)
    left = trials_left(plan(), results)
    first, second = next(left), next(left)
    results.add(result(second, 1.0))
    assert next(trials_left(plan(), SweepResults(tmp_path))) == first


@pytest.mark.parametrize(
    "text", ["[1]\n", '{"trial": 0}\n', '{"trial": 0, "settings": {"a": 1}}\n']
)
def test_trials_of_something_else_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "trials.jsonl").write_text(text)
    with pytest.raises(UsageError, match="trials"):
        list(trials_left(plan(), SweepResults(tmp_path)))


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="optuna"):
        require_search(plan())
    require_search(SweepPlan(random={RATE: (1.0,)}, trials=1))


def test_a_plan_without_a_method_is_drawn_as_before(tmp_path: Path) -> None:
    own = SweepPlan(random={RATE: (1.0, 2.0)}, trials=3)
    left = list(trials_left(own, SweepResults(tmp_path)))
    assert [trial.number for trial in left] == [0, 1, 2]
    assert json.loads(own.model_dump_json())["method"] == "random"
