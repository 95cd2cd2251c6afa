"""What is refused leaves nothing, and takes nothing over."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from llmtrain.engine import plan_run, train_run
from llmtrain.errors import DoesNotFitError, InterruptedRunError, LlmtrainError
from llmtrain.train.checkpoint.format import load_checkpoint
from llmtrain.train.model_weights import trained_model
from llmtrain.train.run_directory.directory import RunDirectory
from tests.train.harness import Files, InProcessTrainer, Llmtrain, forget_saved_states

TRAIN = ("train", "-p", "tiny.yaml")


def entries(place: Path) -> list[str]:
    return sorted(str(path.relative_to(place)) for path in place.rglob("*"))


def does_not_fit(*_: Any, **__: Any) -> None:
    raise DoesNotFitError("too large")


def interrupt(*_: Any, **__: Any) -> None:
    raise InterruptedRunError("stopped by SIGINT")


def abort(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


REFUSED: dict[str, tuple[list[str], str | None, Any, int]] = {
    "too few tokens": (["--data", "few.txt"], None, None, 5),
    "no such text": (["--data", "missing.txt"], None, None, 5),
    "no tokenizer": (["--tokenizer", "few.txt"], None, None, 5),
    "does not fit": ([], "agreed_plan.plan_resolved", does_not_fit, 3),
    "no memory before the first step": ([], "train_run.trained_with_energy", does_not_fit, 3),
    "stopped while it measures": ([], "agreed_plan.plan_resolved", interrupt, 75),
    "stopped while it prepares": ([], "train_data._dataset", interrupt, 75),
}


@pytest.mark.parametrize("out", [[], ["--out", "a/b/run"]], ids=["named by itself", "--out"])
@pytest.mark.parametrize("reason", REFUSED)
def test_a_refused_run_leaves_nothing(
    reason: str, out: list[str], place: Path, llmtrain: Llmtrain, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, function, failing, code = REFUSED[reason]
    (place / "few.txt").write_text("only a few words\n")
    if function is not None:
        monkeypatch.setattr(f"llmtrain.engine.{function}", failing)
    before = entries(place)

    assert llmtrain(*TRAIN, *out, *options).code == code

    assert entries(place) == before


def test_a_directory_that_was_there_stays(place: Path, llmtrain: Llmtrain) -> None:
    (place / "run").mkdir()
    (place / "run" / "notes.txt").write_text("mine")
    assert llmtrain(*TRAIN, "--out", "run", "--data", "missing.txt").code == 5
    assert entries(place / "run") == ["notes.txt"]


def test_a_refused_run_does_not_take_over_the_start_that_was_interrupted(
    place: Path, llmtrain: Llmtrain, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(train_run, "trained_with_energy", interrupt)
        assert llmtrain(*TRAIN, "--out", "run", "--seed", 3).code == 75
    before = (place / "run" / "run.yaml").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(plan_run, "make_plan", does_not_fit)
        assert llmtrain(*TRAIN, "--out", "run").code == 3
    assert (place / "run" / "run.yaml").read_bytes() == before


def test_what_a_killed_start_logged_is_not_part_of_the_next_run(
    place: Path, llmtrain: Llmtrain, reference: Files
) -> None:
    shutil.copytree(reference.path, place / "run")
    forget_saved_states(place / "run")
    (place / "run" / ".lock").touch()
    stray = {"step": 0, "loss": 1.0, "note": "of the killed start"}
    (place / "run" / "metrics.jsonl").write_text(json.dumps(stray) + "\n")

    assert llmtrain(*TRAIN, "--out", "run").code == 0

    assert Files(place / "run").course() == reference.course()
    assert Files(place / "run").lines("samples.jsonl") == reference.lines("samples.jsonl")


def test_a_run_that_is_moved_away_says_so(
    place: Path, train: InProcessTrainer, llmtrain: Llmtrain, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = RunDirectory.append

    def moved(self: Any, path: Path, line: Any) -> None:
        if line["step"] == 7:
            (place / "run").rename(place / "elsewhere")
        append(self, path, line)

    monkeypatch.setattr(RunDirectory, "append", moved)
    outcome = llmtrain(*TRAIN, "--out", "run", "--set", "checkpoint.every_steps=2")

    assert outcome.code == 1
    assert "run was moved or removed" in outcome.err
    assert "--resume auto" in outcome.err
    assert not (place / "run").exists()
    monkeypatch.undo()
    monkeypatch.chdir(place)
    assert llmtrain("train", "--out", "elsewhere", "--resume", "auto").code == 0


def test_a_deleted_working_directory_is_a_usage_error(
    place: Path, llmtrain: Llmtrain, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "gone").mkdir()
    monkeypatch.chdir(place / "gone")
    (place / "gone").rmdir()
    for command in (["train"], ["eval", "run"], ["runs", "list"], ["data", "inspect", "."]):
        outcome = llmtrain(*command)
        assert outcome.code == 2
        assert "working directory was deleted" in outcome.err


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"RANK": "1"}, "WORLD_SIZE"),
        ({"WORLD_SIZE": "2"}, "RANK"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR"),
        ({"RANK": "x", "WORLD_SIZE": "2", "MASTER_ADDR": "h", "MASTER_PORT": "1"}, "RANK"),
        ({"RANK": "5", "WORLD_SIZE": "2", "MASTER_ADDR": "h", "MASTER_PORT": "1"}, "RANK"),
    ],
)
def test_stray_variables_of_a_launcher_are_named(
    variables: dict[str, str],
    named: str,
    place: Path,
    llmtrain: Llmtrain,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("time.sleep", lambda _: None)
    outcome = llmtrain(*TRAIN)
    assert outcome.code == 2
    assert named in outcome.err
    assert "unset" in outcome.err
    assert not (place / "runs").exists()


@pytest.mark.parametrize(
    "setting",
    [
        "optim.learning_rate=1e308",
        "optim.embedding_learning_rate=1e39",
        "optim.weight_decay=1e308",
        "optim.epsilon=1e300",
        "train.gradient_clip=1e300",
        "model.rope_theta=1e308",
    ],
)
def test_numbers_that_float32_cannot_hold_are_refused(
    setting: str, place: Path, llmtrain: Llmtrain
) -> None:
    outcome = llmtrain(*TRAIN, "--set", setting)
    assert outcome.code == 2
    assert setting.partition("=")[0] in outcome.err


def test_weights_that_are_not_finite_are_named(place: Path, reference: Files) -> None:
    checkpoint = load_checkpoint(reference.newest)
    name = next(iter(checkpoint.weights))
    broken = {**checkpoint.weights, name: checkpoint.weights[name] * float("nan")}
    with pytest.raises(LlmtrainError, match=name):
        trained_model(checkpoint.shape, broken, "the checkpoint")
