"""The rules meet the trainings that they were fitted to, and those that were held back."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import pytest

from llmtrain.engine.sweep.plan import trials_of
from llmtrain.engine.sweep.trial import TRAIN
from llmtrain.profile.load import load_profile
from llmtrain.recipe.learning_rate import muon_rate
from tests.benchmarks.sweep import block_sweep, main, read_blocks, read_jobs
from tests.benchmarks.sweep_job import SweepJob, SweepResult, read_results
from tests.faults import tiny

SWEEPS = Path(__file__).parent / "sweeps"
RESULTS = read_results(SWEEPS / "results.jsonl")
Losses = dict[float, float]


def tokens_per_step(job: SweepJob) -> int:
    profile = load_profile(job.profile, environment={}, assignments=job.assignments).profile
    return profile.train.chosen_tokens_per_step


def by_rate(prefix: str) -> dict[tuple[str, int, int], Losses]:
    """(name, tokens, tokens a step) → bits a byte at each of Muon's rates."""
    groups: dict[tuple[str, int, int], Losses] = defaultdict(dict)
    for result in RESULTS:
        job = result.job
        if job.name.startswith(prefix):
            rate = job.settings["optim.learning_rate"]
            key = job.name, job.tokens, tokens_per_step(job)
            groups[key][rate] = result.quality.bits_per_byte
    return {key: losses for key, losses in groups.items() if len(losses) >= 3}


def excess(losses: Losses, rate: float) -> float:
    """How much worse than the best the loss at `rate` is, interpolated between logarithms."""
    known = sorted(losses.items())
    best = min(losses.values())
    clamped = min(max(rate, known[0][0]), known[-1][0])
    for (low, at_low), (high, at_high) in pairwise(known):
        if low <= clamped <= high:
            share = math.log(clamped / low) / math.log(high / low)
            return (at_low + share * (at_high - at_low)) / best - 1
    raise AssertionError(clamped)


def test_muons_rate_is_fitted() -> None:
    groups = by_rate("batch-")
    assert len(groups) >= 14
    found = [excess(losses, muon_rate(step)) for (_, _, step), losses in groups.items()]
    assert sum(found) / len(found) < 0.003
    assert max(found) < 0.0065


def test_muons_rate_holds_at_shapes_that_were_held_back() -> None:
    groups = by_rate("held-back")
    assert len({name for name, _, _ in groups}) == 3
    for (_, _, step), losses in groups.items():
        assert len(losses) == 5
        assert excess(losses, muon_rate(step)) < 0.01


def results(data: str, size: str, system: str) -> list[SweepResult]:
    return [
        result
        for result in RESULTS
        if (result.job.name, result.job.data, result.job.system) == ("baseline", data, system)
        and Path(result.job.profile).stem == size
    ]


@pytest.mark.parametrize(
    ("data", "size", "times_fewer"),
    [("code", "20m", 4.4), ("prose", "20m", 4.0), ("code", "3m", 3.9), ("code", "117m", 3.9)],
)
def test_fewer_tokens_are_as_good_as_the_baseline_at_its_best(
    data: str, size: str, times_fewer: float
) -> None:
    best = min(results(data, size, "naive"), key=lambda result: result.quality.bits_per_byte)
    fewest = min(
        result.quality.tokens
        for result in results(data, size, "ours")
        if result.quality.bits_per_byte <= best.quality.bits_per_byte
    )
    assert best.quality.tokens / fewest > times_fewer


def test_every_training_belongs_to_a_plan() -> None:
    planned = [
        job
        for plan in sorted(SWEEPS.glob("*.yaml"))
        for job in read_jobs(plan.read_text(encoding="utf-8"))
    ]
    assert [result.job for result in RESULTS if result.job not in planned] == []


def test_a_plan_is_every_combination_of_its_blocks() -> None:
    plan = """
    - name: a
      data: code
      profile: cpu-tiny
      tokens: 1
      settings: {optim.momentum: 0.5}
      grid: {tokens: [2, 3], train.seed: [4, 5]}
    """
    jobs = read_jobs(plan)
    assert [(job.tokens, job.settings["train.seed"]) for job in jobs] == [
        (2, 4),
        (2, 5),
        (3, 4),
        (3, 5),
    ]
    assert {job.settings["optim.momentum"] for job in jobs} == {0.5}


def test_blocks_become_sweeps_of_llmtrain() -> None:
    """Each training of every plan is a trial, whose settings are the job's."""
    for path in sorted(SWEEPS.glob("*.yaml")):
        for block in read_blocks(path.read_text(encoding="utf-8")):
            sweep = block_sweep(block, {"code": "code.gz", "prose": "prose.gz"}, "cpu")
            trials = trials_of(sweep.plan)
            assert len(trials) == len(sweep.jobs)
            for trial, job in zip(trials, sweep.jobs, strict=True):
                settings = {**sweep.plan.settings, **trial.settings}
                assert settings["train.tokens"] == job.tokens
                assert settings.items() >= job.settings.items()
                if job.system == "naive":
                    assert settings["optim.learning_rate"] == job.learning_rate
            kinds = {(job.system, job.variant, job.growth) for job in sweep.jobs}
            assert (sweep.program == TRAIN) == (kinds == {("ours", None, ())})


@pytest.mark.slow
def test_every_kind_of_training_ends_in_the_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.furnish(tmp_path)
    shared = {"data": "text", "profile": str(tmp_path / "tiny.yaml"), "tokens": 2048}
    shared |= {"evaluation_tokens": 512}
    blocks = [
        {"name": "ours", **shared, "grid": {"optim.learning_rate": [0.01, 0.02]}},
        {"name": "naive", **shared, "system": "naive", "learning_rate": 0.001},
        {"name": "changed", **shared, "grid": {"variant": ["polar-3"]}},
        {"name": "growth", **shared, "growth": [[0, 256], [0.5, 512]]},
    ]
    (tmp_path / "plan.yaml").write_text(json.dumps(blocks))
    out, text = tmp_path / "out", tmp_path / "corpus.txt"
    call = [str(tmp_path / "plan.yaml"), str(out), "--data", f"text={text}"]
    assert main(call) == 0
    first = capsys.readouterr().out
    found = read_results(out / "results.jsonl")
    assert [result.job.name for result in found] == ["ours", "ours", "naive", "changed", "growth"]
    assert all(1 < result.quality.bits_per_byte < 12 for result in found)
    assert [result.quality.tokens for result in found] == [2048] * 5
    assert len(first.splitlines()) == 5
    assert main(call) == 0
    assert capsys.readouterr().out == ""
    assert read_results(out / "results.jsonl") == found
