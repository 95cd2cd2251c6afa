"""The proof that a resume is exact: what it trains, and what it takes for a difference."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from llmtrain.engine.prove_resume.proof import Proof, RunResult, proof_profile
from llmtrain.engine.request import TrainRequest
from llmtrain.profile.setting import Setting

ENDING = RunResult("a" * 64, "b" * 64, ({"step": 1, "loss": 2.5},), {"precision": "fp32"})


def proof(interrupted: RunResult) -> Proof:
    return Proof(2, 1, (), ENDING, interrupted, 1.0, 1.0)


def test_equal_is_equal_in_everything() -> None:
    assert proof(ENDING).is_equal
    assert proof(ENDING).first_difference is None


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model_sha256": "c" * 64}, "the weights"),
        ({"optimizer_sha256": "c" * 64}, "the optimizer's state"),
        ({"course": ({"step": 1, "loss": 2.25},)}, "2.25"),
        ({"course": ()}, "1 and 0 logged values"),
        ({"numerics": {"precision": "bf16"}}, "the plans"),
    ],
)
def test_whatever_differs_is_named(change: dict[str, object], told: str) -> None:
    found = proof(replace(ENDING, **change))  # type: ignore[arg-type]
    assert not found.is_equal
    assert told in str(found.first_difference)


def test_shape_step_and_data_are_the_users_own(tmp_path: Path) -> None:
    flags = {
        "model.hidden_size": Setting(192, "--set"),
        "train.time": Setting("8h", "--time"),
        "data.sources": Setting(["mine.txt"], "--data"),
        "eval.patience": Setting(1, "--set"),
        "eval.tokens": Setting(512, "--set"),
    }
    found = proof_profile(TrainRequest(profile="cpu-tiny", flags=flags), 7)
    assert (found.train.steps, found.train.time, found.checkpoint.every_steps) == (7, None, 1)
    assert found.model.hidden_size == 192
    assert found.data.sources == ("mine.txt",)
    assert (found.eval.patience, found.eval.tokens) == (None, 512)
    # what was chosen for eight hours, and not for seven steps
    alone = TrainRequest(profile="cpu-tiny", flags={"train.time": Setting("8h", "--time")})
    assert found.train.tokens_per_step == proof_profile(alone, 9).train.tokens_per_step
    assert isinstance(found.train.tokens_per_step, int)
