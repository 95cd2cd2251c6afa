"""Which outer step loses least beside averaged gradients, by rounds of two simulated processes?

    python -m tests.benchmarks.round_sweep --optimizers muon --every 10,30 --seeds 2

Two runs in this process, each with its own optimizer, read their shares of every step as two ranks
do; between rounds the outer step is taken by its formula, which `tests/train/distributed` compares
with the real exchange. Averaged gradients are one run that reads all. The loss is that of windows
that no run reads. A line of JSON a training, then a table of means over seeds.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llmtrain.engine.workload import workload_of
from llmtrain.machine.probe import read_facts
from llmtrain.plan.planner import make_plan
from llmtrain.prepare.context import PrepareContext
from llmtrain.prepare.dataset import prepare_dataset
from llmtrain.profile.load import load_profile
from llmtrain.profile.schema import Profile
from llmtrain.train.build import build_run
from llmtrain.train.distributed.rounds import OuterStep, Rounds
from llmtrain.train.distributed.world import World
from llmtrain.train.loop import Run, training_steps
from llmtrain.train.readers import TrainTokens
from tests.programs import program_parser

_RANKS = 2
_NEVER = 1_000_000  # steps of a round that is ended outside
_JUDGED, _FIRST_JUDGED = 256, 20_000  # windows, from a position that no run comes to
_MODEL = (
    "model.hidden_size=64",
    "model.num_layers=3",
    "model.intermediate_size=192",
    "model.num_heads=2",
    "model.vocab_size=1024",
    "model.context=128",
    "train.tokens_per_step=1024",
    "device.precision=fp32",
    "device.compile=false",
    "device.threads=1",
)


class LocalSteps(Rounds):
    """Steps of a simulated rank, whose rounds end outside."""

    __slots__ = ()

    def ends_after(self, step: int, horizon_steps: int | None) -> bool:
        """Return False: the simulation takes the outer step."""
        del step, horizon_steps
        return False


@dataclass(frozen=True, slots=True)
class Inner:
    """How a rank's optimizer differs from that of averaged gradients."""

    rate: float = 1.0  # of the learning rates
    state: str = "own"  # what it has after a round: its own, the mean over ranks, or none

    @property
    def name(self) -> str:
        """The end of a case's name."""
        rate = f", inner rate × {self.rate:g}" if self.rate != 1 else ""
        return rate + (f", inner state: {self.state}" if self.state != "own" else "")


def main(arguments: Sequence[str]) -> None:
    """Train every case for every seed."""
    parser = program_parser(__file__, __doc__)
    add = parser.add_argument
    add("--optimizers", default="muon,adamw")
    add("--every", default="10,30", help="steps of a round")
    add("--outer", default="0.7:0.5,1.0:0.5,1.0:0.3,0.8:0.6", help="learning rate:momentum")
    add("--delay", type=int, default=0, help="steps beside which the exchange travels")
    add("--mixing", type=float, default=0.5)
    add("--inner-rate", type=float, default=1.0, help="of AdamW in rounds, of the rule's")
    add("--inner-state", choices=("own", "mean", "none"), default="own", help="after a round")
    add("--steps", type=int, default=300)
    add("--seeds", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found: dict[str, list[float]] = defaultdict(list)
    for seed in range(options.seeds):
        for optimizer in options.optimizers.split(","):
            profile = _profile(optimizer, options.steps, seed)
            tokens = _tokens(profile)
            plain = _averaged(profile, tokens, options.steps)
            _tell(found, f"{optimizer}, averaged gradients", seed, plain, plain)
            for every in map(int, options.every.split(",")):
                for pair in options.outer.split(","):
                    rate, momentum = map(float, pair.split(":"))
                    outer = OuterStep(
                        every, rate, momentum, delay=options.delay, mixing=options.mixing
                    )
                    inner = Inner(options.inner_rate, options.inner_state)
                    loss = _in_rounds(profile, tokens, options.steps, outer, inner)
                    beside = f", beside {options.delay}" if options.delay else ""
                    name = f"{optimizer}, N {every}, {rate:g}, {momentum:g}{beside}{inner.name}"
                    _tell(found, name, seed, loss, plain)
    sys.stdout.write("| inner, round, outer learning rate, momentum | difference | of seeds |\n")
    sys.stdout.write("| --- | --- | --- |\n")
    for name, differences in found.items():
        each = ", ".join(f"{difference:+.2%}" for difference in differences)
        sys.stdout.write(f"| {name} | {statistics.mean(differences):+.2%} | {each} |\n")


def _tell(found: dict[str, list[float]], name: str, seed: int, loss: float, plain: float) -> None:
    found[name].append(loss / plain - 1)
    line = {"case": name, "seed": seed, "loss": round(loss, 4), "beside": loss / plain - 1}
    sys.stdout.write(f"{json.dumps(line)}\n")
    sys.stdout.flush()


def _profile(optimizer: str, steps: int, seed: int) -> Profile:
    """Return the profile of a rank of rounds; one process alone pays no attention to those."""
    assignments = [
        *_MODEL,
        f"optim.name={optimizer}",
        f"train.steps={steps}",
        f"train.seed={seed}",
        f"train.sync_every={_NEVER}",
    ]
    return load_profile("cpu-tiny", environment={}, assignments=assignments).profile


def _tokens(profile: Profile) -> TrainTokens:
    work = PrepareContext(1, observe=lambda event: None, check_stop=lambda: None)
    dataset = prepare_dataset(profile.data, profile.model.vocab_size, work)
    return TrainTokens(dataset.shards.train, dataset.shards.index.separator_id)


def _run(profile: Profile, tokens: TrainTokens, world: World, steps: int) -> Run:
    facts = read_facts(tries_gpus=False)
    plan = make_plan(facts, profile.device, workload_of(profile, world, facts, measure=False))
    run = build_run(profile, plan, world, tokens)
    run.position.horizon_steps = steps
    return run


def _averaged(profile: Profile, tokens: TrainTokens, steps: int) -> float:
    run = _run(profile, tokens, World(), steps)
    run.rounds = None
    for _, _report in zip(range(steps), training_steps(run), strict=False):
        pass
    return _judged(run)


def _in_rounds(
    profile: Profile, tokens: TrainTokens, steps: int, outer: OuterStep, inner: Inner
) -> float:
    """Train in rounds of two simulated ranks; return the loss of what they agreed on."""
    runs = [_rank(profile, tokens, rank, steps, inner.rate) for rank in range(_RANKS)]
    stepping = [training_steps(run) for run in runs]
    agreed = {name: p.detach().clone() for name, p in runs[0].model.named_parameters()}
    momentum = {name: torch.zeros_like(weight) for name, weight in agreed.items()}
    mixed_after: int | None = None
    for step in range(1, steps + 1):
        for each in stepping:
            next(each)
        if step == mixed_after:
            mixed_after = None
            _mix(runs, agreed, outer.mixing)
        if step % outer.every and step < steps:
            continue
        _take_outer_step(runs, agreed, momentum, outer)
        _change_state(runs, inner.state)
        if outer.delay and step < steps:
            mixed_after = step + outer.delay
        else:
            _mix(runs, agreed, 0.0)
    return _judged(runs[0])


def _rank(profile: Profile, tokens: TrainTokens, rank: int, steps: int, inner_rate: float) -> Run:
    run = _run(profile, tokens, World(rank=rank, size=_RANKS, local_size=_RANKS), steps)
    for group in run.optimizer.param_groups:
        group["peak_lr"] *= inner_rate
    windows = run.windows_per_step
    outer = OuterStep(_NEVER, 1.0, 0.0)
    run.rounds = LocalSteps(run.model, run.world, outer, run.device, run.context, windows)
    run.rounds.begin(0, {})
    return run


def _take_outer_step(
    runs: Sequence[Run], agreed: dict[str, Tensor], momentum: dict[str, Tensor], outer: OuterStep
) -> None:
    every = [dict(run.model.named_parameters()) for run in runs]
    with torch.no_grad():
        for name, weight in agreed.items():
            change = sum((weight - own[name] for own in every), torch.zeros_like(weight)) / _RANKS
            momentum[name].mul_(outer.momentum).add_(change)
            step = change.add(momentum[name], alpha=outer.momentum)
            weight.sub_(step, alpha=outer.learning_rate)


@torch.no_grad()
def _change_state(runs: Sequence[Run], state: str) -> None:
    """Average the optimizers' moments over ranks, or begin them again."""
    if state == "own":
        return
    if state == "none":
        for run in runs:
            run.optimizer.state.clear()
        return
    for parameters in zip(*(run.model.parameters() for run in runs), strict=True):
        states = [run.optimizer.state[p] for run, p in zip(runs, parameters, strict=True)]
        for name, value in states[0].items():
            if isinstance(value, Tensor) and value.numel() > 1:
                mean = sum((each[name] for each in states), torch.zeros_like(value)) / _RANKS
                for each in states:
                    each[name].copy_(mean)


def _mix(runs: Sequence[Run], agreed: dict[str, Tensor], share: float) -> None:
    with torch.no_grad():
        for run in runs:
            for name, own in run.model.named_parameters():
                own.mul_(share).add_(agreed[name], alpha=1 - share)


@torch.no_grad()
def _judged(run: Run) -> float:
    """Return the loss of windows that were not trained on."""
    nats, targets = 0.0, 0
    for tokens, wanted in _windows(run):
        nats += float(run.model(tokens, wanted))
        targets += wanted.numel()
    return nats / targets if targets else math.nan


def _windows(run: Run) -> Iterator[tuple[Any, Any]]:
    for first in range(0, _JUDGED, 32):
        arrays = run.to_device(run.batches.read(_FIRST_JUDGED + first, 32))
        yield arrays[0], arrays[1]


if __name__ == "__main__":
    main(sys.argv[1:])
