"""A run corrects its own forecast: by what its first steps came to, said once, and for the next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from llmtrain.engine.plan_run import plan_run
from llmtrain.machine.facts import CpuTimes, PartTime
from llmtrain.plan import step_benchmarks
from llmtrain.profile.load import load_profile
from llmtrain.progress import Note
from llmtrain.train import first_steps
from llmtrain.train.rate_check import rate_difference
from tests.train.harness import Files, InProcessTrainer
from tests.train.test_resume import after_step

SAID = "the first steps made"


class Clock:
    """The parts of every step take this long."""

    def __init__(self) -> None:
        self.part = PartTime(1e-6)
        self.asked = 0

    def measure(self, *_: object, **__: object) -> PartTime:
        self.asked += 1
        return self.part


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Clock:
    """A cache of the test's own, and a machine that is far slower than it was measured."""
    clock = Clock()
    monkeypatch.setenv("LLMTRAIN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(first_steps, "ran_share", lambda *_: 1.0)
    for name in ("time_chained_block", "time_head", "time_update"):
        monkeypatch.setattr(step_benchmarks, name, clock.measure)
    return clock


def remarks(train: InProcessTrainer) -> list[str]:
    notes = [event.text for event in train.events if isinstance(event, Note)]
    return [text for text in notes if text.startswith(SAID)]


def session(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((run / "run.yaml").read_text())["sessions"][-1]
    return found


def eager_times() -> CpuTimes:
    times = plan_run(load_profile("tiny.yaml", environment={}).profile).cpu_times
    assert times is not None
    return times


@pytest.mark.parametrize(
    ("made", "is_said"),
    [(100.0, False), (76.0, False), (124.0, False), (74.0, True), (126.0, True), (400.0, True)],
)
def test_more_than_a_quarter_is_said(made: float, is_said: bool) -> None:
    found = rate_difference(
        made, 100.0, after_step=10, ran_share=1.0, remaining_s=90.0, horizon_steps=None
    )
    assert (found is not None) is is_said
    if found is not None:
        line = f"{made:.0f} tokens/s, and 100 were forecast: about 1m 30s are left"
        assert line in found.line


def test_the_line_says_what_follows() -> None:
    timed = rate_difference(
        50.0, 100.0, after_step=10, ran_share=1.0, remaining_s=90.0, horizon_steps=1200
    )
    assert timed is not None
    assert "the time is enough for about 1,200 steps; a step is timed again" in timed.line
    busy = rate_difference(
        50.0, 100.0, after_step=10, ran_share=0.4, remaining_s=None, horizon_steps=None
    )
    assert busy is not None
    assert busy.line.endswith(
        "forecast; threads waited for a core 60% of the time (other programs)"
    )


def test_a_wrong_forecast_is_corrected_once_and_measured_again(
    clock: Clock, train: InProcessTrainer, place: Path
) -> None:
    train(place / "run")
    assert len(remarks(train)) == 1
    corrected = session(place / "run")["corrected"]
    assert corrected["after_step"] == 10
    assert corrected["tokens_per_s"] < 256 / 1e-6
    assert corrected["contended"] is False

    asked, clock.part = clock.asked, PartTime(0.5)
    times = eager_times()
    assert clock.asked > asked
    assert times.eager is not None
    assert times.eager.block == PartTime(0.5)


def test_the_next_run_expects_what_this_one_came_to(
    clock: Clock, train: InProcessTrainer, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where that is a rate which was itself corrected, by a run that is stopped early."""
    first = train(place / "first")
    assert first.step_s is not None
    monkeypatch.setattr("llmtrain.train.rate_check._NEAR", 1e-9)
    train(place / "second", stop_at=after_step(11))
    (_, said) = remarks(train)
    assert "were forecast" in said
    corrected = session(place / "second")["corrected"]
    planned = plan_run(load_profile("tiny.yaml", environment={}).profile)
    assert planned.last_run is not None
    assert planned.last_run.tokens_per_s != 256 / first.step_s
    assert corrected["tokens_per_s"] > 0


def test_a_busy_machine_disputes_nothing(
    clock: Clock, train: InProcessTrainer, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(first_steps, "ran_share", lambda *_: 0.5)
    train(place / "run")
    (said,) = remarks(train)
    assert "threads waited for a core 50%" in said
    assert session(place / "run")["corrected"]["contended"] is True
    asked = clock.asked
    eager_times()
    assert clock.asked == asked


def test_a_forecast_that_holds_is_not_remarked_on(
    clock: Clock, train: InProcessTrainer, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmtrain.train.rate_check._NEAR", 1e9)
    train(place / "run")
    assert remarks(train) == []
    assert "corrected" not in session(place / "run")


def test_a_session_of_few_steps_says_nothing(
    clock: Clock, train: InProcessTrainer, place: Path
) -> None:
    train(place / "run", train__steps=9)
    assert remarks(train) == []


@pytest.mark.parametrize("stop", [9, 10, 11])
def test_a_corrected_run_resumes_as_if_it_had_not_stopped(
    clock: Clock,
    train: InProcessTrainer,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop: int,
) -> None:
    monkeypatch.setattr("llmtrain.train.rate_check._NEAR", 1e-9)
    train(place / "alone")
    reference, clock.part = Files(place / "alone"), PartTime(1e-3)  # measured again, otherwise
    train(place / "run", stop_at=after_step(stop))
    train(place / "run", resume="auto")
    assert len(remarks(train)) >= 2
    assert Files(place / "run").digests() == reference.digests()
    assert Files(place / "run").course() == reference.course()
