"""Trainings with random bad numbers in them, each also interrupted at random.

    python -m tests.faults.bad_numbers --trials 200 --seed 0

A fault is a NaN or an infinity in an activation, a gradient, the loss, a row of the embedding or
in what some windows of text lead to, for one step, for several or from one on. Each training has
to end with finite weights in every checkpoint: done, or with exit code 4 and the fault's place
named. Interrupted, it has to come to the same end, bit for bit.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import random
import signal
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from llmtrain.engine import train_run
from llmtrain.engine.request import TrainRequest
from llmtrain.engine.train_run import run_training
from llmtrain.engine.train_session import TrainSession
from llmtrain.errors import DivergedError
from llmtrain.profile.setting import Setting
from llmtrain.progress import Note
from llmtrain.train.build import build_run
from llmtrain.train.checkpoint.format import load_checkpoint
from llmtrain.train.checkpoint.names import list_checkpoints
from llmtrain.train.distributed.world import World
from llmtrain.train.divergence import policy
from llmtrain.train.events import Event, Step
from llmtrain.train.loop import Run
from llmtrain.train.signals import StopRequest

STEPS, PER_STEP = 40, 8
PROFILE = f"""\
name: tiny
model: {{vocab_size: 400, hidden_size: 32, intermediate_size: 64, num_layers: 2, num_heads: 2,
        context: 32}}
data: {{sources: [corpus.txt]}}
train: {{tokens_per_step: 256, steps: {STEPS}, log_every_steps: 1}}
optim: {{warmup_steps: 5}}
eval: {{every_steps: 10, tokens: 512, sample_every_steps: null}}
device: {{kind: cpu, threads: 1, compile: false}}
"""
MODULES = (
    *("model.embed_tokens", "model.layers.0.self_attn.k_proj", "model.layers.1.mlp"),
    *("model.layers.0", "model.norm", ""),
)
PARAMETERS = (
    *("model.embed_tokens.weight", "model.layers.0.self_attn.q_norm.weight"),
    *("model.layers.1.mlp.down_proj.weight", "model.norm.weight"),
)


@dataclass(frozen=True)
class Fault:
    """What breaks, and at which windows of the run's order."""

    kind: str  # activation, gradient, weights, text
    name: str
    value: float
    first_window: int
    last_window: float

    def install(self, run: Run) -> None:
        """The run has it from now on."""
        if self.kind == "gradient":
            spoil = lambda g: g.clone().fill_(self.value) if self._is_now(run) else g  # noqa: E731
            run.model.get_parameter(self.name).register_hook(spoil)  # type: ignore[no-untyped-call]
        elif self.kind == "weights":
            run.model.register_forward_pre_hook(lambda *_: self._spoil_weights(run))
        elif self.kind == "text":
            self._spoil_text(run)
        else:
            run.model.get_submodule(self.name).register_forward_hook(
                lambda _m, _a, out: (
                    self._spoilt(out) if torch.is_grad_enabled() and self._is_now(run) else out
                )
            )

    def _is_now(self, run: Run) -> bool:
        return self.first_window <= run.position.windows <= self.last_window

    def _spoilt(self, out: Tensor) -> Tensor:
        one = torch.zeros(out.shape, dtype=torch.bool)
        one.view(-1)[0] = True
        return torch.where(one, self.value, out)

    def _spoil_weights(self, run: Run) -> None:
        if torch.is_grad_enabled() and run.position.windows == self.first_window:
            run.model.model.embed_tokens.weight.data[11] = self.value
            if run.model.casts is not None:
                run.model.casts.forget()

    def _spoil_text(self, run: Run) -> None:
        poison = torch.from_numpy(run.batches.read(self.first_window + 3, 1)[0])

        def spoil(_module: nn.Module, args: tuple[Tensor], out: Tensor) -> Tensor:
            if args[0].shape[1] != poison.shape[1]:
                return out
            return torch.where((args[0] == poison).all(-1)[:, None, None], self.value, out)

        run.model.model.embed_tokens.register_forward_hook(spoil)


@dataclass(frozen=True)
class End:
    """What came of a training."""

    message: str | None  # where it stopped
    digests: tuple[str, ...]  # of the last weights and optimizer state, where it is done


def draw_fault(draw: random.Random) -> Fault:
    """One of them."""
    kind = draw.choice(("activation", "activation", "gradient", "gradient", "weights", "text"))
    name = draw.choice(MODULES if kind == "activation" else PARAMETERS)
    first = draw.randrange(STEPS) * PER_STEP
    steps = draw.choice((1, 2, 4, 5, 6, 9, 14, math.inf, math.inf))
    value = draw.choice((math.nan, math.inf, -math.inf))
    return Fault(kind, name, value, first, first + steps * PER_STEP - 1)


def trained(out: Path, fault: Fault, settings: dict[str, Any], stops: list[str]) -> End:
    """The end of a training that is stopped at each of `stops` and resumed."""

    def build(*args: Any) -> Run:
        run = build_run(*args)
        fault.install(run)
        return run

    flags = {key: Setting(value, f"argument {key}") for key, value in settings.items()}
    with mock.patch.object(train_run, "build_run", build):
        for moment in [*stops, ""]:
            stop = StopRequest()

            def observe(event: Event, moment: str = moment, stop: StopRequest = stop) -> None:
                if moment and not stop.is_made and told(event) == moment:
                    stop.on_signal(signal.SIGTERM, None)

            request = TrainRequest(profile="tiny.yaml", flags=flags, out=out, resume="auto")
            try:
                run_training(request, TrainSession(World(), observe, stop))
            except DivergedError as error:
                return End(error.message, ())
    newest = list_checkpoints(out / "checkpoints")[-1]
    names = ("model.safetensors", "optimizer.safetensors")
    return End(None, tuple(hashlib.sha256((newest / n).read_bytes()).hexdigest() for n in names))


def told(event: Event) -> str:
    """What a moment is called."""
    if isinstance(event, Step):
        return f"step {event.step}"
    return event.text.partition(":")[0] if isinstance(event, Note) else ""


def require_finite(run: Path) -> None:
    """No checkpoint of the run holds a number that is none."""
    for path in (run / "checkpoints").iterdir():
        found = load_checkpoint(path)
        for tensors in (found.weights, found.optimizer):
            bad = [name for name, t in tensors.items() if not bool(torch.isfinite(t).all())]
            assert not bad, f"{path}: {bad}"


def trial(seed: int, directory: Path) -> str:
    """How the training of this seed ended. Raises AssertionError where it should not have."""
    draw = random.Random(seed)
    fault, back = draw_fault(draw), draw.choice((3, 8, 100))
    every = draw.choice((2, 5, 7, 100))
    settings = {"checkpoint.every_steps": every, "checkpoint.keep_last": draw.choice((1, 2, 9))}
    moments = [f"step {draw.randint(1, STEPS)}" for _ in range(draw.randint(1, 3))]
    bad = fault.first_window // PER_STEP + 1
    moments += [f"step {bad + draw.randint(0, 5)} is skipped"]
    draw.shuffle(moments)
    with mock.patch.object(policy, "REWIND_STEPS", back):
        whole = trained(directory / "whole", fault, settings, [])
        other = trained(directory / "other", fault, settings, moments)
    end = whole.message or "done"
    sys.stdout.write(f"{seed}: {fault}, back {back}, {settings}, {moments}: {end}\n")
    for name in ("whole", "other"):
        if fault.kind != "weights":  # of which an interruption may save what is lost
            require_finite(directory / name)
    assert whole.digests == other.digests, "another end where it was interrupted"
    assert (whole.message is None) == (other.message is None)
    lasts = fault.last_window == math.inf and fault.first_window < (STEPS - 5) * PER_STEP
    assert whole.message is not None or not lasts or fault.kind in ("weights", "text")
    if whole.message is not None and fault.kind == "gradient":
        assert f"the gradient of {fault.name}" in whole.message
    if whole.message is not None and fault.kind == "activation":
        assert f"what {fault.name or 'head and loss'} returns" in whole.message
    return "done" if whole.message is None else "stopped"


def main() -> None:
    """Prints how many trainings ended how."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(2, 7))) for _ in range(300)]
    text = "\n".join(" ".join(draw.choices(words, k=9)) for _ in range(800))
    ends: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as place:
        os.environ["LLMTRAIN_CACHE_DIR"] = f"{place}/cache"
        os.chdir(place)
        Path("tiny.yaml").write_text(PROFILE, encoding="utf-8")
        Path("corpus.txt").write_text(text, encoding="utf-8")
        for seed in range(asked.seed, asked.seed + asked.trials):
            with tempfile.TemporaryDirectory(dir=place) as directory:
                ends[trial(seed, Path(directory))] += 1
        os.chdir("/")
    sys.stdout.write(f"{dict(ends)}\n")


if __name__ == "__main__":
    main()
