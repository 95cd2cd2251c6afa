"""A run that runs out of memory goes on as one that was planned smaller, or ends saved."""

from __future__ import annotations

import errno
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from torch.distributed import HashStore

from llmtrain.engine import train_run
from llmtrain.errors import AbortedError, DoesNotFitError
from llmtrain.machine.memory_pressure import MemoryAction
from llmtrain.model.decoder import Decoder
from llmtrain.model.optimizer import RoleOptimizer
from llmtrain.plan.memory_watch import MemoryWatch
from llmtrain.plan.workload import Workload
from llmtrain.progress import Note
from llmtrain.train import loop
from llmtrain.train.checkpoint import saver
from llmtrain.train.checkpoint.format import Checkpoint, load_checkpoint
from llmtrain.train.checkpoint.writing import Written
from llmtrain.train.distributed.world import World
from llmtrain.train.evaluation import Evaluator
from llmtrain.train.events import Event, Step
from llmtrain.train.memory_guard import MemoryGuard, agreed_action
from llmtrain.train.run_directory.directory import RunDirectory
from tests.train.harness import Files, InProcessTrainer, Llmtrain, RunAlone
from tests.train.test_loop import make_run

WINDOWS = 8  # a step of the fixture's profile
CPU_SAYS = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you "
    "tried to allocate 67108864 bytes. Error code 12 (Cannot allocate memory)"
)
CUDA_SAYS = "CUDA out of memory. Tried to allocate 64.00 MiB. GPU 0 has a total capacity of 79 GiB"
ERRORS = {
    "cpu": RuntimeError(CPU_SAYS),
    "cuda": torch.OutOfMemoryError(CUDA_SAYS),
    "python": MemoryError(),
}
FP32 = {"device__precision": "fp32"}

TooMuch = Callable[[Tensor], bool]


@contextmanager
def little_memory(
    monkeypatch: pytest.MonkeyPatch,
    *,
    most: int,
    from_step: int,
    error: Exception = ERRORS["cpu"],
    in_backward: bool = False,
    while_training: bool = True,
) -> Iterator[None]:
    """From the last micro-batch of a step on, more than `most` windows at once do not fit."""
    windows, forward = 0, Decoder.forward

    def short_forward(self: Decoder, tokens: Tensor, targets: Tensor) -> Tensor:
        nonlocal windows
        is_training = torch.is_grad_enabled()
        windows += len(tokens) if is_training else 0
        if is_training != while_training or windows < from_step * WINDOWS or len(tokens) <= most:
            return forward(self, tokens, targets)
        if not in_backward:
            raise error
        nats = forward(self, tokens, targets)
        nats.register_hook(_raising(error))
        return nats

    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "forward", short_forward)
        yield


def _raising(error: Exception) -> Callable[[Tensor], None]:
    def hook(_: Tensor) -> None:
        raise error

    return hook


@contextmanager
def answers(
    monkeypatch: pytest.MonkeyPatch, at_look: int, answer: MemoryAction
) -> Iterator[list[int]]:
    """At the n-th look memory asks for `answer`; the list has an item a look."""
    looks: list[int] = []

    def look(self: MemoryWatch, plan: Any, step: int) -> MemoryAction:
        looks.append(1)
        return answer if len(looks) == at_look else MemoryAction()

    with monkeypatch.context() as patch:
        patch.setattr(MemoryWatch, "check", look)
        yield looks


def record(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((run / "run.yaml").read_text())
    return found


def plan_of(run: Path, name: str) -> Any:
    return record(run)["plan"][name]["value"]


def losses(run: Files) -> list[float]:
    return [line["loss"] for line in run.course() if "loss" in line]


def assert_same_course(ours: Files, theirs: Files) -> None:
    found, expected = losses(ours), losses(theirs)
    assert len(found) == len(expected) == 20
    assert all(math.isclose(a, b, rel_tol=1e-4) for a, b in zip(found, expected, strict=True))


def warnings_of(train: InProcessTrainer) -> list[str]:
    return [e.text for e in train.events if isinstance(e, Note) and e.is_warning]


def after_step(step: int) -> Callable[[Event], bool]:
    return lambda event: isinstance(event, Step) and event.step == step


@pytest.fixture(scope="module")
def in_fours(run_alone: RunAlone) -> Files:
    """The same profile's run, planned with half the micro-batch."""
    return run_alone(train__micro_batch=4, **FP32)


@pytest.mark.parametrize("in_backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
def test_it_goes_on_as_the_run_with_that_micro_batch(
    error: Exception,
    in_backward: bool,
    train: InProcessTrainer,
    place: Path,
    in_fours: Files,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with little_memory(monkeypatch, most=4, from_step=6, error=error, in_backward=in_backward):
        result = train(place / "run", **FP32)

    assert (result.stopped, result.steps) == ("done", 20)
    assert_same_course(Files(place / "run"), in_fours)
    assert (plan_of(place / "run", "micro_batch"), plan_of(place / "run", "accumulation")) == (4, 2)


def test_what_a_micro_batch_of_the_failed_step_added_is_dropped(
    train: InProcessTrainer,
    place: Path,
    run_alone: RunAlone,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with little_memory(monkeypatch, most=2, from_step=6):  # at the second of two micro-batches
        train(place / "run", train__micro_batch=4, **FP32)

    assert plan_of(place / "run", "micro_batch") == 2
    assert_same_course(Files(place / "run"), run_alone(train__micro_batch=2, **FP32))


def test_it_says_why_in_a_warning_in_the_record_and_in_the_state(
    train: InProcessTrainer, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with little_memory(monkeypatch, most=4, from_step=6):
        result = train(place / "run", **FP32)

    why = "64 MiB could not be allocated in step 6"
    assert warnings_of(train) == [
        f"{why}; from here on micro-batch 4 × 2, activation checkpointing off"
    ]
    found = record(place / "run")
    assert found["plan"]["micro_batch"]["reason"] == f"{why}; it was 8"
    (change,) = found["sessions"][-1]["changes"]
    assert (change["after_step"], change["reason"]) == (5, why)
    assert change["numerics"]["micro_batch"] == 4
    assert found["predicted"]["total_bytes"] == result.predicted_peak_bytes
    state = load_checkpoint(Files(place / "run").newest).state
    assert state.not_bitwise_from_step == 5
    assert state.numerics["micro_batch"] == 4


def test_a_resume_keeps_the_smaller_plan(
    train: InProcessTrainer,
    place: Path,
    in_fours: Files,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with little_memory(monkeypatch, most=4, from_step=6):
        train(place / "run", stop_at=after_step(9), **FP32)
    train.events.clear()

    train(place / "run", resume="auto", **FP32)

    assert not warnings_of(train)
    assert plan_of(place / "run", "micro_batch") == 4
    assert "64 MiB" in record(place / "run")["plan"]["micro_batch"]["reason"]
    assert load_checkpoint(Files(place / "run").newest).state.not_bitwise_from_step == 5
    assert_same_course(Files(place / "run"), in_fours)


def test_a_resume_from_before_the_change_is_not_called_bitwise(
    train: InProcessTrainer, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dying(event: Event) -> bool:
        if isinstance(event, Step) and event.step == 7:
            raise KeyboardInterrupt
        return False

    with little_memory(monkeypatch, most=4, from_step=6), pytest.raises(KeyboardInterrupt):
        train(place / "run", stop_at=dying, checkpoint__every_steps=4, **FP32)
    assert load_checkpoint(Files(place / "run").newest).state.not_bitwise_from_step is None

    train(place / "run", resume="auto", checkpoint__every_steps=4, **FP32)

    assert load_checkpoint(Files(place / "run").newest).state.not_bitwise_from_step == 4
    assert any("not bitwise from step 4" in text for text in warnings_of(train))


def test_one_sequence_at_once_is_computed_again(
    train: InProcessTrainer,
    place: Path,
    in_fours: Files,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forward = Decoder.forward

    def short_forward(self: Decoder, tokens: Tensor, targets: Tensor) -> Tensor:
        if torch.is_grad_enabled() and self.model.checkpointing != "full":
            raise ERRORS["cpu"]
        return forward(self, tokens, targets)

    monkeypatch.setattr(Decoder, "forward", short_forward)
    train(place / "run", **FP32)

    assert plan_of(place / "run", "micro_batch") == 1
    assert plan_of(place / "run", "activation_checkpointing") == "full"
    assert len(record(place / "run")["sessions"][-1]["changes"]) == 4
    assert_same_course(Files(place / "run"), in_fours)
    assert load_checkpoint(Files(place / "run").newest).state.not_bitwise_from_step is None


def test_where_nothing_smaller_is_left_the_last_step_is_saved(
    llmtrain: Llmtrain,
    place: Path,
    train: InProcessTrainer,
    run_alone: RunAlone,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with little_memory(monkeypatch, most=0, from_step=6):
        told = llmtrain(
            *("train", "-p", "tiny.yaml", "--out", "run", "--set", "device.precision=fp32")
        )

    assert told.code == 3
    assert "64 MiB could not be allocated in step 6, although the micro-batch is one" in told.err
    assert "--set model.context=16" in told.err
    assert Files(place / "run").checkpoints == ["step-00000005"]
    state = load_checkpoint(Files(place / "run").newest).state
    assert (state.step, state.windows, state.finished) == (5, 5 * WINDOWS, False)

    train(place / "run", resume="auto", **FP32)  # there is room again, and the plan is as it was
    assert plan_of(place / "run", "micro_batch") == 8
    assert Files(place / "run").digests() == run_alone(**FP32).digests()


@pytest.mark.parametrize(
    ("error", "why"),
    [(MemoryError(), "memory ran out"), (OSError(errno.ENOSPC, "disk full"), "disk full")],
)
def test_where_saving_fails_too_it_says_so_and_the_last_checkpoint_stays(
    error: Exception,
    why: str,
    llmtrain: Llmtrain,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write = saver.write_checkpoint

    def short_write(directory: Path, checkpoint: Checkpoint) -> Written:
        if checkpoint.state.step == 5:
            raise error
        return write(directory, checkpoint)

    monkeypatch.setattr(saver, "write_checkpoint", short_write)
    with little_memory(monkeypatch, most=0, from_step=6):
        every = ("--set", "checkpoint.every_steps=4")
        told = llmtrain("train", "-p", "tiny.yaml", "--out", "run", *every)

    assert told.code == 3
    assert "step 5 could not be saved: " in told.err
    assert why in told.err
    assert "in step 6, although the micro-batch is one sequence" in told.err
    assert Files(place / "run").checkpoints == ["step-00000004"]


def test_a_second_signal_is_heeded_while_the_last_step_is_saved(
    llmtrain: Llmtrain, monkeypatch: pytest.MonkeyPatch
) -> None:
    def aborted_write(*_: object) -> None:
        raise AbortedError("aborted by a second signal (SIGINT)")

    monkeypatch.setattr(saver, "write_checkpoint", aborted_write)
    with little_memory(monkeypatch, most=0, from_step=6):
        assert llmtrain("train", "-p", "tiny.yaml", "--out", "run").code == 130


def test_outside_of_a_step_it_is_no_surprise_either(
    llmtrain: Llmtrain, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short_build(*_: object) -> None:
        raise ERRORS["cpu"]

    monkeypatch.setattr(train_run, "build_run", short_build)
    told = llmtrain("train", "-p", "tiny.yaml", "--out", "run")

    assert told.code == 3
    assert "64 MiB could not be allocated, outside of a training step" in told.err


def test_before_a_first_step_there_is_nothing_to_save(
    train: InProcessTrainer, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        little_memory(monkeypatch, most=0, from_step=1),
        pytest.raises(DoesNotFitError, match="in step 1"),
    ):
        train(place / "run", **FP32)
    assert not (place / "run" / "checkpoints").exists()


def test_weights_that_were_being_changed_are_not_saved(
    train: InProcessTrainer, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    muon, steps = RoleOptimizer._adamw, 0

    def short_update(self: RoleOptimizer, group: Any, parameters: Any) -> None:
        nonlocal steps
        steps += group["params"][0].dim() == 1  # the gains' group, once a step
        if steps == 6:
            raise ERRORS["cpu"]
        muon(self, group, parameters)

    monkeypatch.setattr(RoleOptimizer, "_adamw", short_update)
    with pytest.raises(DoesNotFitError, match="the weights are inconsistent") as caught:
        train(place / "run", checkpoint__every_steps=2, **FP32)

    assert caught.value.exit_code == 3
    assert "--resume auto" in (caught.value.hint or "")
    assert Files(place / "run").newest.name == "step-00000004"
    assert not warnings_of(train)


def test_evaluation_that_runs_out_is_done_again_by_a_smaller_plan(
    train: InProcessTrainer,
    place: Path,
    run_alone: RunAlone,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with little_memory(monkeypatch, most=4, from_step=10, while_training=False):
        train(place / "run", **FP32)

    assert plan_of(place / "run", "micro_batch") == 4
    ours, theirs = Files(place / "run").course(), run_alone(**FP32).course()
    found, expected = ([m["val_loss"] for m in c if "val_loss" in m] for c in (ours, theirs))
    assert len(found) == 2
    assert found == pytest.approx(expected, rel=1e-4)


def test_a_sample_that_runs_out_is_drawn_again_by_a_smaller_plan(
    train: InProcessTrainer,
    place: Path,
    run_alone: RunAlone,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draw, calls = Evaluator.sample, 0

    def short_sample(self: Evaluator, *arguments: Any, **options: Any) -> str:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise ERRORS["cpu"]
        return draw(self, *arguments, **options)

    monkeypatch.setattr(Evaluator, "sample", short_sample)
    train(place / "run", **FP32)

    assert plan_of(place / "run", "micro_batch") == 4
    samples = Files(place / "run").lines("samples.jsonl")
    assert samples[0] == run_alone(**FP32).lines("samples.jsonl")[0]


def test_gradients_that_were_unscaled_are_scaled_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clipped = loop._clipped_norm
    failures = [ERRORS["cpu"]]

    def short_norm(*arguments: Any) -> float:
        if failures:
            raise failures.pop()
        return clipped(*arguments)

    monkeypatch.setattr(loop, "_clipped_norm", short_norm)
    reports = []
    for scaler in (torch.amp.GradScaler("cpu", init_scale=1024.0), None):
        run = make_run()
        run.scaler = scaler or run.scaler
        RunDirectory(tmp_path).write_record({"profile": {}, "sessions": [{}]})
        workload = Workload(run.model.shape, WINDOWS * run.context)
        guard = MemoryGuard(run, workload, RunDirectory(tmp_path), lambda _: None)
        reports.append(next(guard.steps()))
        assert run.scaler.get_scale() == (1024.0 if scaler else 1.0)
    assert reports[0].loss == pytest.approx(reports[1].loss, rel=1e-5)
    assert reports[0].grad_norm == pytest.approx(reports[1].grad_norm, rel=1e-4)


def test_other_errors_are_not_taken_for_it(
    train: InProcessTrainer, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        little_memory(monkeypatch, most=4, from_step=6, error=RuntimeError("shapes differ")),
        pytest.raises(RuntimeError, match="shapes differ"),
    ):
        train(place / "run", **FP32)


# Looks: one before the first step, then one before each micro-batch and one after each step.
@pytest.mark.parametrize("look", [1, 12, 13], ids=["at first", "in a step", "after a step"])
def test_shortage_takes_a_smaller_plan_and_says_why(
    look: int,
    train: InProcessTrainer,
    place: Path,
    in_fours: Files,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with answers(monkeypatch, look, MemoryAction(smaller=1, reason="1.9 GiB of 2 GiB are taken")):
        train(place / "run", **FP32)

    assert_same_course(Files(place / "run"), in_fours)
    assert plan_of(place / "run", "micro_batch") == 4
    (warning,) = warnings_of(train)
    assert warning.startswith("1.9 GiB of 2 GiB are taken; from here on micro-batch 4 × 2")


def test_shortage_at_once_takes_as_many_smaller_plans_as_it_has_to(
    train: InProcessTrainer,
    place: Path,
    in_fours: Files,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with answers(monkeypatch, 1, MemoryAction(smaller=3, reason="short")):
        train(place / "run", **FP32)

    assert plan_of(place / "run", "micro_batch") == 1
    assert len(warnings_of(train)) == 1
    assert_same_course(Files(place / "run"), in_fours)


@pytest.mark.parametrize("look", [12, 13, 14], ids=["in a step", "after a step", "in the next"])
def test_before_the_kernel_would_kill_the_run_is_saved_and_a_resume_ends_it_the_same(
    look: int,
    llmtrain: Llmtrain,
    train: InProcessTrainer,
    place: Path,
    reference: Files,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reason = "1.99 GiB of the control group's 2 GiB are taken"
    with answers(monkeypatch, look, MemoryAction(stop=True, reason=reason)):
        told = llmtrain("train", "-p", "tiny.yaml", "--out", "run")

    step = {12: 5, 13: 6, 14: 6}[look]
    assert told.code == 3
    assert reason in told.err
    assert f"saved {Path('run') / 'checkpoints' / f'step-{step:08d}'}" in told.err
    assert "--resume auto" in told.err
    assert Files(place / "run").checkpoints == [f"step-{step:08d}"]

    train(place / "run", resume="auto")

    assert Files(place / "run").digests() == reference.digests()


def test_no_step_is_begun_that_would_not_survive(
    llmtrain: Llmtrain, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with answers(monkeypatch, 1, MemoryAction(stop=True, reason="all is taken")):
        told = llmtrain("train", "-p", "tiny.yaml", "--out", "run", "--json")

    assert told.code == 3
    assert json.loads(told.out)["error"]["code"] == 3
    assert "no step was done" in told.err
    assert not (place / "run" / "checkpoints").exists()


class Ranks:
    """Guards of two ranks of one run that share a store, and are otherwise alone."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
        # Gradients are not summed here: a rank that gets so far would wait for the other.
        monkeypatch.setattr(World, "sum", lambda self, tensor: tensor)
        store = HashStore()
        self.worlds = [World(rank, 2, rank, 2, store) for rank in (0, 1)]
        self.events: list[Event] = []
        self.directory = RunDirectory(place)
        self.directory.write_record({"profile": {}, "sessions": [{}]})

    def guard(self, rank: int, objective: Callable[..., Tensor] | None = None) -> MemoryGuard:
        """The guard of one of them, which may compute something else."""
        run = make_run()
        run.world = self.worlds[rank]
        run.objective = objective or run.model
        workload = Workload(run.model.shape, WINDOWS * run.context, launched_local_processes=2)
        self.run = run
        return MemoryGuard(run, workload, self.directory, self.events.append)


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Ranks:
    return Ranks(monkeypatch, tmp_path)


def _failing(error: Exception) -> Callable[..., Tensor]:
    def objective(*_: Tensor) -> Tensor:
        raise error

    return objective


def test_a_rank_that_runs_out_ends_and_says_what_to_set(ranks: Ranks) -> None:
    guard = ranks.guard(1, _failing(ERRORS["cuda"]))
    with pytest.raises(DoesNotFitError) as caught:
        next(guard.steps())

    assert caught.value.message == (
        "rank 1: 64.00 MiB could not be allocated in step 1 with micro-batch 8"
    )
    assert caught.value.hint == "--resume auto --set train.micro_batch=4"
    assert ranks.run.plan.micro_batch.value == 8


def test_the_rank_that_only_sees_it_leave_says_the_same(ranks: Ranks) -> None:
    lost = RuntimeError("Connection closed by peer [127.0.0.1]:1234")
    with pytest.raises(RuntimeError, match="closed by peer"):  # of another cause
        next(ranks.guard(0, _failing(lost)).steps())
    with pytest.raises(DoesNotFitError) as theirs:
        next(ranks.guard(1, _failing(ERRORS["cpu"])).steps())
    with pytest.raises(DoesNotFitError) as ours:
        next(ranks.guard(0, _failing(lost)).steps())

    assert (ours.value.message, ours.value.hint) == (theirs.value.message, theirs.value.hint)


def test_ranks_agree_on_the_smaller_plan_though_only_one_is_short(ranks: Ranks) -> None:
    plans = []
    for rank in (0, 1):
        guard = ranks.guard(rank)
        guard.apply(agreed_action(MemoryAction(), smaller=1, stop=0, ranks=2))  # 1 + 0
        plans.append(ranks.run.plan)
    assert [plan.micro_batch.value for plan in plans] == [4, 4]
    (note,) = ranks.events  # rank 0's
    assert isinstance(note, Note)
    assert note.text.startswith("another process is short of memory")
    ranks.guard(0).apply(agreed_action(MemoryAction(), smaller=4, stop=0, ranks=2))  # 2 + 2
    assert ranks.run.plan.micro_batch.value == 2


def test_ranks_end_together_though_only_one_has_to(ranks: Ranks) -> None:
    guard = ranks.guard(0)
    guard.apply(agreed_action(MemoryAction(), smaller=0, stop=1, ranks=2))
    with pytest.raises(DoesNotFitError, match="saved somewhere"):
        guard.raise_if_stopped(Path("somewhere"))


def test_ranks_look_only_where_they_can_agree(
    ranks: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = ranks.guard(1)
    with answers(monkeypatch, 1, MemoryAction(stop=True, reason="short")) as looks:
        assert next(guard.steps()).step == 1
    assert looks == []
