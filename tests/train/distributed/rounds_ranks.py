"""What two ranks do for `test_rounds.py`: a program of its own, because ranks are processes.

What they find is written to DIRECTORY/rankN.json.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llmtrain.data.batches.windows import WindowReader, Windows
from llmtrain.profile.schema import CheckpointSection
from llmtrain.train.checkpoint.format import load_checkpoint
from llmtrain.train.checkpoint.part_saver import PartSaver
from llmtrain.train.distributed.bandwidth import exchange_between
from llmtrain.train.distributed.rounds import OuterStep, Rounds, SyncPrecision
from llmtrain.train.distributed.world import World, world_from_environment
from llmtrain.train.divergence.policy import DivergenceState
from llmtrain.train.loop import Run, training_steps
from tests.train.distributed.sharded_ranks import (
    alone_beside,
    checkpoint_of,
    largest_difference,
    losses,
    run_of,
    whole_weights,
)

CPU = torch.device("cpu")
EVERY = 3
ROUNDS: dict[str, Any] = {"device.sharding": "auto", "train.sync_every": EVERY}


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1))


def rows(step: int) -> tuple[Tensor, Tensor]:
    """The batch of a step: eight rows and what the model is to give for them."""
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 5, generator=generator), torch.randn(8, 1, generator=generator)


def descend(model: nn.Module, step: int, own: slice) -> None:
    """A step of plain SGD on some rows."""
    inputs, targets = (each[own] for each in rows(step))
    loss = (model(inputs) - targets).square().mean()
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    with torch.no_grad():
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.sub_(gradient, alpha=0.1)


def rounds_of(
    model: nn.Module, world: World, outer: OuterStep, device: torch.device = CPU
) -> Rounds:
    rounds = Rounds(model, world, outer, device, context=4, windows_per_step=world.size)
    rounds.begin(0, {})
    return rounds


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def share(world: World) -> slice:
    return slice(4 * world.rank, 4 * world.rank + 4)


def as_gradients(world: World) -> dict[str, Any]:
    """Rounds of one step whose outer step is plain: averaged gradients, for an update by SGD."""
    together, alone = small_model(), small_model()
    rounds = rounds_of(together, world, OuterStep(1, 1.0, 0.0))
    start = weights_of(alone)
    for step in range(1, 21):
        descend(together, step, share(world))
        rounds.record(0.0, 0.0, 1.0)
        rounds.finish(step, DivergenceState())
        descend(alone, step, slice(8))
    return {
        "difference": largest_difference(weights_of(together), weights_of(alone)),
        "moved": largest_difference(start, weights_of(alone)),
    }


def by_formula(world: World, precision: SyncPrecision) -> dict[str, Any]:
    """Three rounds with momentum, against the formula in the clear."""
    own = small_model()
    agreed = weights_of(own)
    momentum = {name: torch.zeros_like(w) for name, w in agreed.items()}
    rounds = rounds_of(own, world, OuterStep(EVERY, 0.7, 0.5, precision))
    worst, divergence = 0.0, DivergenceState()
    for first in range(1, 3 * EVERY, EVERY):
        for step in range(first, first + EVERY):
            descend(own, step, share(world))
            rounds.record(1.0 + world.rank, 0.0, 1.0)
        divergence = rounds.finish(first + EVERY - 1, divergence)
        expected = _outer_step(agreed, momentum, first)
        agreed = weights_of(own)
        worst = max(worst, largest_difference(expected, agreed))
    return {
        "difference": worst,
        "losses": divergence.losses,
        "sum": float(sum(w.double().sum() for w in agreed.values())),
    }


def _outer_step(
    agreed: dict[str, Tensor], momentum: dict[str, Tensor], first: int
) -> dict[str, Tensor]:
    """What the outer step gives after both ranks' local steps, computed without an exchange."""
    copies = []
    for own in (slice(4), slice(4, 8)):
        copy = small_model()
        copy.load_state_dict(agreed)
        for step in range(first, first + EVERY):
            descend(copy, step, own)
        copies.append(weights_of(copy))
    expected = {}
    for name, before in agreed.items():
        change = sum(before - copy[name] for copy in copies) / len(copies)
        momentum[name] = 0.5 * momentum[name] + change
        expected[name] = before - 0.7 * (change + 0.5 * momentum[name])
    return expected


def delayed(world: World) -> dict[str, Any]:
    """Rounds whose exchange travels beside the next two steps, against the formula in the clear."""
    outer = OuterStep(EVERY, 0.7, 0.5, delay=2, mixing=0.25)
    own = small_model()
    rounds = rounds_of(own, world, outer)
    copies = [small_model(), small_model()]
    agreed, momentum = weights_of(own), {n: torch.zeros_like(w) for n, w in weights_of(own).items()}
    worst, worst_agreed, due = 0.0, 0.0, 0
    for step in range(1, 4 * EVERY + 1):
        rounds.send()
        descend(own, step, share(world))
        rounds.record(1.0, 0.0, 1.0)
        for copy, rows_ in zip(copies, (slice(4), slice(4, 8)), strict=True):
            descend(copy, step, rows_)
        if rounds.mix_after(step):
            due = step
            for copy in copies:
                for name, parameter in copy.named_parameters():
                    parameter.data.mul_(0.25).add_(agreed[name], alpha=0.75)
        if step % EVERY == 0:
            rounds.finish(step, DivergenceState())
            _agree(agreed, momentum, copies)
            if step % (2 * EVERY) == 0:  # whether it is looked at does not matter
                with rounds.agreed():
                    worst_agreed = max(worst_agreed, largest_difference(agreed, weights_of(own)))
        copy_of_own = weights_of(copies[world.rank])
        worst = max(worst, largest_difference(copy_of_own, weights_of(own)))
    return {"difference": worst, "agreed": worst_agreed, "mixed_after": due}


def _agree(
    agreed: dict[str, Tensor], momentum: dict[str, Tensor], copies: Sequence[nn.Module]
) -> None:
    """Take the outer step of the formula by what both copies moved."""
    all_weights = [weights_of(copy) for copy in copies]
    for name, weight in agreed.items():
        change = weight - sum(each[name] for each in all_weights) / len(copies)
        momentum[name].mul_(0.5).add_(change)
        weight.sub_(0.7 * (change + 0.5 * momentum[name]))


def resumed_in_flight(world: World, directory: Path, saver: PartSaver) -> dict[str, Any]:
    """A run that is saved while an exchange is due beside the next steps, and goes on."""
    settings = {**ROUNDS, "train.sync_delay": 2}
    run, looking = run_of(world, **settings), run_of(world, **settings)
    steps = training_steps(run)
    own = [next(steps).loss for _ in range(3 * EVERY)]
    saver.save(checkpoint_of(run), in_background=False)
    run.all_reduce([0.0])
    differs = _same_on_all(run)
    own += [next(steps).loss for _ in range(2 * EVERY)]
    looked = losses(looking, 5 * EVERY)
    checkpoint = load_checkpoint(directory / "two" / f"step-{3 * EVERY:08d}")
    resumed = run_of(world, checkpoint, **settings)
    again = losses(resumed, 2 * EVERY)
    alone = run_of(alone_beside(world), checkpoint, **settings)
    with run.agreed_weights():
        agreed = _same_on_all(run)
    return {
        "looked": looked == own,
        "differs": differs,
        "agreed": agreed,
        "resumed": again == own[3 * EVERY :],
        "weights": largest_difference(whole_weights(run), whole_weights(resumed)),
        "at_one": abs(losses(alone, 1)[0] - own[3 * EVERY]),
        "fell": own[0] - own[-1],
    }


def bad_rank(world: World) -> dict[str, Any]:
    """A rank whose weights are not finite."""
    model, good = small_model(), small_model()
    rounds = rounds_of(model, world, OuterStep(1, 1.0, 0.0))
    descend(model, 1, share(world))
    descend(good, 1, slice(4))
    if world.rank == 1:
        with torch.no_grad():
            next(model.parameters()).fill_(torch.nan)
    rounds.record(math.nan if world.rank == 1 else 2.0, 1.0, 1.0)
    divergence = rounds.finish(1, DivergenceState())
    return {
        "difference": largest_difference(weights_of(model), weights_of(good)),
        "bad_steps": divergence.bad_steps,
        "losses": divergence.losses,
        "left_out": rounds.describe_left_out(),
        "but_own": rounds.describe_left_out(but=world.rank),
    }


def trained(world: World, directory: Path, saver: PartSaver) -> dict[str, Any]:
    """A run of rounds that is saved between two, and goes on at the same ranks and at one."""
    run = run_of(world, **ROUNDS)
    steps = training_steps(run)
    own = [next(steps).loss for _ in range(EVERY)]
    agreed = _same_on_all(run)
    saver.save(checkpoint_of(run), in_background=False)
    run.all_reduce([0.0])
    own += [next(steps).loss for _ in range(EVERY + 1)]
    within = _same_on_all(run)
    checkpoint = load_checkpoint(directory / "two" / f"step-{EVERY:08d}")
    resumed = run_of(world, checkpoint, **ROUNDS)
    again = losses(resumed, EVERY + 1)
    alone = run_of(alone_beside(world), checkpoint, **ROUNDS)
    return {
        "agreed": agreed,
        "within": within,
        "is_within_round": run.is_within_round,
        "fell": own[0] - own[-1],
        "resumed": again == own[EVERY:],
        "weights": largest_difference(whole_weights(run), whole_weights(resumed)),
        "at_one": abs(losses(alone, 1)[0] - own[EVERY]),
        "sharding": run.plan.sharding.reason,
    }


def by_speed(world: World, directory: Path, saver: PartSaver) -> dict[str, Any]:
    """A run whose rank 1 takes three times as long for a window."""
    settings = {**ROUNDS, "train.sync_shares": "speed", "train.micro_batch": 1}
    run = run_of(world, **settings)
    slow = SlowRounds(**{name: getattr(run.rounds, name) for name in SlowRounds.settings()})
    slow.begin(0, {})
    run.rounds, run.batches = slow, (reads := Reads(run.batches))
    losses(run, 2 * EVERY)
    saver.save(checkpoint_of(run), in_background=False)
    run.all_reduce([0.0])
    checkpoint = load_checkpoint(directory / "two" / f"step-{2 * EVERY:08d}")
    resumed = run_of(world, checkpoint, **settings)
    assert resumed.rounds is not None
    return {
        "shares": slow.shares,
        "resumed": resumed.rounds.shares,
        "read": reads.positions,
        "differ": _same_on_all(run),
    }


class SlowRounds(Rounds):
    """Rounds of which rank 1 seems to take three times as long for a window."""

    __slots__ = ()

    @staticmethod
    def settings() -> tuple[str, ...]:
        return ("model", "world", "outer", "device", "context", "windows_per_step", "micro_batch")

    def record(self, loss: float, norm: float, seconds: float) -> None:
        del seconds
        Rounds.record(self, loss, norm, self.own_windows * (1.0 + 2.0 * self.world.rank))


class Reads:
    """A reader of windows that notes which were read."""

    def __init__(self, reader: WindowReader) -> None:
        self._reader = reader
        self.positions: list[int] = []

    def read(self, first_position: int, count: int) -> Windows:
        self.positions += range(first_position, first_position + count)
        return self._reader.read(first_position, count)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)


def _same_on_all(run: Run) -> float:
    """How far this rank's weights are from the mean of all ranks'."""
    worst = 0.0
    for parameter in run.model.parameters():
        mean = run.world.sum(parameter.detach().double()) / run.world.size
        worst = max(worst, float((parameter.detach() - mean).abs().max()))
    return worst


def main() -> None:
    directory, world = Path(sys.argv[1]), world_from_environment()
    exchange = exchange_between(world, "gloo", CPU, 4 << 20, 60.0)
    with world.process_group("gloo", 60.0):
        options = CheckpointSection(keep_last=9)
        saver = PartSaver(directory / "two", options, lambda _: None, world, 60.0, ranks=world.size)
        work: dict[str, Any] = {
            "as_gradients": partial(as_gradients, world),
            "fp32": partial(by_formula, world, "fp32"),
            "bf16": partial(by_formula, world, "bf16"),
            "bad_rank": partial(bad_rank, world),
            "delayed": partial(delayed, world),
            "in_flight": partial(resumed_in_flight, world, directory, saver),
            "trained": partial(trained, world, directory, saver),
            "by_speed": partial(by_speed, world, directory, saver),
        }
        found: dict[str, Any] = {name: do() for name, do in work.items()}
        found["exchange"] = asdict(exchange)
        found["machines"] = world.processes_of_machines(CPU)
        saver.close()
        (directory / f"rank{world.rank}.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
