from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

if sys.platform == "win32":
    pytest.skip("there are no such signals", allow_module_level=True)

from llmtrain.engine.request import TrainRequest
from llmtrain.engine.train_run import run_training
from llmtrain.engine.train_session import TrainSession
from llmtrain.errors import AbortedError, InterruptedRunError
from llmtrain.train.checkpoint.format import load_checkpoint
from llmtrain.train.checkpoint.names import list_checkpoints
from llmtrain.train.distributed.world import World
from llmtrain.train.events import Event, Saved, Step
from llmtrain.train.signals import StopRequest, stop_on_signals
from tests.ignored_signals import ignoring
from tests.train.harness import (
    LIMIT_S,
    Files,
    InProcessTrainer,
    RunAlone,
    Start,
    steps_of,
    wait_until,
)

STEPS = 400  # seconds of training, so that a signal comes in time on a busy machine too


def wait_for_steps(run: Path, steps: int, process: subprocess.Popen[str]) -> None:
    """At least so many steps are in the run's metrics."""
    wait_until(lambda: steps_of(run) >= steps, process)


@pytest.fixture(scope="module")
def whole(run_alone: RunAlone) -> Files:
    """What an uninterrupted process ends with."""
    return run_alone(train__steps=STEPS, eval__every_steps=100, eval__sample_every_steps=100)


def test_a_training_of_some_hundred_steps_skips_none(whole: Files) -> None:
    assert [line for line in whole.lines("metrics.jsonl") if "skipped" in line] == []
    assert len([line for line in whole.lines("metrics.jsonl") if "loss" in line]) == STEPS


@pytest.mark.parametrize(
    ("number", "after_steps"), [(signal.SIGTERM, 1), (signal.SIGINT, 60), (signal.SIGHUP, 110)]
)
def test_signal_saves_and_a_resume_loses_nothing(
    number: signal.Signals,
    after_steps: int,
    start: Start,
    train: InProcessTrainer,
    whole: Files,
    place: Path,
) -> None:
    process = start(
        *("train", "-p", "tiny.yaml", "--out", "run", "--json", "--steps", STEPS),
        *("--set", "eval.every_steps=100", "--set", "eval.sample_every_steps=100"),
    )
    wait_for_steps(place / "run", after_steps, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=LIMIT_S)

    assert process.returncode == 75, err
    document = json.loads(out)
    assert document["stopped"] == "interrupted"
    assert after_steps <= document["steps"] < STEPS
    assert Path(document["checkpoint"]) == Files(Path("run")).newest
    assert "--resume auto" in err

    train(place / "run", resume="auto")
    assert Files(place / "run").digests() == whole.digests()
    assert Files(place / "run").course() == whole.course()


def test_under_nohup_sigterm_saves_and_sighup_changes_nothing(place: Path) -> None:
    command = [sys.executable, "-m", "llmtrain", "train", "-p", "tiny.yaml", "--out", "run"]
    long = ["--steps", "100000", "--set", "eval.every_steps=99999", "--json"]
    with subprocess.Popen(
        ignoring((signal.SIGHUP, signal.SIGINT), [*command, *long]),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            wait_for_steps(place / "run", 1, process)
            process.send_signal(signal.SIGHUP)
            process.send_signal(signal.SIGINT)
            wait_for_steps(place / "run", 20, process)
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=LIMIT_S)
        finally:
            process.kill()
    assert process.returncode == 75, err
    document = json.loads(out)
    assert (document["stopped"], document["steps"] >= 20) == ("interrupted", True)
    assert list_checkpoints(place / "run" / "checkpoints")


def test_second_signal_aborts_and_the_last_checkpoint_stands(start: Start, place: Path) -> None:
    process = start(
        *("train", "-p", "tiny.yaml", "--out", "run", "--steps", 100),
        # steps of seconds, so that the second signal comes before the first one's checkpoint
        *("--set", "train.tokens_per_step=65536"),
        *("--set", "checkpoint.every_steps=1"),
    )
    checkpoints = place / "run" / "checkpoints"
    wait_until(lambda: bool(list_checkpoints(checkpoints)), process)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)  # another one, since equal ones that wait become one
    _, err = process.communicate(timeout=LIMIT_S)

    assert process.returncode == 130
    assert "error: aborted" in err
    assert "Traceback" not in err
    assert sorted(checkpoints.iterdir()) == list_checkpoints(checkpoints)  # nothing half-made
    assert load_checkpoint(list_checkpoints(checkpoints)[-1]).state.step >= 1


def test_signal_while_another_process_measures_ends_both(
    start: Start, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMTRAIN_CACHE_DIR", str(place / "cache"))  # nothing is measured yet
    process = start("train", "-p", "tiny.yaml", "--time", "31s", "--out", "run", "--json")
    measuring: list[psutil.Process] = []

    def is_measuring() -> bool:
        children = psutil.Process(process.pid).children()
        measuring[:] = [each for each in children if "measuring" in " ".join(each.cmdline())]
        # By then what started it waits for it, and imports nothing.
        return any(each.cpu_times().user > 1 for each in measuring)

    wait_until(is_measuring, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 75, err
    assert json.loads(out)["stopped"] == "interrupted"
    assert "Traceback" not in err
    assert psutil.wait_procs(measuring, timeout=10)[1] == []
    assert not (place / "run").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_signal_while_torch_is_imported_is_an_interruption(start: Start, place: Path) -> None:
    process = start("train", "-p", "tiny.yaml", "--out", "run", "--json")
    maps = Path(f"/proc/{process.pid}/maps")
    wait_until(lambda: "libtorch" in maps.read_text(), process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=LIMIT_S)

    assert process.returncode == 75, err
    document = json.loads(out)
    assert (document["stopped"], document["steps"]) == ("interrupted", 0)
    assert document["checkpoint"] is None
    assert "Traceback" not in err
    assert not (place / "run").exists()


@pytest.mark.parametrize("phase", ["training a tokenizer", "tokenizing"])
def test_signal_in_preparation_leaves_nothing_half_made(
    phase: str, start: Start, place: Path, corpus_text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMTRAIN_CACHE_DIR", str(place / "cache"))
    (place / "texts").mkdir()
    for number in range(200):
        text = corpus_text if number else corpus_text.replace("a", "e")
        (place / "texts" / f"{number}.txt").write_text(f"{number}\n{text}")
    process = start("train", "-p", "tiny.yaml", "--data", "texts", "--out", "run", "--json")
    if phase == "tokenizing":  # which says how far it is only where it takes long
        while not list((place / "cache").glob("shards/.building-*")):
            assert process.poll() is None
            time.sleep(0.01)
    else:
        next(line for line in process.stderr if line.startswith(phase))
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=LIMIT_S)

    assert process.returncode == 75, err
    assert json.loads(out)["stopped"] == "interrupted"
    assert "the same command starts again" in err
    assert not (place / "run").exists()
    half_made = [path for path in (place / "cache").rglob("*") if path.name.startswith(".")]
    assert half_made == []
    assert not list((place / "cache").glob("shards/*"))


def test_a_signal_that_comes_twice_at_once_is_one_request() -> None:
    """As of timeout(1), which signals the process and then its whole group."""
    request = StopRequest()
    for _ in range(2):
        request.on_signal(signal.SIGTERM, None)
    assert request.signal_name == "SIGTERM"
    request.made_s -= 1.0
    with pytest.raises(AbortedError):
        request.on_signal(signal.SIGTERM, None)


def test_first_signal_is_noted_and_the_second_insists() -> None:
    request = StopRequest()
    request.check()
    request.on_signal(signal.SIGTERM, None)
    with pytest.raises(InterruptedRunError, match="SIGTERM"):
        request.check()
    with pytest.raises(AbortedError):
        request.on_signal(signal.SIGINT, None)


def test_what_can_be_redone_is_left_where_it_stands() -> None:
    reached = []

    def work(request: StopRequest) -> None:
        with request.immediate():
            signal.raise_signal(signal.SIGTERM)
            reached.append("the next line")

    with stop_on_signals() as request, pytest.raises(InterruptedRunError, match="SIGTERM"):
        work(request)
    assert reached == []
    assert request.has_abandoned_work


def test_leaving_is_insisted_on_where_it_was_swallowed() -> None:
    def work(request: StopRequest) -> None:
        with request.immediate():
            with suppress(BaseException):  # as a callback swallows it, and only tells stderr
                signal.raise_signal(signal.SIGTERM)
            time.sleep(LIMIT_S)

    begun_s = time.monotonic()
    with stop_on_signals() as request, pytest.raises(InterruptedRunError):
        work(request)
    assert not request.is_immediate
    assert time.monotonic() - begun_s < LIMIT_S  # also where it waits for the system


def test_what_can_no_longer_be_left_is_finished() -> None:
    with stop_on_signals() as request:
        with request.immediate():
            request.defer()
            signal.raise_signal(signal.SIGTERM)
        assert request.is_made
        assert not request.has_abandoned_work
        with pytest.raises(InterruptedRunError), request.immediate():
            pytest.fail("a request that was made before is heeded first")


def test_a_save_is_asked_for_once_and_stops_nothing() -> None:
    with stop_on_signals() as request:
        signal.raise_signal(signal.SIGUSR1)
        assert not request.is_made
        assert (request.take_save_request(), request.take_save_request()) == (True, False)


def test_a_save_that_is_asked_for_changes_nothing(place: Path, reference: Files) -> None:
    stop = StopRequest()
    saved: list[int] = []

    def observe(event: Event) -> None:
        if isinstance(event, Step) and event.step in (3, 7):
            stop.on_save_signal(signal.SIGUSR1, None)
        if isinstance(event, Saved):
            saved.append(event.step)

    request = TrainRequest(profile="tiny.yaml", out=place / "run")
    result = run_training(request, TrainSession(World(), observe, stop))
    assert result.stopped == "done"
    assert saved == [4, 8, 10, 20]  # 10 and 20 are the best so far
    assert Files(place / "run").digests() == reference.digests()


def test_a_clock_that_is_set_changes_nothing(
    place: Path, reference: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    days = iter(range(0, 10**6, 400))
    steps: list[Step] = []
    now_s = time.time()
    monkeypatch.setattr(time, "time", lambda: now_s + (-1) ** (day := next(days)) * 86400 * day)

    def observe(event: Event) -> None:
        if isinstance(event, Step):
            steps.append(event)

    request = TrainRequest(profile="tiny.yaml", out=place / "run")
    run_training(request, TrainSession(World(), observe, StopRequest()))
    assert Files(place / "run").digests() == reference.digests()
    assert all(0 < step.elapsed_s < LIMIT_S and step.tokens_per_s > 0 for step in steps)
    assert all(0 <= step.remaining_s < LIMIT_S for step in steps if step.remaining_s is not None)


def test_handlers_are_put_back_and_ignored_signals_stay_ignored() -> None:
    before = signal.getsignal(signal.SIGTERM)
    hangup = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with stop_on_signals() as request:
            signal.raise_signal(signal.SIGHUP)
            assert not request.is_made
            signal.raise_signal(signal.SIGTERM)
            assert request.signal_name == "SIGTERM"
        assert signal.getsignal(signal.SIGTERM) is before
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, hangup)
