"""Training on a GPU whose memory goes: `python -m tests.faults.cuda_memory`. Needs CUDA.

Three runs of a profile, each beside the same run untroubled but planned as small from the start:

- most of the card is taken after the plan was made, before the first step;
- most of the card is taken after some steps, and the cache that training had is given back;
- all of the card is taken after some steps: the run ends with exit code 3 and its last step
  saved, and once there is room again a resume goes on to the end.

Prints a table, and exits 1 where a run did anything else.
"""

from __future__ import annotations

import argparse
import gc
import math
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from llmtrain.engine.request import TrainRequest
from llmtrain.engine.train_run import run_training
from llmtrain.engine.train_session import TrainSession
from llmtrain.errors import DoesNotFitError
from llmtrain.machine.startup import prepare_for_torch
from llmtrain.profile.setting import Setting
from llmtrain.progress import Note
from llmtrain.train.distributed.world import World
from llmtrain.train.events import Event, Started, Step
from llmtrain.train.run_directory.directory import RunDirectory
from llmtrain.train.signals import StopRequest
from llmtrain.units import format_bytes

_TOLERANCE = 0.02  # of a loss: bf16 products, summed in another order
_LARGEST_BLOCK_BYTES, _SMALLEST_BLOCK_BYTES = 16 << 30, 2 << 20
_CONTEXT_BYTES = 512 << 20  # what kernels load when they are first used


@dataclass
class Troubled:
    """Observes a run, and takes memory from it after `at_step`; step 0 is before the first."""

    at_step: int
    leave: Callable[[Started], int]
    started: Started | None = None
    notes: list[str] = field(default_factory=list)
    ballast: list[torch.Tensor] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        if isinstance(event, Started):
            self.started = event
        if isinstance(event, Note) and event.is_warning:
            self.notes.append(event.text)
        step = 0 if isinstance(event, Started) else event.step if isinstance(event, Step) else None
        if step == self.at_step and not self.ballast:
            assert self.started is not None
            self.ballast += fill(self.leave(self.started))


def fill(leave_bytes: int) -> list[torch.Tensor]:
    """Takes all of the card but so many bytes, in blocks that it gives."""
    gc.collect()  # of runs before
    torch.cuda.empty_cache()
    taken: list[torch.Tensor] = []
    block_bytes = _LARGEST_BLOCK_BYTES
    while block_bytes >= _SMALLEST_BLOCK_BYTES:
        if torch.cuda.mem_get_info()[0] - leave_bytes >= block_bytes:
            with suppress(torch.OutOfMemoryError):
                taken.append(torch.empty(block_bytes, dtype=torch.uint8, device="cuda"))
                continue
        block_bytes //= 2
    return taken


def half_of_a_step(started: Started) -> int:
    """About what half the micro-batch takes beside what is there already."""
    predicted = started.prediction
    whole = predicted.activations_bytes + predicted.loss_bytes + predicted.slack_bytes
    there = predicted.gradients_bytes + predicted.optimizer_bytes + predicted.weight_casts_bytes
    return there + whole // 2 + _CONTEXT_BYTES


def nothing(_: Started) -> int:
    """Not a byte."""
    return 0


def train(
    out: Path, options: argparse.Namespace, observe: Any, resume: str | None = None, **more: Any
) -> list[float]:
    """The losses of a run, step by step. Raises LlmtrainError."""
    settings = {
        "train.steps": options.steps,
        "train.log_every_steps": 1,
        "eval.every_steps": 10**6,
        "eval.tokens": 4096,
        "eval.sample_every_steps": None,
        "device.kind": "cuda",
        "device.processes": 1,
        "device.compile": options.compile,
        **more,
    }
    flags = {key: Setting(value, f"argument {key}") for key, value in settings.items()}
    request = TrainRequest(profile=options.profile, flags=flags, out=out, resume=resume)
    run_training(request, TrainSession(World(), observe, StopRequest()))
    return losses(out)


def losses(out: Path) -> list[float]:
    """What the run has logged."""
    return [line["loss"] for line in RunDirectory(out).read_metrics() if "loss" in line]


def micro_batches(out: Path) -> list[int]:
    """Those that the run had, one after the other."""
    sessions = RunDirectory(out).read_record()["sessions"]
    return [
        numerics["micro_batch"]
        for session in sessions
        for numerics in (session["numerics"], *(c["numerics"] for c in session.get("changes", [])))
    ]


def differs(ours: list[float], theirs: list[float]) -> str | None:
    """What is wrong with a course, if anything is."""
    if len(ours) != len(theirs):
        return f"{len(ours)} steps instead of {len(theirs)}"
    worst = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    return None if math.isfinite(worst) and worst <= _TOLERANCE else f"losses differ by {worst:.4f}"


def goes_on(out: Path, options: argparse.Namespace, at_step: int) -> str | None:
    """A run that gets by with half; what it did otherwise, if anything."""
    observer = Troubled(at_step, half_of_a_step)
    found = train(out, options, observer)
    observer.ballast.clear()
    told(observer, micro_batches(out))
    if len(micro_batches(out)) < 2:
        return "the plan did not change: leave less with another profile"
    smaller: dict[str, Any] = {"train.micro_batch": micro_batches(out)[-1]}
    untroubled = train(out.with_name(f"{out.name}-untroubled"), options, lambda _: None, **smaller)
    return differs(found, untroubled)


def ends_saved(out: Path, options: argparse.Namespace, at_step: int) -> str | None:
    """A run that nothing helps, and its resume; what was otherwise, if anything."""
    observer = Troubled(at_step, nothing)
    problem = "it did not run out"
    try:
        train(out, options, observer)
    except DoesNotFitError as error:
        problem = "" if error.exit_code == 3 else f"exit code {error.exit_code}"
        say(f"  {error.message}\n  hint: {error.hint}")
    observer.ballast.clear()
    torch.cuda.empty_cache()
    checkpoints = [path.name for path in RunDirectory(out).checkpoints.iterdir()]
    if problem or checkpoints != [f"step-{at_step:08d}"]:
        return problem or f"checkpoints {checkpoints}"
    found = train(out, options, lambda _: None, resume="auto")
    told(observer, micro_batches(out))
    untroubled = train(out.with_name(f"{out.name}-untroubled"), options, lambda _: None)
    return differs(found, untroubled)


def told(observer: Troubled, sizes: list[int]) -> None:
    """What was seen of a run."""
    for note in observer.notes:
        say(f"  {note}")
    assert observer.started is not None
    predicted = format_bytes(observer.started.prediction.total_bytes)
    say(f"  micro-batches {' → '.join(map(str, sizes))}, {predicted} predicted")


def say(line: str) -> None:
    """The line is told at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--profile", default="gpu-small")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--compile", action="store_true", help="compile blocks, as long runs do")
    return parser.parse_args()


def main() -> int:
    """Runs everything; returns the exit code."""
    prepare_for_torch()
    if not torch.cuda.is_available():
        say("no CUDA device here")
        return 2
    options, problems = _options(), 0
    with tempfile.TemporaryDirectory(prefix="llmtrain-cuda-memory-") as directory:
        for name, scenario, at_step in (
            ("most of the card is taken before the first step", goes_on, 0),
            ("most of the card is taken after step 3", goes_on, 3),
            ("all of the card is taken after step 3", ends_saved, 3),
        ):
            say(name)
            problem = scenario(Path(directory) / f"{scenario.__name__}-{at_step}", options, at_step)
            problems += problem is not None
            say(f"  {problem or 'as it has to'}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
