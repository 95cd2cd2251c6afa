"""What another seed changes in recorded trainings: the noise that `runs compare` assumes."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import pytest

from llmtrain.engine.sweep.plan import read_plan, require_valid, trials_of
from llmtrain.eval.student import student_quantile
from llmtrain.report.comparison import (
    USUAL_DEGREES,
    USUAL_SEED_NOISE,
    ComparedRun,
    verdict_between,
)
from llmtrain.train.run_directory.history import LoggedEvaluation, RunHistory

SEEDS = Path(__file__).parent / "seeds"
RECIPE = ((1.2225, 1.2170, 1.2305), (1.0007, 1.0108))  # 3M and 20M: docs/measurements/recipe.md
RESULTS = [json.loads(line) for line in (SEEDS / "results.jsonl").read_text().splitlines()]


def ends(rate: object) -> list[float]:
    """The last bits per byte of each seed at a learning rate."""
    return [each["val_bpb"][-1][1] for each in RESULTS if each["learning_rate"] == rate]


GROUPS = (*RECIPE, ends("auto"), ends(0.004), ends(0.08))


def pooled(groups: Sequence[Sequence[float]]) -> tuple[float, int]:
    """The standard deviation between seeds as a share of the loss, and its degrees of freedom."""
    squares = sum((x / fmean(group) - 1) ** 2 for group in groups for x in group)
    degrees = sum(len(group) - 1 for group in groups)
    return math.sqrt(squares / degrees), degrees


def compared(bits: float, number: int) -> ComparedRun:
    """A run that ended so, without repeated seeds; `number` is a setting that tells it apart."""
    record = {
        "profile": {"data": {"validation_fraction": 0.01}, "optim": {"momentum": number}},
        "data": {"corpus_sha256": "a"},
    }
    history = RunHistory((), (LoggedEvaluation(1, 1.0, 1.0, bits, bits),), (), ())
    return ComparedRun(Path(str(number)), record, history, (bits,))


def outcome(first: float, other: float) -> str:
    return verdict_between(compared(first, 0), compared(other, 1)).outcome


def test_the_assumed_noise_is_that_of_recorded_seeds() -> None:
    found, degrees = pooled(GROUPS)
    assert degrees == USUAL_DEGREES
    assert pytest.approx(found, rel=0.01) == USUAL_SEED_NOISE
    assert 0.021 < student_quantile(degrees) * found * math.sqrt(2) < 0.024


def test_19_of_20_pairs_of_seeds_do_not_differ_even_if_nobody_knows_that_they_are_seeds() -> None:
    pairs = [pair for group in GROUPS for pair in itertools.combinations(group, 2)]
    told = [outcome(*pair) for pair in pairs]
    assert len(pairs) >= 45
    assert told.count("no difference seen") >= 0.95 * len(pairs)


def test_a_learning_rate_that_costs_3_percent_is_a_difference() -> None:
    pairs = [
        (good, bad) for good in ends("auto") for bad in ends(0.004) if 1.03 < bad / good < 1.07
    ]
    assert len(pairs) >= 15
    assert {outcome(good, bad) for good, bad in pairs} == {"worse"}
    assert {outcome(bad, good) for good, bad in pairs} == {"better"}
    assert min(bad / good for good, bad in pairs) < 1.041


@pytest.mark.parametrize("name", ["seeds", "choices"])
def test_the_plans_can_be_trained_again(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(SEEDS.parents[2])
    plan = read_plan(SEEDS / f"{name}.yaml")
    require_valid(plan, trials_of(plan), {})
    trained = {(each["learning_rate"], each["seed"]) for each in RESULTS}
    settings = {tuple(trial.settings.values()) for trial in trials_of(plan)}
    assert settings <= trained
