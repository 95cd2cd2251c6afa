"""The rule, on curves that are made up and on the sweeps that were recorded."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from pathlib import Path

import pytest

from llmtrain.engine.sweep.stopping import CurvePoint, first_hopeless
from tests.checkout import ROOT

RESULTS = ROOT / "tests" / "benchmarks" / "sweeps" / "results.jsonl"
SEEDS = RESULTS.parents[1] / "seeds" / "results.jsonl"
Curve = list[CurvePoint]


def curve(*bits: float) -> Curve:
    """Evaluations at equal distances, the last one at the end."""
    return [CurvePoint((n + 1) / len(bits), 100.0 * (n + 1), each) for n, each in enumerate(bits)]


DONE = [curve(3, 2, 1.5, 1.0 + n / 100) for n in range(3)]


def test_a_trial_that_is_far_behind_is_stopped_at_its_first_such_evaluation() -> None:
    found = first_hopeless(curve(3.1, 2.2, 2.1, 2.0), DONE)
    assert found is not None
    assert found.index == 1
    assert "2.2000 bits per byte at 50% of the run" in found.reason


@pytest.mark.parametrize("bits", [(3.1, 2.05, 1.55, 1.0), (3, 2, 1.5, 9.0)])
def test_a_trial_that_is_near_goes_on_and_the_last_evaluation_stops_nothing(
    bits: tuple[float, ...],
) -> None:
    assert first_hopeless(curve(*bits), DONE) is None


def test_the_first_quarter_stops_nothing() -> None:
    assert first_hopeless([CurvePoint(0.2, 100, 9.0), CurvePoint(1, 400, 1.0)], DONE) is None


def test_three_trials_have_to_be_done() -> None:
    assert first_hopeless(curve(9, 9, 9, 9), DONE[:2]) is None


def test_a_loss_that_is_not_finite_is_hopeless() -> None:
    assert first_hopeless(curve(float("nan"), float("nan"), 1, 1), DONE) is not None


def recorded() -> dict[str, list[Curve]]:
    """Settings that were trained for a quarter of the tokens and for all of them, by sweep.

    The trainings are apart, so the first point is of a schedule that had come to its end.
    """
    bits: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
    for line in RESULTS.read_text(encoding="utf-8").splitlines():
        result = json.loads(line)
        job = result["job"]
        is_ours = job["system"] == "ours" and not job["variant"] and not job["growth"]
        if is_ours and job["name"].startswith("batch-"):
            name = Path(job["profile"]).stem
            settings = json.dumps(job["settings"], sort_keys=True)
            bits[name, settings][job["tokens"]] = result["quality"]["bits_per_byte"]
    sweeps: dict[str, list[Curve]] = defaultdict(list)
    for (name, _), by_tokens in bits.items():
        budgets = sorted(by_tokens)[:2]
        if len(budgets) == 2 and budgets[1] == 4 * budgets[0]:
            sweeps[name].append([CurvePoint(t / budgets[1], t, by_tokens[t]) for t in budgets])
    return sweeps


def evaluated() -> list[Curve]:
    """Seeds and learning rates of one small model, with the evaluations that each run logged."""
    found = []
    for line in SEEDS.read_text(encoding="utf-8").splitlines():
        points = json.loads(line)["val_bpb"]
        found.append([CurvePoint(t / points[-1][0], t, bits) for t, bits in points])
    return found


@pytest.mark.parametrize("name", ["3m", "20m", "seeds"])
def test_the_best_of_recorded_sweeps_is_never_stopped(name: str) -> None:
    curves = evaluated() if name == "seeds" else recorded()[name]
    assert len(curves) >= 10
    best = min(curve[-1].bits_per_byte for curve in curves)
    draw, stopped = random.Random(0), 0
    for _ in range(200):
        draw.shuffle(curves)
        done: list[Curve] = []
        for each in curves:
            if first_hopeless(each, done) is None:
                done.append(each)
            else:
                stopped += 1
                assert each[-1].bits_per_byte > 1.005 * best
        assert min(curve[-1].bits_per_byte for curve in done) == best
    assert stopped > 200  # on average more than one of a sweep
