"""What a run is doing, told by files such as a run leaves."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from llmtrain.engine.prove_resume.kill import KillTarget, kill_at, plan_kills
from llmtrain.engine.prove_resume.observe import Phase, Watch
from llmtrain.profile.schema import EvalSection
from llmtrain.train.run_directory.directory import RunDirectory

WISHES = EvalSection(every_steps=4, sample_every_steps=8)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A directory that is still empty."""
    (tmp_path / "cache").mkdir()
    return RunDirectory(tmp_path / "run")


def watch(run: RunDirectory) -> Watch:
    return Watch(run, run.path.parent / "cache", WISHES, steps=10)


def begin(run: RunDirectory, *, sessions: int = 1) -> None:
    run.checkpoints.mkdir(parents=True, exist_ok=True)
    run.write_record({"profile": {"name": "tiny"}, "sessions": [{}] * sessions})


def test_the_opening_of_a_new_run(run: RunDirectory) -> None:
    seen = watch(run)
    assert seen.phase() == "start-up"
    (run.path.parent / "cache" / "tokenizers").mkdir()
    assert seen.phase() == "data preparation"
    begin(run)
    assert seen.phase() == "step"


def test_a_resume_lasts_until_its_record_is_written(run: RunDirectory) -> None:
    begin(run)
    (run.checkpoints / ".step-00000003.left").mkdir()  # of a save that was cut short before
    seen = watch(run)
    assert seen.phase() == "resume"
    begin(run, sessions=2)
    assert seen.phase() == "step"


def test_what_comes_after_a_step_is_told_apart(run: RunDirectory) -> None:
    seen = watch(run)
    begin(run)
    for step, phase in ((3, "step"), (4, "evaluation"), (8, "evaluation"), (10, "evaluation")):
        run.append(run.metrics, {"step": step, "loss": 1.0})
        assert (seen.phase(), seen.step) == (phase, step)
        if phase == "evaluation":
            run.append(run.metrics, {"step": step, "val_loss": 1.0})
            assert seen.phase() == ("sampling" if step in (8, 10) else "step")
        if step == 8:
            run.append(run.samples, {"step": 8, "text": "x" * 5000})
            assert seen.phase() == "step"
            with run.metrics.open("a") as file:
                file.write(json.dumps({"step": 9})[:-2])  # a line that is being written
            assert seen.step == 8
            with run.metrics.open("a") as file:
                file.write("}\n")


def test_hidden_directories_are_saves_and_removals(run: RunDirectory) -> None:
    seen = watch(run)
    begin(run)
    (run.checkpoints / ".step-00000002.ab12").mkdir()
    assert seen.phase() == "save"
    (run.checkpoints / ".step-00000001.removed").mkdir()
    assert seen.phase() == "retention"
    (run.checkpoints / "step-00000007").mkdir()
    assert seen.step == 7


@pytest.mark.parametrize("kills", [1, 4, 25, 100])
def test_aims_are_as_many_as_asked_and_spread_over_phases_and_steps(kills: int) -> None:
    phases = ["start-up", "data preparation", "step", "save", "evaluation"]
    aims = plan_kills(phases, kills, 150, random.Random(0))
    assert len(aims) == kills
    assert aims == plan_kills(phases, kills, 150, random.Random(0))
    assert [aim.from_step for aim in aims] == sorted(aim.from_step for aim in aims)
    assert all(1 <= aim.from_step < 150 for aim in aims)
    is_starting = [aim.phase in ("start-up", "data preparation") for aim in aims]
    assert sum(is_starting) <= kills / 2
    assert is_starting == sorted(is_starting, reverse=True)
    if kills >= 25:
        counts = [sum(aim.phase == phase for aim in aims) for phase in (*phases, "resume")]
        assert min(counts) >= 3


class Running:
    """A training that saves a checkpoint as its third sample, and is killed at once."""

    has_ended = False

    def __init__(self, run: RunDirectory) -> None:
        self.run, self.samples = run, 0

    def check(self) -> None:
        self.samples += 1
        self.run.append(self.run.metrics, {"step": self.samples, "loss": 1.0})
        if self.samples == 3:
            (self.run.checkpoints / "step-00000003").mkdir()

    def kill(self, _: random.Random) -> tuple[str, float]:
        return "every process", 0.0


@pytest.mark.parametrize("phase", ["step", "resume", "retention"])
def test_kills_but_those_of_a_start_come_after_a_checkpoint(
    phase: Phase, run: RunDirectory
) -> None:
    seen = watch(run)
    begin(run)
    training = Running(run)
    target = KillTarget(phase, 1, 0.0, latest_step=9)
    kill = kill_at(training, seen, target, 0.0, random.Random(0), training.check)  # type: ignore[arg-type]
    assert kill is not None
    assert kill.after_checkpoint
    assert training.samples == (9 if phase == "retention" else 3)  # which is never seen
