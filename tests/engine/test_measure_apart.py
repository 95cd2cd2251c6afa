"""Another process measures for a run that trains for a while, and the run needs it for nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import psutil
import pytest

from llmtrain.engine import measure_apart as apart
from llmtrain.engine.measure_apart import PlanTask, ProfileTask
from llmtrain.engine.plan_run import plan_run
from llmtrain.machine.facts import Facts
from llmtrain.machine.probe import read_facts
from llmtrain.model import step_timing
from llmtrain.profile.load import load_profile
from llmtrain.profile.schema import DeviceSection, Profile
from llmtrain.profile.setting import Setting
from tests import small
from tests.unread import unread_by

TIMED = [
    f"timing {what}, once for this machine and shape: a few seconds"
    for what in ("products", "attention", "the parts of a step")
]
GIB = 1 << 30


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LLMTRAIN_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be started."""

    def start(*_: object) -> NoReturn:
        pytest.fail("a process was started")

    monkeypatch.setattr(apart, "start_process", start)


def facts(memory_bytes: int = 24 * GIB) -> Facts:
    here = replace(read_facts(tries_gpus=False), cxx_compiler=None)
    memory = {"memory_total_bytes": memory_bytes, "memory_limit_bytes": None}
    cpu = replace(here.cpu, isa=(), **memory)  # without native kernels
    return replace(here, cpu=cpu)


def profile(**settings: Any) -> Profile:
    named = {"train.time": "31s", "train.steps": None, "device.precision": "fp32"}
    named |= {name.replace("__", "."): value for name, value in settings.items()}
    flags = {name: Setting(value, "test") for name, value in (small.SETTINGS | named).items()}
    return load_profile(environment={}, flags=flags).profile


def children() -> list[psutil.Process]:
    return [p for p in psutil.Process().children() if "measuring_process" in " ".join(p.cmdline())]


def test_a_plan_finds_all_that_another_process_measured() -> None:
    task, told = PlanTask(facts(), profile()), list[str]()
    assert apart.measure_apart(task, told.append)
    assert told == TIMED
    planned = plan_run(task.profile, facts=task.facts, announce=pytest.fail, which="missing")
    assert planned.cpu_times is not None
    assert planned.cpu_times.eager is not None


@pytest.mark.usefixtures("no_process")
def test_what_is_saved_is_not_measured_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_timing, "ran_share", lambda *_: 1.0)  # and what is contended, is
    task = PlanTask(facts(), profile())
    task.measure(lambda _: None)
    assert not apart.measure_apart(task, pytest.fail)


@pytest.mark.usefixtures("no_process")
@pytest.mark.parametrize(
    "task",
    [
        PlanTask(facts(), profile(train__time="29s")),
        PlanTask(facts(), profile(train__time=None, train__steps=1000)),
        PlanTask(facts(GIB), profile()),
        ProfileTask(facts(), DeviceSection(), 29.0),
        ProfileTask(facts(), DeviceSection(), None),
        ProfileTask(facts(GIB), DeviceSection(), 300.0),
    ],
    ids=["short", "few FLOPs", "no room", "short choice", "no time", "no room to choose"],
)
def test_a_short_run_and_a_small_machine_measure_in_one_process(task: Any) -> None:
    assert not apart.measure_apart(task, pytest.fail)


def test_long_training_is_worth_a_process() -> None:
    assert PlanTask(facts(), profile(train__time=None, train__steps=10**9)).is_worth_it
    assert ProfileTask(facts(), DeviceSection(), 300.0).is_worth_it


def test_a_process_that_dies_leaves_the_measuring_to_this_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(apart, "_PROGRAM", "os:abort")
    task, told = PlanTask(facts(), profile()), list[str]()
    assert apart.measure_apart(task, told.append)
    assert told == []
    planned = plan_run(task.profile, facts=task.facts, announce=told.append, which="missing")
    assert told == TIMED
    assert planned.cpu_times is not None


def test_a_process_whose_pipe_fails_as_on_windows_is_needed_for_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(apart, "_PROGRAM", "os:getpid")  # it ends at once
    monkeypatch.setattr(apart, "start_process", unread_by(apart.start_process))
    assert apart.measure_apart(PlanTask(facts(), profile()), pytest.fail)


def test_an_interrupt_ends_the_process_that_measures() -> None:
    seen: list[psutil.Process] = []

    def interrupt(_: str) -> NoReturn:
        seen.extend(children())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        apart.measure_apart(PlanTask(facts(), profile()), interrupt)
    assert len(seen) == 1
    assert not seen[0].is_running()


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    yield
    assert children() == []
