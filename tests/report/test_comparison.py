"""Runs side by side: seeds are noise, worse settings are not, other text cannot be compared."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmtrain.report.comparison import Comparison, compare_runs

Make = Callable[..., str]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Writes a run whose loss falls to `bpb`, without training one."""

    def write(name: str, bpb: float, *, seed: int = 0, steps: int = 40, **settings: Any) -> str:
        run = tmp_path / name
        run.mkdir()
        corpus = settings.pop("corpus", "a" * 64)
        record = {
            "profile": {
                "name": "p",
                "data": {"validation_fraction": 0.02},
                "train": {"seed": seed},
                "optim": settings,
            },
            "plan": {"threads": {"value": 2, "reason": "cores"}},
            "data": {"key": "0" * 32, "corpus_sha256": corpus},
            "result": {"stopped": "done"},
        }
        (run / "run.yaml").write_text(yaml.safe_dump(record))
        lines: list[dict[str, object]] = []
        for step in range(10, steps + 1, 10):
            at = {"step": step, "tokens": step * 100, "elapsed_s": step / 2, "loss": 3.0}
            value = bpb * (1 + (steps - step) / steps)
            lines += [at, {"step": step, "val_loss": value * 2, "val_bpb": value}]
        (run / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
        return str(run)

    return write


def only_verdict(comparison: Comparison) -> tuple[str, str | None]:
    (verdict,) = comparison.verdicts
    return verdict.outcome, verdict.noise


def test_two_seeds_of_one_run_do_not_differ(make: Make) -> None:
    draw = random.Random(0)
    for pair in range(20):
        names = [make(f"{pair}-{seed}", draw.gauss(1.5, 0.01), seed=seed) for seed in (0, 1)]
        found = compare_runs(names)
        assert only_verdict(found) == ("no difference seen", None)
        assert [row.name for row in found.differing] == ["train.seed"]


def test_a_learning_rate_that_is_3_percent_worse_is_seen(make: Make) -> None:
    good, bad = make("good", 1.5), make("bad", 1.5 * 1.03, learning_rate=0.1)
    assert only_verdict(compare_runs([good, bad])) == ("worse", "usual")
    assert only_verdict(compare_runs([bad, good])) == ("better", "usual")


def test_a_difference_within_the_usual_noise_is_not_seen(make: Make) -> None:
    names = [make("one", 1.5), make("other", 1.5 * 1.01, learning_rate=0.1)]
    assert only_verdict(compare_runs(names)) == ("no difference seen", "usual")


def test_repeated_seeds_are_the_noise_where_there_are_some(make: Make) -> None:
    names = [make("one", 1.500), make("other", 1.515, learning_rate=0.1)]
    for seed, spread in ((1, 0.001), (2, -0.001)):
        make(f"one-{seed}", 1.5 + spread, seed=seed)
        make(f"other-{seed}", 1.515 + spread, seed=seed, learning_rate=0.1)
    found = compare_runs(names)
    assert only_verdict(found) == ("worse", "seeds")
    assert [len(run.same_settings_bpb) for run in found.runs] == [3, 3]
    assert found.verdicts[0].difference_bpb == pytest.approx(0.015)


def test_wide_seeds_hide_what_the_usual_noise_would_show(make: Make) -> None:
    names = [make("one", 1.50), make("other", 1.55, learning_rate=0.1)]
    for seed, spread in ((1, 0.1), (2, -0.1)):
        make(f"one-{seed}", 1.5 + spread, seed=seed)
        make(f"other-{seed}", 1.55 + spread, seed=seed, learning_rate=0.1)
    assert only_verdict(compare_runs(names)) == ("no difference seen", "seeds")


def test_runs_on_other_text_are_incomparable(make: Make) -> None:
    found = compare_runs([make("one", 1.5), make("other", 1.2, corpus="b" * 64)])
    assert only_verdict(found) == ("incomparable", None)
    assert "llmtrain eval" in found.verdicts[0].reason


def test_a_run_without_an_evaluation_is_incomparable(make: Make, tmp_path: Path) -> None:
    names = [make("one", 1.5), make("other", 1.5)]
    (tmp_path / "other" / "metrics.jsonl").unlink()
    found = compare_runs(names)
    assert only_verdict(found) == ("incomparable", None)
    assert (found.at_equal_tokens, found.to_equal_loss) == (None, None)


def test_losses_are_read_at_equal_tokens_and_time(make: Make) -> None:
    found = compare_runs([make("short", 1.5, steps=20), make("long", 1.5, steps=40)])
    assert found.at_equal_tokens is not None
    assert found.at_equal_tokens.amount == 2000
    assert found.at_equal_tokens.val_bpb == pytest.approx((1.5, 2.25))
    assert found.at_equal_time is not None
    assert found.at_equal_time.val_bpb == pytest.approx((1.5, 2.25))


def test_what_it_takes_to_the_same_loss_is_interpolated(make: Make) -> None:
    found = compare_runs([make("good", 1.0), make("bad", 1.25)])
    assert found.to_equal_loss is not None
    assert found.to_equal_loss.val_bpb == 1.25
    assert found.to_equal_loss.tokens == pytest.approx((3000, 4000))
