"""What ranks decide when they meet; with real ones in tests/train/distributed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmtrain.choice import Choice
from llmtrain.engine import agreed_plan
from llmtrain.engine.agreed_plan import agreed_plan as agree
from llmtrain.engine.find_run import ResolvedRun
from llmtrain.engine.request import TrainRequest, resolve_profile
from llmtrain.engine.train_session import TrainSession
from llmtrain.errors import DoesNotFitError
from llmtrain.machine.assume import assume_machine
from llmtrain.plan.rounds import Exchange
from llmtrain.profile.horizon import Horizon
from llmtrain.profile.setting import CHOSEN
from llmtrain.progress import Note
from llmtrain.train.distributed.world import World
from llmtrain.train.events import Event
from llmtrain.train.signals import StopRequest

MACHINE = assume_machine("cpu:8c:32GiB", python_version="3.12.3", torch_version="2.13.0")
TWO = World(rank=0, size=2, local_size=2)  # without a store: the other one hears nothing


def resolved(*assignments: str) -> ResolvedRun:
    request = TrainRequest("cpu-tiny", ("train.sync_every=auto", *assignments), assumed=MACHINE)
    return ResolvedRun(Path("run"), resolve_profile(request, TWO), Horizon(steps=100))


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    """Ranks with a second between them, and a step of a second; what rank 0 notes."""
    monkeypatch.setattr(agreed_plan, "exchange_between", lambda *_: Exchange(0.99, 1e12))
    monkeypatch.setattr(agreed_plan, "_step_s", lambda _: 1.0)
    return []


def session(heard: list[Event], world: World = TWO) -> TrainSession:
    return TrainSession(world, heard.append, StopRequest())


def test_rounds_are_planned_recorded_and_noted(heard: list[Event]) -> None:
    run, planned = agree(resolved(), session(heard))
    choice, train = planned.plan.sync_every, run.profile.loaded.profile.train
    assert choice.value == planned.workload.sync_every == train.sync_every == 19
    assert planned.plan.sharding.reason == "each process takes steps of its own (train.sync_every)"
    assert run.profile.loaded.origin_of("train.sync_every") == f"{CHOSEN}{choice.reason}"
    assert heard == [Note(f"train.sync_every is 19: {choice.reason}")]


def test_rounds_that_would_not_fit_are_not_taken(
    heard: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = agreed_plan.plan_resolved

    def plan_if_it_fits(run: ResolvedRun, *more: Any) -> Any:
        if run.profile.loaded.profile.train.sync_every == 19:
            raise DoesNotFitError("too large")
        return plan(run, *more)

    monkeypatch.setattr(agreed_plan, "plan_resolved", plan_if_it_fits)
    run, planned = agree(resolved(), session(heard))
    assert planned.workload.sync_every == run.profile.loaded.profile.train.sync_every == 1
    assert planned.plan.sync_every.reason.endswith("but rounds need more memory: too large")


def test_what_makes_rounds_impossible_is_not_timed(
    heard: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agreed_plan, "exchange_between", pytest.fail)
    run, planned = agree(resolved(), session(heard, World()))
    assert planned.plan.sync_every == Choice(1, "one process trains alone")
    assert run.profile.loaded.profile.train.chosen_sync_every == 1
