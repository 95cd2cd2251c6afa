from __future__ import annotations

from pathlib import Path

import pytest

from llmtrain.engine.sweep.plan import (
    SweepPlan,
    Trial,
    assignments,
    read_plan,
    require_valid,
    trials_of,
)
from llmtrain.errors import UsageError


def plan_of(tmp_path: Path, text: str) -> SweepPlan:
    path = tmp_path / "rates.yaml"
    path.write_text(text)
    return read_plan(path)


def test_a_grid_is_every_combination_in_order(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "grid: {optim.learning_rate: [0.1, 0.2], train.seed: [1, 2]}")
    assert plan.name == "rates"
    assert [tuple(trial.settings.values()) for trial in trials_of(plan)] == [
        (0.1, 1),
        (0.1, 2),
        (0.2, 1),
        (0.2, 2),
    ]
    assert trials_of(plan)[3].name == "trial-003"


RANDOM = """
random:
  a: {low: 0.001, high: 1, log: true}
  b: {low: 1, high: 9, integer: true}
  c: [x, y]
"""


def test_more_draws_keep_those_before(tmp_path: Path) -> None:
    few, many = (trials_of(plan_of(tmp_path, f"{RANDOM}trials: {n}")) for n in (3, 200))
    assert few == many[:3]
    other = trials_of(plan_of(tmp_path, f"{RANDOM}trials: 3\nseed: 1"))
    assert other != few


def test_draws_fill_their_range(tmp_path: Path) -> None:
    trials = trials_of(plan_of(tmp_path, f"{RANDOM}trials: 400"))
    rates = sorted(trial.settings["a"] for trial in trials)
    assert 0.001 <= rates[0] < 0.002
    assert 0.5 < rates[-1] <= 1
    assert 0.015 < rates[200] < 0.06  # the middle of the logarithms is 0.032
    assert {trial.settings["b"] for trial in trials} == set(range(1, 10))
    assert {trial.settings["c"] for trial in trials} == {"x", "y"}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "has no keys"),
        ("profile: cpu-tiny", "give either grid or random"),
        ("grid: {a: []}", "grid.a"),
        ("grid: {a: [1]}\nrandom: {b: [1]}\ntrials: 2", "give either"),
        ("random: {a: [1]}", "random needs trials"),
        ("random: {a: {low: 2, high: 1}}\ntrials: 2", "low 2 is not below"),
        ("random: {a: {low: 0, high: 1, log: true}}\ntrials: 2", "not above 0"),
        ("grid: {a: [1]}\nsettings: {a: 2}", "is in settings and is varied"),
        ("gird: {a: [1]}", "gird"),
        ("grid: {a: [1]}\ntrials: 3", "grid has its own number"),
        ("[1, 2]", "has no keys"),
    ],
)
def test_what_is_no_plan_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        plan_of(tmp_path, text)


def test_settings_are_written_as_set_reads_them() -> None:
    settings = {"a.b": 0.01, "c": "x y", "d": True, "e": ["f"], "g": None}
    assert assignments(settings) == ["a.b=0.01", 'c="x y"', "d=true", 'e=["f"]', "g=null"]


def test_a_wrong_setting_is_told_with_its_trial() -> None:
    plan = SweepPlan(profile="cpu-tiny", grid={"optim.learning_rate": (0.1, -1.0)})
    require_valid(plan, [Trial(0, {"optim.learning_rate": 0.1})], {})
    with pytest.raises(UsageError, match=r"trial-001: .*learning_rate"):
        require_valid(plan, trials_of(plan), {})
