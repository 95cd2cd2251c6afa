"""Runs that end by the clock, by a deadline, or after so many readings of their text."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmtrain.cli.run_training import deadline_of
from llmtrain.engine.request import Deadline, TrainRequest
from llmtrain.engine.session_start import _FINAL_SAVE_S
from llmtrain.engine.train_run import run_training
from llmtrain.engine.train_session import TrainSession
from llmtrain.errors import UsageError
from llmtrain.profile.horizon import Horizon
from llmtrain.progress import Note
from llmtrain.train.checkpoint import saver
from llmtrain.train.checkpoint.format import load_checkpoint
from llmtrain.train.distributed.world import World
from llmtrain.train.events import Event, Started, Step
from llmtrain.train.pace import Pace
from llmtrain.train.repetition import overfitting_note, repetition_warning
from llmtrain.train.signals import StopRequest
from tests.train.harness import Files, InProcessTrainer, Llmtrain


def after_step(step: int) -> Callable[[Event], bool]:
    return lambda event: isinstance(event, Step) and event.step == step


def test_time_that_was_used_before_an_interruption_counts(
    train: InProcessTrainer, place: Path
) -> None:
    first = train(place / "run", stop_at=after_step(10), train__time="12s")
    used_s = first.seconds
    assert first.stopped == "interrupted"
    begun_s = time.monotonic()
    second = train(place / "run", resume="auto")
    session_s = time.monotonic() - begun_s

    assert second.stopped == "time"
    assert second.seconds == pytest.approx(used_s + session_s + _FINAL_SAVE_S, abs=0.5)
    assert 4 < second.seconds <= 12
    rates = [line["lr"] for line in Files(place / "run").course() if "loss" in line]
    assert rates[-1] < 0.2 * max(rates)
    falling = rates[rates.index(max(rates)) :]
    assert falling == sorted(falling, reverse=True)


def test_the_last_step_has_the_last_rate_however_slow_it_might_have_been(
    train: InProcessTrainer, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run ends before a step that might take 0.6 seconds: by the clock that is early."""
    monkeypatch.setattr(Pace, "slow_step_s", 0.6)
    result = train(place / "run", train__time="8s")
    rates = [line["lr"] for line in Files(place / "run").course() if "loss" in line]
    assert result.stopped == "time"
    assert rates[-1] == pytest.approx(max(rates) * 2 / len(rates), rel=0.01)  # it falls over half


def test_time_that_the_last_save_took_counts(
    train: InProcessTrainer, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seal = saver.finalize_checkpoint

    def slowly(written: Any) -> Path:
        time.sleep(2.5)
        return seal(written)

    monkeypatch.setattr(saver, "finalize_checkpoint", slowly)
    first = train(place / "run", stop_at=after_step(3), train__time="1h")
    saved_s = load_checkpoint(first.checkpoint).state.elapsed_s
    assert first.seconds >= saved_s + 2.5
    monkeypatch.undo()
    monkeypatch.chdir(place)
    second = train(place / "run", stop_at=after_step(5), resume="auto")
    assert second.seconds >= first.seconds + _FINAL_SAVE_S


def test_what_comes_before_training_counts_too(place: Path) -> None:
    request = TrainRequest(profile="tiny.yaml", assignments=["train.time=6s"], out=place / "run")
    session = TrainSession(World(), lambda event: None, StopRequest(), time.monotonic() - 3.0)
    begun_s = time.monotonic()
    result = run_training(request, session)
    assert time.monotonic() - begun_s < 3.0
    assert 3.0 < result.seconds <= 6.0


def test_a_deadline_is_what_a_clock_shows_next() -> None:
    soon = deadline_of("until=23:59")
    assert soon is not None
    assert 0 < soon.at_s - soon.from_s <= 25 * 3600 + 60  # a day, and an hour where clocks change
    assert time.localtime(soon.at_s)[3:5] == (23, 59)
    assert deadline_of("30m") is None
    assert deadline_of(None) is None


@pytest.mark.parametrize("text", ["until=25:00", "until=", "until=soon", "until=7.30"])
def test_what_no_clock_shows_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not a time of day") as refused:
        deadline_of(text)
    assert "until=07:30" in str(refused.value.hint)


def test_a_run_ends_at_its_deadline_also_where_it_was_interrupted(place: Path) -> None:
    def sit(deadline: Deadline | None, stop: StopRequest, observe: Any, resume: str | None) -> Any:
        request = TrainRequest(
            profile="tiny.yaml", out=place / "run", resume=resume, deadline=deadline
        )
        return run_training(request, TrainSession(World(), observe, stop))

    stop, now_s = StopRequest(), time.time()

    def interrupt(event: Event) -> None:
        if after_step(30)(event):
            stop.on_signal(15, None)

    first = sit(Deadline(now_s + 3600, now_s), stop, interrupt, None)
    assert first.stopped == "interrupted"
    now_s = time.time()
    second = sit(Deadline(now_s + 4, now_s), StopRequest(), lambda event: None, "auto")
    assert second.stopped == "time"
    assert time.time() <= now_s + 4
    assert second.steps > 30


def test_a_machine_that_slept_has_less_time_left() -> None:
    horizon = Horizon(time_s=100, deadline_s=5000)
    assert horizon.used_s(elapsed_s=40, now_s=4940) == 40
    assert horizon.used_s(elapsed_s=40, now_s=4980) == 80  # it slept for 40 seconds
    assert Horizon(time_s=100).used_s(elapsed_s=40, now_s=4980) == 40


def test_an_epoch_is_every_window_once(train: InProcessTrainer, place: Path) -> None:
    result = train(place / "run", train__epochs=2.0, eval__every_steps=1000)
    started = next(event for event in train.events if isinstance(event, Started))
    assert started.horizon_steps == result.steps
    assert result.tokens == pytest.approx(2 * started.train_tokens, rel=0.05)
    assert Horizon(epochs=0.5).in_steps(windows=100, windows_per_step=10) == Horizon(steps=5)
    assert Horizon(epochs=1e-9).in_steps(windows=100, windows_per_step=10) == Horizon(steps=1)


def test_a_text_that_is_read_often_is_warned_of(train: InProcessTrainer, place: Path) -> None:
    train(place / "run", train__epochs=5.0, eval__every_steps=1000)
    warnings = [e.text for e in train.events if isinstance(e, Note) and e.is_warning]
    assert len([text for text in warnings if "epochs over" in text]) == 1
    assert repetition_warning(steps=40, tokens_per_step=100, text_tokens=1000) is None
    warned = repetition_warning(steps=41, tokens_per_step=100, text_tokens=1000)
    assert warned is not None
    assert warned.startswith("4.1 epochs over 1k tokens")


def test_a_model_that_was_better_before_is_told_of() -> None:
    assert overfitting_note(2.0, 1.9, 30) is not None
    assert "step 30: 1.9000, now 2.0000" in str(overfitting_note(2.0, 1.9, 30))
    assert overfitting_note(1.9, 1.9, 30) is None
    assert overfitting_note(None, None, None) is None


def test_tokens_a_step_are_chosen_once(
    train: InProcessTrainer, llmtrain: Llmtrain, place: Path
) -> None:
    """A run that chose its own goes on with them, whatever would be chosen now."""
    profile = place / "tiny.yaml"
    profile.write_text(profile.read_text().replace("tokens_per_step: 256, ", ""))
    first = train(place / "run", stop_at=after_step(2), train__tokens=40960)
    per_step = first.tokens // first.steps
    assert per_step == 4096
    record = (place / "run" / "run.yaml").read_text()
    assert f"tokens_per_step: {per_step}" in record
    assert "chosen: for about 41k tokens in all" in record

    longer = llmtrain("train", "-p", "tiny.yaml", "--out", "run", "--resume", "auto", "--steps", 12)
    assert longer.code == 0
    refused = llmtrain(
        *("train", "-p", "tiny.yaml", "--out", "run", "--resume", "auto"),
        *("--set", "train.tokens_per_step=8192"),
    )
    assert refused.code == 2
    assert "train.tokens_per_step" in refused.err


def test_the_last_look_at_a_run_ends_with_its_time(
    train: InProcessTrainer, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where everything has become many times slower since the end was timed."""
    rest_s = Pace.reserve_for_s
    late = lambda pace, *what: 1e6 if what == ("save",) else rest_s(pace, *what)  # noqa: E731
    monkeypatch.setattr(Pace, "reserve_for_s", late)
    settings = {"train__time": "6s", "eval__every_steps": 10**6, "eval__sample_every_steps": 10**6}
    result = train(place / "run", **settings)

    notes = [event.text for event in train.events if isinstance(event, Note)]
    assert "the time is over: validated on 256 of 384 tokens" in notes
    assert result.val_loss is not None
    assert len(Files(place / "run").checkpoints) == 1
    assert load_checkpoint(Files(place / "run").newest).state.finished


def test_a_look_without_a_deadline_is_whole(train: InProcessTrainer, place: Path) -> None:
    train(place / "run", train__steps=3)
    assert not any("validated on" in e.text for e in train.events if isinstance(e, Note))
