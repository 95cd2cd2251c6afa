"""`runs verify` and what `runs prove-resume` answers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from llmtrain.engine.prove_resume import proof
from llmtrain.engine.prove_resume.kill import Kill
from llmtrain.engine.prove_resume.proof import Proof, ProofOptions, RunResult
from tests.cli.conftest import Command

ENDING = RunResult("a" * 64, "b" * 64, ({"step": 1, "loss": 2.5},), {})
OTHER = RunResult("c" * 64, "b" * 64, ({"step": 1, "loss": 2.5},), {})


@pytest.fixture
def run(place: Path, trained: Path) -> Path:
    return Path(shutil.copytree(trained, place / "run"))


def files(run: Path) -> list[tuple[str, bytes]]:
    return [(str(path), path.read_bytes()) for path in sorted(run.rglob("*")) if path.is_file()]


def test_a_whole_run_verifies(llmtrain: Command, run: Path) -> None:
    outcome = llmtrain("runs", "verify", "run", "--json")
    document = outcome.document
    assert outcome.code == 0
    assert [Path(path).name for path in document["good"]] == ["step-00000010", "step-00000020"]
    assert (document["damaged"], document["newest_good"]) == ([], "run/checkpoints/step-00000020")


def test_damage_is_named_and_nothing_is_renamed(llmtrain: Command, run: Path) -> None:
    model = run / "checkpoints" / "step-00000020" / "model.safetensors"
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 4
    model.write_bytes(content)
    before = files(run)

    outcome = llmtrain("runs", "verify", "run", "--json")
    (row,) = outcome.document["damaged"]
    assert outcome.code == 1
    assert "model.safetensors" in row["problem"]
    assert "sha256" in row["problem"]
    assert outcome.document["newest_good"] == "run/checkpoints/step-00000010"
    plain = llmtrain("runs", "verify", "run")
    assert plain.code == 1
    assert "damaged     run/checkpoints/step-00000020" in plain.out
    assert "good        run/checkpoints/step-00000010" in plain.out
    assert "newest good: run/checkpoints/step-00000010" in plain.err
    assert files(run) == before


def test_a_run_without_a_whole_checkpoint(llmtrain: Command, run: Path) -> None:
    for manifest in run.rglob("manifest.json"):
        manifest.unlink()
    outcome = llmtrain("runs", "verify", "run", "--json")
    assert (outcome.code, outcome.document["newest_good"]) == (1, None)
    assert llmtrain("runs", "verify", "nonesuch").code == 2


@pytest.mark.parametrize(("ending", "code"), [(ENDING, 0), (OTHER, 1)])
def test_the_answer_to_a_proof(
    ending: RunResult, code: int, llmtrain: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def prove(request: Any, trial: ProofOptions, observe: Any, check: Any) -> Proof:
        asked.append((request, trial))
        kill = Kill("save", "step", 3, "the process", 0.1, True)
        return Proof(trial.steps, 1, (kill, kill), ENDING, ending, 3.0, 9.0)

    monkeypatch.setattr(proof, "prove_resume", prove)
    command = ("runs", "prove-resume", "-p", "tiny.yaml", "--kills", 2, "--steps", 6, "--seed", 5)
    outcome = llmtrain(*command, "--nproc", 2, "--json")
    document = outcome.document
    request, trial = asked[0]
    assert trial == ProofOptions(kills=2, steps=6, seed=5)
    assert request.flags["device.processes"].value == 2
    assert (outcome.code, document["equal"]) == (code, code == 0)
    assert document["first_difference"] == (None if code == 0 else "the weights")
    assert [kill["phase"] for kill in document["kills"]] == ["save", "save"]
    assert document["uninterrupted"]["model_sha256"] == "a" * 64
    plain = llmtrain(*command)
    assert plain.code == code
    assert ("NOT EQUAL" in plain.out) == (code == 1)
    assert "save 2" in plain.out
