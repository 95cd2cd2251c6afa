from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from llmtrain.progress import Note
from llmtrain.train.events import Evaluated, Event, Saved, Step
from tests.train.harness import Files, InProcessTrainer, Llmtrain, forget_saved_states

Moment = Callable[[Event], bool]


def after_step(step: int) -> Moment:
    return lambda event: isinstance(event, Step) and event.step == step


def after_evaluation(step: int) -> Moment:
    return lambda event: isinstance(event, Evaluated) and event.step == step


MOMENTS = {
    "during warmup": after_step(1),
    "between evaluations": after_step(6),
    "at a step that is evaluated": after_step(9),
    "in an evaluation": after_step(10),
    "in a sample": after_evaluation(10),
    "at the last step": after_step(19),
    "in the last evaluation": after_step(20),
    "in the last sample": after_evaluation(20),
}


@pytest.mark.parametrize("moment", MOMENTS.values(), ids=MOMENTS)
def test_interrupted_run_ends_as_an_uninterrupted_one(
    moment: Moment, train: InProcessTrainer, place: Path, reference: Files
) -> None:
    stopped = train(place / "run", stop_at=moment)
    assert stopped.stopped == "interrupted"
    assert stopped.checkpoint.is_dir()

    finished = train(place / "run", resume="auto")

    assert finished.stopped == "done"
    assert Files(place / "run").digests() == reference.digests()
    assert Files(place / "run").course() == reference.course()
    samples = Files(place / "run").lines("samples.jsonl")
    assert samples == reference.lines("samples.jsonl")


def test_run_interrupted_at_every_fifth_step_ends_the_same(
    train: InProcessTrainer, place: Path, reference: Files
) -> None:
    for step in (4, 9, 14):
        train(place / "run", stop_at=after_step(step), resume="auto")
    train(place / "run", resume="auto")

    assert Files(place / "run").digests() == reference.digests()
    assert Files(place / "run").course() == reference.course()


def test_longer_constant_schedule_begins_as_the_shorter_run(
    train: InProcessTrainer, place: Path, reference: Files
) -> None:
    # Under wsd the rate is constant until half of the horizon, so the first 10 steps are the same.
    train(place / "run", train__steps=20, optim__warmup_steps=2)
    train(place / "long", train__steps=40, optim__warmup_steps=2, eval__every_steps=40)

    first = [line for line in Files(place / "run").course() if "loss" in line][:10]
    assert [line for line in Files(place / "long").course() if "loss" in line][:10] == first


def test_longer_horizon_goes_on(train: InProcessTrainer, llmtrain: Llmtrain, place: Path) -> None:
    train(place / "run")

    assert llmtrain("train", "--out", "run", "--resume", "auto", "--steps", 25).code == 0

    steps = [line["step"] for line in Files(place / "run").course() if "loss" in line]
    assert steps == list(range(1, 26))
    assert Files(place / "run").newest.name == "step-00000025"


def test_longer_time_goes_on_past_the_old_estimate(train: InProcessTrainer, place: Path) -> None:
    short = train(place / "run", train__time="1s")

    longer = train(place / "run", train__time="9s", resume="auto")

    assert longer.steps > short.steps + 1


def test_shorter_horizon_is_refused_with_both_values(
    train: InProcessTrainer, llmtrain: Llmtrain, place: Path
) -> None:
    train(place / "run", stop_at=after_step(3))

    outcome = llmtrain("train", "--out", "run", "--resume", "auto", "--steps", 15)

    assert outcome.code == 2
    assert "20 steps" in outcome.err
    assert "15 steps" in outcome.err


def test_resume_auto_starts_fresh_where_there_is_none(llmtrain: Llmtrain) -> None:
    outcome = llmtrain("train", "-p", "tiny.yaml", "--out", "run", "--resume", "auto")

    assert outcome.code == 0
    assert Files(Path("run")).newest.name == "step-00000020"


def test_run_directory_is_not_overwritten(
    llmtrain: Llmtrain, train: InProcessTrainer, place: Path
) -> None:
    train(place / "run", stop_at=after_step(3))
    before = sorted((place / "run").rglob("*"))

    outcome = llmtrain("train", "-p", "tiny.yaml", "--out", "run")

    assert outcome.code == 2
    assert "--resume auto" in outcome.err
    assert sorted((place / "run").rglob("*")) == before


@pytest.mark.parametrize("eval_patience", [None, 1])
def test_finished_run_says_so(
    eval_patience: int | None,
    train: InProcessTrainer,
    llmtrain: Llmtrain,
    place: Path,
) -> None:
    rate = 0.004 if eval_patience is None else 10.0  # the latter makes it worse at once
    train(
        place / "run",
        eval__patience=eval_patience,
        eval__every_steps=1,
        eval__sample_every_steps=None,
        optim__learning_rate=rate,
    )
    course = Files(place / "run").course()

    outcome = llmtrain("train", "--out", "run", "--resume", "auto")

    assert outcome.code == 0
    assert "already finished" in outcome.err
    assert Files(place / "run").course() == course
    assert (course[-1]["step"] < 20) == (eval_patience is not None)


@pytest.mark.parametrize(
    ("arguments", "before", "now"),
    [
        (("--set", "model.hidden_size=64"), "32", "64"),
        (("--seed", "7"), "0", "7"),
        (("--data", "other.txt"), "corpus.txt", "other.txt"),
        (("--set", "train.tokens_per_step=512"), "256", "512"),
        (("--set", "optim.learning_rate=0.5"), "auto", "0.5"),
    ],
)
@pytest.mark.parametrize("profile", [(), ("-p", "tiny.yaml")], ids=["without", "with"])
def test_what_a_run_is_made_of_cannot_change(
    arguments: tuple[str, ...],
    before: str,
    now: str,
    profile: tuple[str, ...],
    train: InProcessTrainer,
    llmtrain: Llmtrain,
    place: Path,
) -> None:
    train(place / "run", stop_at=after_step(3))
    (place / "other.txt").write_text("another text\n" * 50)

    outcome = llmtrain("train", *profile, "--out", "run", "--resume", "auto", *arguments)

    assert outcome.code == 2
    assert before in outcome.err
    assert now in outcome.err


def test_device_logging_and_checkpoints_may_change(
    train: InProcessTrainer, llmtrain: Llmtrain, place: Path
) -> None:
    train(place / "run", stop_at=after_step(3))

    outcome = llmtrain(
        *("train", "--out", "run", "--resume", "auto"),
        *("--set", "device.threads=2"),
        *("--set", "train.log_every_steps=10"),
        *("--set", "checkpoint.every_steps=8"),
        *("--set", "checkpoint.keep_last=5"),
    )

    assert outcome.code == 0
    assert "not bitwise from step 4" in outcome.err
    assert Files(place / "run").checkpoints[-3:] == [
        "step-00000010",  # the best at its time, or one of the five newest
        "step-00000016",
        "step-00000020",
    ]
    steps = [line["step"] for line in Files(place / "run").course() if "loss" in line]
    assert steps == [1, 2, 3, 4, 5, 10, 20]


def test_resume_by_name_directory_and_checkpoint(
    train: InProcessTrainer, llmtrain: Llmtrain, place: Path, reference: Files
) -> None:
    run = place / "runs" / "mine"
    train(run, stop_at=after_step(6), checkpoint__every_steps=4, checkpoint__keep_last=9)
    for number, resume in enumerate(
        (
            "mine",
            "runs/mine",
            "runs/mine/checkpoints/step-00000004",
            "mine/checkpoints/step-00000004",
        )
    ):
        copy = place / str(number) / "runs" / "mine"
        shutil.copytree(run, copy)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(copy.parent.parent)
            outcome = llmtrain("train", "--resume", resume)
        assert outcome.code == 0, outcome.err
        assert Files(copy).digests() == reference.digests()
        assert Files(copy).course() == reference.course()
        assert ("superseded" in outcome.err) == ("step-00000004" in resume)


def test_newest_run_of_the_profile_is_resumed(
    train: InProcessTrainer, llmtrain: Llmtrain, place: Path
) -> None:
    train(place / "runs" / "older", stop_at=after_step(3))
    train(place / "runs" / "newer", stop_at=after_step(3))

    assert llmtrain("train", "-p", "tiny.yaml", "--resume", "auto").code == 0

    assert Files(place / "runs" / "newer").newest.name == "step-00000020"
    assert Files(place / "runs" / "older").newest.name == "step-00000004"


def test_metrics_past_the_checkpoint_are_cut(
    train: InProcessTrainer, place: Path, reference: Files
) -> None:
    train(place / "run", stop_at=after_step(6))
    with (place / "run" / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"step": 8, "loss": 1.0}\n{"step": 9, "loss": 1.0}\n{"step": 10, "lo')

    train(place / "run", resume="auto")

    assert Files(place / "run").course() == reference.course()


def test_run_that_was_killed_before_its_first_checkpoint_begins_again_as_it_was(
    train: InProcessTrainer, llmtrain: Llmtrain, place: Path, reference: Files
) -> None:
    train(place / "run", stop_at=after_step(6))
    forget_saved_states(place / "run")

    outcome = llmtrain("train", "--out", "run", "--resume", "auto")  # names no profile

    assert outcome.code == 0
    assert "no checkpoint" in outcome.err
    assert Files(place / "run").digests() == reference.digests()
    assert Files(place / "run").course() == reference.course()


def test_checkpoints_without_a_record_are_left_alone(
    train: InProcessTrainer, llmtrain: Llmtrain, place: Path
) -> None:
    train(place / "run", stop_at=after_step(6))
    (place / "run" / "run.yaml").unlink()
    before = Files(place / "run").digests()

    for resume in ((), ("--resume", "auto")):
        outcome = llmtrain("train", "-p", "tiny.yaml", "--out", "run", *resume)
        assert outcome.code == 2
        assert "--out" in outcome.err
    assert Files(place / "run").digests() == before


@pytest.mark.parametrize("first", [("--set", "optim.beta2=0.9"), ("--steps", "24")])
@pytest.mark.parametrize("profile", [(), ("-p", "tiny.yaml")], ids=["without", "with"])
def test_flag_of_the_first_call_survives_a_resume_that_does_not_repeat_it(
    first: tuple[str, ...],
    profile: tuple[str, ...],
    llmtrain: Llmtrain,
    place: Path,
) -> None:
    assert llmtrain("train", "-p", "tiny.yaml", "--out", "whole", *first).code == 0
    assert llmtrain("train", "-p", "tiny.yaml", "--out", "run", *first).code == 0
    for path in Files(place / "run").newest, place / "run" / "samples.jsonl":
        (shutil.rmtree if path.is_dir() else Path.unlink)(path)

    outcome = llmtrain("train", *profile, "--out", "run", "--resume", "auto")

    assert outcome.code == 0, outcome.err
    assert Files(place / "run").digests() == Files(place / "whole").digests()


def test_variable_of_the_first_call_survives_too(
    llmtrain: Llmtrain,
    train: InProcessTrainer,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("LLMTRAIN_TRAIN__STEPS", "24")
        train(place / "run", stop_at=after_step(3))

    outcome = llmtrain("train", "-p", "tiny.yaml", "--out", "run", "--resume", "auto")

    assert outcome.code == 0, outcome.err
    assert Files(place / "run").newest.name == "step-00000024"


def test_changed_text_does_not_matter_while_its_shards_are_cached(
    train: InProcessTrainer, place: Path, reference: Files
) -> None:
    train(place / "run", stop_at=after_step(6))
    (place / "corpus.txt").write_text("nothing of what was there\n" * 500)

    train(place / "run", resume="auto")

    assert Files(place / "run").digests() == reference.digests()


def test_changed_text_without_cached_shards_is_refused(
    train: InProcessTrainer, llmtrain: Llmtrain, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(place / "run", stop_at=after_step(6))
    (place / "corpus.txt").write_text("nothing of what was there\n" * 500)
    monkeypatch.setenv("LLMTRAIN_CACHE_DIR", str(place / "empty"))

    outcome = llmtrain("train", "--out", "run", "--resume", "auto")

    assert outcome.code == 5
    assert "corpus.txt" in outcome.err


def test_validation_text_of_its_own_is_resumed_with_or_without_the_cache(
    train: InProcessTrainer, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`data.validation` is read again as it was named, and both ways end the same."""
    (place / "held.txt").write_text("held out, and trained on by nobody\n" * 400)
    settings = {"data__validation": "held.txt"}
    train(place / "whole", **settings)
    assert Files(place / "whole").digests() != {}
    for name in ("cached", "again"):
        train(place / name, stop_at=after_step(6), **settings)
        if name == "again":
            monkeypatch.setenv("LLMTRAIN_CACHE_DIR", str(place / "empty"))
        train(place / name, resume="auto")
        assert Files(place / name).digests() == Files(place / "whole").digests()
        assert Files(place / name).course() == Files(place / "whole").course()


def test_validation_text_that_changed_is_refused_without_the_cache(
    train: InProcessTrainer, llmtrain: Llmtrain, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "held.txt").write_text("held out, and trained on by nobody\n" * 400)
    train(place / "run", stop_at=after_step(6), data__validation="held.txt")
    (place / "held.txt").write_text("something else\n" * 400)
    monkeypatch.setenv("LLMTRAIN_CACHE_DIR", str(place / "empty"))

    outcome = llmtrain("train", "--out", "run", "--resume", "auto")

    assert outcome.code == 5
    assert "has changed since the run started" in outcome.err


def damage(checkpoint: Path) -> None:
    model = checkpoint / "model.safetensors"
    content = bytearray(model.read_bytes())
    content[-1] ^= 1
    model.write_bytes(content)


def test_damaged_newest_checkpoint_is_set_aside(
    train: InProcessTrainer, llmtrain: Llmtrain, place: Path, reference: Files
) -> None:
    train(place / "run", stop_at=after_step(13), checkpoint__every_steps=4)
    assert Files(place / "run").newest.name == "step-00000014"
    damage(Files(place / "run").newest)

    outcome = llmtrain("train", "--out", "run", "--resume", "auto")

    assert outcome.code == 0
    assert "warning: damaged checkpoint" in outcome.err
    assert "model.safetensors" in outcome.err
    assert "step-00000014.damaged" in Files(place / "run").checkpoints
    assert Files(place / "run").digests() == reference.digests()
    assert Files(place / "run").course() == reference.course()


@pytest.mark.parametrize("resume", ["auto", "newest"])
def test_no_whole_checkpoint_is_a_failure(
    resume: str, train: InProcessTrainer, llmtrain: Llmtrain, place: Path
) -> None:
    train(place / "run", stop_at=after_step(6))
    (Files(place / "run").newest / "manifest.json").unlink()
    named = str(Files(place / "run").newest) if resume == "newest" else resume

    outcome = llmtrain("train", "--out", "run", "--resume", named)

    assert outcome.code == 1
    assert "manifest.json" in outcome.err


def test_evaluation_is_due_once_where_the_run_is_resumed(
    train: InProcessTrainer, place: Path
) -> None:
    train(place / "run", stop_at=after_step(9))
    train.events.clear()

    train(place / "run", resume="auto")

    evaluated = [event.step for event in train.events if isinstance(event, Evaluated)]
    assert evaluated == [10, 20]


def test_checkpoints_of_a_resume_are_told(train: InProcessTrainer, place: Path) -> None:
    train(place / "run", stop_at=after_step(6))
    train.events.clear()

    train(place / "run", resume="auto")

    saved = [event.step for event in train.events if isinstance(event, Saved)]
    assert saved[-1] == 20
    assert not [e for e in train.events if isinstance(e, Note) and e.is_warning]
