"""Rounds of local steps: ranks average weights after every N steps instead of gradients every step.

Between two exchanges each rank updates its own copy by its own share of the windows, and sends
nothing. Then the mean of what the ranks moved, weighted by the windows that they read, is the
gradient of an outer SGD with Nesterov momentum on the weights that all had agreed on (DiLoCo,
Douillard et al. 2023; with Muon inside MuLoCo, Thérien et al. 2025):

    Δ = mean over ranks of (agreed - own)
    m = μ · m + Δ
    agreed = agreed - η · (Δ + μ · m)

Each rank keeps its optimizer's state from round to round. Ranks of unequal speed may take unequal
shares of a step's windows, by the time that a window took them in the last round. A rank whose
weights are not finite counts for nothing in a round, and goes on with the agreed weights as all do.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from llmtrain.train.distributed.exchange import balanced_owners
from llmtrain.train.distributed.world import World
from llmtrain.train.divergence.policy import DivergenceState, judge
from llmtrain.units import counted

SyncPrecision = Literal["fp32", "bf16"]
_DTYPES: dict[SyncPrecision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
_BUCKET_ELEMENTS = 16 << 20  # exchanged at once; a larger parameter is by itself
# Where the end of a run is a time, a round this short tells how long a step takes.
_FIRST_STEPS = 5
_FASTER = 0.9  # of the slowest rank's time, for which shares are worth changing
_OUTER, _RANK, _SHARES = "outer", "rank", "outer_shares"


@dataclass(frozen=True, slots=True)
class OuterStep:
    """The settings of rounds: their length, and the update at their end."""

    every: int
    learning_rate: float
    momentum: float
    precision: SyncPrecision = "fp32"
    by_speed: bool = False  # whether faster ranks take more of a step's windows


@dataclass(slots=True)
class _LocalStep:
    loss: float
    norm: float
    seconds: float

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.norm)


@dataclass(slots=True)
class Rounds:
    """The weights that all ranks agreed on, and the steps that this rank took since then."""

    model: nn.Module
    world: World
    outer: OuterStep
    device: torch.device
    context: int
    windows_per_step: int  # of all ranks
    micro_batch: int = 1  # the unit of shares
    begun_step: int = 0
    shares: list[int] = field(default_factory=list)  # windows of a step, by rank
    last_steps: int = 1  # of the round that ended last
    exchange_s: float = 0.0  # that its exchange took, with waiting for slower ranks
    left_out: dict[int, int] = field(default_factory=dict)  # of its steps, by rank; the same on all
    _agreed: dict[str, Tensor] = field(default_factory=dict)
    _momentum: dict[str, Tensor] = field(default_factory=dict)
    _steps: list[_LocalStep] = field(default_factory=list)

    def begin(self, step: int, saved: Mapping[str, Tensor]) -> None:
        """Agree on the weights as they are now, at `step`.

        `saved` has the outer momentum, and the shares where it is of as many ranks.
        """
        self.begun_step, self._steps, self.left_out = step, [], {}
        self.shares = [self.windows_per_step // self.world.size] * self.world.size
        shares = [int(share) for share in saved.get(_SHARES, torch.zeros(0)).tolist()]
        if len(shares) == self.world.size and sum(shares) == self.windows_per_step:
            self.shares = shares
        self._agreed = {name: p.detach().clone() for name, p in self._parameters()}
        self._momentum = {
            name: saved[key].to(agreed.device, copy=True)
            if (key := f"{_OUTER}.{name}") in saved
            else torch.zeros_like(agreed)
            for name, agreed in self._agreed.items()
        }

    @property
    def is_at_end(self) -> bool:
        """True between two rounds, when all ranks have the agreed weights."""
        return not self._steps

    @property
    def own_windows(self) -> int:
        """The windows of a step that this rank reads."""
        return self.shares[self.world.rank]

    @property
    def windows_before(self) -> int:
        """The windows of a step that ranks before this one read."""
        return sum(self.shares[: self.world.rank])

    def record(self, loss: float, norm: float, seconds: float) -> None:
        """Record a local step: the loss of this rank's tokens, and the norm of its gradient."""
        self._steps.append(_LocalStep(loss, norm, seconds))

    def ends_after(self, step: int, horizon_steps: int | None) -> bool:
        """Return whether the round ends after `step`; the last one ends with the run.

        `horizon_steps` is the same on all ranks; None where it is not known yet.
        """
        end = self.begun_step + self.outer.every
        if horizon_steps is None:
            end = min(end, self.begun_step + _FIRST_STEPS)
        else:
            end = min(end, max(horizon_steps, self.begun_step + 1))
        return step >= end

    def finish(self, step: int, divergence: DivergenceState) -> DivergenceState:
        """Exchange weights and update those agreed on; return what the round's steps mean.

        Every rank has to call it after the same step.
        """
        started_s = time.monotonic()
        tokens, losses, window_s, self.left_out = self._shared()
        with torch.no_grad():
            for names in self._buckets():
                self._update(names, tokens)
        self.begun_step, self.last_steps, self._steps = step, len(self._steps), []
        self.exchange_s = time.monotonic() - started_s
        if self.outer.by_speed:
            self.shares = shares_by_speed(window_s, self.shares, self.micro_batch)
        first = step - self.last_steps + 1
        for number, loss in enumerate(losses, first):
            _, divergence = judge(
                divergence, number, loss, 0.0, is_scaled=False, skips_spikes=False
            )
        return divergence

    def describe_left_out(self, but: int | None = None) -> str | None:
        """Return which ranks left out steps of the last round, `but` one; None: no other did."""
        ranks = [
            f"rank {rank} left out {number} of the round's {counted(self.last_steps, 'step')}"
            for rank, number in self.left_out.items()
            if rank != but
        ]
        return f"{', '.join(ranks)}: not finite" if ranks else None

    def spread(self, step_s: float) -> float:
        """Return the time of the last step with its share of a round's exchange in place of it."""
        share_s = self.exchange_s / self.last_steps
        return step_s + share_s - (self.exchange_s if self.is_at_end else 0.0)

    def owned(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return which weights this rank saves, of those that all have, copied to memory."""
        return {name: _copy(weights[name]) for name in self._owned(weights)}

    def state(self, optimizer: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the optimizer's state that this rank saves, copied to memory.

        It is its own, under the rank's name, and the part of the outer momentum that it owns.
        """
        own = {own_name(self.world.rank, name): _copy(t) for name, t in optimizer.items()}
        if self.world.is_main:
            own[_SHARES] = torch.tensor(self.shares, dtype=torch.float32)
        owned = self._owned(self._momentum)
        return own | {f"{_OUTER}.{name}": _copy(self._momentum[name]) for name in owned}

    def _parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for name, p in self.model.named_parameters() if p.requires_grad)

    def _owned(self, tensors: Mapping[str, Tensor]) -> list[str]:
        names = list(tensors)
        owners = balanced_owners([float(tensors[name].numel()) for name in names], self.world.size)
        return [name for name, owner in zip(names, owners, strict=True) if owner == self.world.rank]

    def _shared(self) -> tuple[list[float], list[float], list[float], dict[int, int]]:
        """Return every rank's tokens that count, each step's mean loss, and ranks' s per window.

        A loss is NaN where a rank's step was not finite. The last are the steps that ranks left
        out, by rank: all those of one whose weights are not finite.
        """
        rank, ranks, steps = self.world.rank, self.world.size, self._steps
        step_tokens = self.context * self.own_windows
        is_finite = all(bool(torch.isfinite(p).all()) for _, p in self._parameters())
        tokens, window_s, left_out = [0.0] * ranks, [0.0] * ranks, [0.0] * ranks
        tokens[rank] = float(step_tokens * len(steps) * is_finite)
        window_s[rank] = sum(each.seconds for each in steps) / len(steps) / self.own_windows
        finite = [each.loss * step_tokens if each.is_finite else 0.0 for each in steps]
        bad = [float(not each.is_finite) for each in steps]
        left_out[rank] = sum(bad) if is_finite else float(len(steps))
        sums = self.world.sum_values([*tokens, *window_s, *left_out, *finite, *bad], self.device)
        per_step, rest = self.context * self.windows_per_step, sums[3 * ranks :]
        nats, bad = rest[: len(steps)], rest[len(steps) :]
        losses = [
            math.nan if of_bad else total / per_step
            for total, of_bad in zip(nats, bad, strict=True)
        ]
        by_rank = {of: int(n) for of, n in enumerate(sums[2 * ranks : 3 * ranks]) if n}
        return sums[:ranks], losses, sums[ranks : 2 * ranks], by_rank

    def _buckets(self) -> Iterator[list[str]]:
        bucket: list[str] = []
        elements = 0
        for name, agreed in self._agreed.items():
            if bucket and elements + agreed.numel() > _BUCKET_ELEMENTS:
                yield bucket
                bucket, elements = [], 0
            bucket.append(name)
            elements += agreed.numel()
        if bucket:
            yield bucket

    def _update(self, names: Sequence[str], tokens: Sequence[float]) -> None:
        """Take the outer step of some parameters; without a rank that counts, undo the round."""
        parameters = dict(self._parameters())
        own, agreed = [parameters[name] for name in names], [self._agreed[name] for name in names]
        if sum(tokens) > 0:
            counts = tokens[self.world.rank] > 0
            moved = torch.cat(
                [
                    (a - p if counts else torch.zeros_like(a)).flatten()
                    for a, p in zip(agreed, own, strict=True)
                ]
            )
            mean = _mean(moved.to(_DTYPES[self.outer.precision]), tokens, self.world)
            sizes = [a.numel() for a in agreed]
            eta, mu = self.outer.learning_rate, self.outer.momentum
            for name, a, part in zip(names, agreed, torch.split(mean, sizes), strict=True):
                change = part.view_as(a)
                momentum = self._momentum[name].mul_(mu).add_(change)
                a.sub_(change.add(momentum, alpha=mu), alpha=eta)
        for p, a in zip(own, agreed, strict=True):
            p.copy_(a)


def _mean(own: Tensor, tokens: Sequence[float], world: World) -> Tensor:
    """Return the mean of every rank's tensor, weighted by tokens, in fp32; the same on all ranks.

    Each rank adds up one part of all tensors in fp32, in the order of ranks, and sends the mean to
    the others: what travels is in the type of `own`, and as much as in an all-reduce.
    """
    if world.size == 1:
        return own.float()
    part = -(-own.numel() // world.size)
    sent = own.new_zeros(world.size * part)
    sent[: own.numel()] = own
    received = torch.empty_like(sent)
    # As bytes: not every backend knows every type.
    dist.all_to_all_single(received.view(torch.uint8), sent.view(torch.uint8))
    weights = torch.tensor(tokens, dtype=torch.float32, device=own.device) / sum(tokens)
    mean = torch.zeros(part, dtype=torch.float32, device=own.device)
    for weight, of_rank in zip(weights, received.view(world.size, part), strict=True):
        mean.add_(of_rank.float() * weight)
    dist.all_to_all_single(
        received.view(torch.uint8), mean.to(own.dtype).repeat(world.size).view(torch.uint8)
    )
    return received[: own.numel()].float()


def shares_by_speed(window_s: Sequence[float], shares: list[int], micro_batch: int) -> list[int]:
    """Return how many windows of a step each rank takes, in whole micro-batches, at least one.

    `window_s`: how long a window took each rank. The shares stay where others would not be
    clearly faster for the slowest rank.
    """
    units = sum(shares) // micro_batch
    speeds = [1.0 / max(seconds, 1e-9) for seconds in window_s]
    wanted = [(units - len(shares)) * speed / sum(speeds) for speed in speeds]
    found = [1 + int(units_) for units_ in wanted]
    by_remainder = sorted(
        range(len(shares)), key=lambda rank: (int(wanted[rank]) - wanted[rank], rank)
    )
    for rank in by_remainder[: units - sum(found)]:
        found[rank] += 1
    new = [micro_batch * units_ for units_ in found]
    slowest = [max(s * n for s, n in zip(window_s, each, strict=True)) for each in (shares, new)]
    return new if slowest[1] < _FASTER * slowest[0] else shares


def own_name(rank: int, name: str) -> str:
    """Return the name under which a rank's own state of an optimizer is saved."""
    return f"{_RANK}{rank}.{name}"


def own_state(saved: Mapping[str, Tensor], rank: int, ranks: int) -> dict[str, Tensor]:
    """Return the optimizer's state of a rank from what all saved, under ordinary names.

    At the number of ranks that saved it is the rank's own; at another the mean over those.
    """
    by_rank: dict[int, dict[str, Tensor]] = {}
    for key, tensor in saved.items():
        prefix, _, name = key.partition(".")
        number = prefix.removeprefix(_RANK)
        if number != prefix and number.isdecimal():
            by_rank.setdefault(int(number), {})[name] = tensor
    if len(by_rank) == ranks and rank in by_rank:
        return by_rank[rank]
    names = set[str]().union(*by_rank.values())
    return {
        name: torch.stack([state[name] for state in by_rank.values() if name in state]).mean(0)
        for name in sorted(names)
    }


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)
