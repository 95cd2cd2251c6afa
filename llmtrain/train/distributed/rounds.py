"""Rounds of local steps: ranks average weights after every N steps instead of gradients every step.

Between two exchanges each rank updates its own copy by its own share of the windows, and sends
nothing. Then the mean of what the ranks moved, weighted by the windows that they read, is the
gradient of an outer SGD with Nesterov momentum on the weights that all had agreed on (DiLoCo,
Douillard et al. 2023; with Muon inside MuLoCo, Thérien et al. 2025):

    Δ = mean over ranks of (agreed - own)
    m = μ · m + Δ
    agreed = agreed - η · (Δ + μ · m)

The exchange may travel beside the first `delay` steps of the next round, which each rank then takes
from its own weights. After those steps it mixes what all agreed on into what it has (Streaming
DiLoCo, Douillard et al. 2025, equation 3), so that ranks differ by that share of their own:

    own = α · own + (1 - α) · agreed

What all agreed on does not depend on when a rank waits for it, so that it may be evaluated and
saved at the end of the round, and a resumed run mixes after the same step as one that was not
interrupted.

Each rank keeps its optimizer's state from round to round. Ranks of unequal speed may take unequal
shares of a step's windows, by the time that a window took them in the last round. A rank whose
weights are not finite counts for nothing in a round, and goes on with the agreed weights as all do.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from llmtrain.train.distributed.averaging import (
    Averaging,
    background_group,
    buckets,
    weighted_mean,
)
from llmtrain.train.distributed.exchange import balanced_owners
from llmtrain.train.distributed.own_state import OWN, own_name
from llmtrain.train.distributed.shares import shares_by_speed
from llmtrain.train.distributed.world import World
from llmtrain.train.divergence.policy import DivergenceState, judge
from llmtrain.units import counted

SyncPrecision = Literal["fp32", "bf16"]
_DTYPES: dict[SyncPrecision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Where the end of a run is a time, a round this short tells how long a step takes.
_FIRST_STEPS = 5
_OUTER, _SHARES = "outer", "outer_shares"
# Of what is not mixed yet: the step after which it is, and a rank's own weights.
_MIXED_AFTER = "outer_mixed_after"


@dataclass(frozen=True, slots=True)
class OuterStep:
    """The settings of rounds: their length, and the update at their end."""

    every: int
    learning_rate: float
    momentum: float
    precision: SyncPrecision = "fp32"
    by_speed: bool = False  # whether faster ranks take more of a step's windows
    delay: int = 0  # steps of the next round beside which the exchange travels
    mixing: float = 0.5  # the share of a rank's own weights after those


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
    timeout_s: float = 600.0  # for which a rank waits in an exchange beside its steps
    begun_step: int = 0
    shares: list[int] = field(default_factory=list)  # windows of a step, by rank
    last_steps: int = 1  # of the round that ended last
    exchange_s: float = 0.0  # that its exchange took, with waiting for slower ranks
    travelled_s: float = 0.0  # of the last exchange beside steps, for which a save would wait
    left_out: dict[int, int] = field(default_factory=dict)  # of its steps, by rank; the same on all
    _agreed: dict[str, Tensor] = field(default_factory=dict)
    _momentum: dict[str, Tensor] = field(default_factory=dict)
    _steps: list[_LocalStep] = field(default_factory=list)
    _mixed_after: int | None = None  # the step after which what was agreed on is mixed in
    _unsent: list[float] | None = None  # every rank's tokens, of an exchange that has not begun
    _sent: Averaging | None = None
    _group: dist.ProcessGroup | None = None

    def begin(self, step: int, saved: Mapping[str, Tensor]) -> None:
        """Agree on the weights as they are now, at `step`.

        `saved` has the outer momentum, and the shares where it is of as many ranks. If it was saved
        before what was agreed on was mixed in, it has this rank's weights too.
        """
        self._forget_exchange()
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

        self._take_own(saved)

    def _take_own(self, saved: Mapping[str, Tensor]) -> None:
        """Continue from this rank's weights where they were saved, by as many ranks."""
        names = [f"{own_name(rank, OWN)}.{next(iter(self._agreed))}" for rank in self._ranks()]
        if _MIXED_AFTER not in saved or not all(name in saved for name in names):
            return
        if f"{own_name(self.world.size, OWN)}.{next(iter(self._agreed))}" in saved:
            return  # by more ranks
        self._mixed_after = int(saved[_MIXED_AFTER])
        own = own_name(self.world.rank, OWN)
        with torch.no_grad():
            for name, parameter in self._parameters():
                parameter.copy_(saved[f"{own}.{name}"])

    def _ranks(self) -> range:
        return range(self.world.size)

    def _forget_exchange(self) -> None:
        if self._sent is not None:
            self._sent.wait()  # the others wait for it, too
        self._sent = self._unsent = self._mixed_after = None

    @property
    def is_at_end(self) -> bool:
        """True between two rounds, when all ranks know the agreed weights, or are about to."""
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

        Every rank has to call it after the same step. With a delay the exchange begins with the
        next step, or when the agreed weights are needed.
        """
        started_s = time.monotonic()
        self._mix()  # of a round that was shorter than the delay
        tokens, losses, window_s, self.left_out = self._shared()
        if self.outer.delay > 0:
            self._unsent, self._mixed_after = tokens, step + self.outer.delay
            if tokens[self.world.rank] == 0:
                self._restore_agreed()
        else:
            for names in buckets(self._agreed):
                mean = self._mean_move(names, tokens)
                self._take_outer_step(names, mean)
            self._restore_agreed()
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

    def send(self) -> None:
        """Begin the exchange of the last round, if it has not begun."""
        tokens, self._unsent = self._unsent, None
        if tokens is None or sum(tokens) == 0:
            return
        if self._group is None:
            self._group = background_group(self.world, self.timeout_s)
        moved = [self._moved(names, tokens).cpu() for names in buckets(self._agreed)]
        self._sent = Averaging(moved, tokens, self.world, self._group)

    def mix_after(self, step: int) -> bool:
        """Mix in what was agreed on, if that is due after `step`; return whether it was."""
        return self._mixed_after is not None and step >= self._mixed_after and self._mix()

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """Within the block the model has the agreed weights, for which this waits."""
        self._settle()
        if self._mixed_after is None:
            yield
            return
        own = {name: p.detach().clone() for name, p in self._parameters()}
        self._restore_agreed()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in self._parameters():
                    parameter.copy_(own[name])

    def _settle(self) -> None:
        """Wait for the exchange that is under way, and update what was agreed on."""
        self.send()
        if self._sent is None:
            return
        means, self.travelled_s, self._sent = self._sent.wait(), self._sent.seconds, None
        for names, mean in zip(buckets(self._agreed), means, strict=True):
            self._take_outer_step(names, mean.to(self.device))

    def _mix(self) -> bool:
        if self._mixed_after is None:
            return False
        self._settle()
        self._mixed_after, share = None, self.outer.mixing
        with torch.no_grad():
            for name, parameter in self._parameters():
                parameter.mul_(share).add_(self._agreed[name], alpha=1 - share)
        return True

    def _restore_agreed(self) -> None:
        with torch.no_grad():
            for name, parameter in self._parameters():
                parameter.copy_(self._agreed[name])

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

        It is its own, under the rank's name, and the part of the outer momentum that it owns; and
        its own weights, where what was agreed on is not mixed in yet.
        """
        self._settle()
        own = {own_name(self.world.rank, name): _copy(t) for name, t in optimizer.items()}
        if self.world.is_main:
            own[_SHARES] = torch.tensor(self.shares, dtype=torch.float32)
        if self._mixed_after is not None:
            if self.world.is_main:
                own[_MIXED_AFTER] = torch.tensor([float(self._mixed_after)])
            prefix = own_name(self.world.rank, OWN)
            own |= {f"{prefix}.{name}": _copy(p) for name, p in self._parameters()}
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

    def _moved(self, names: Sequence[str], tokens: Sequence[float]) -> Tensor:
        """Return how far some parameters moved in the round; 0 of a rank that does not count."""
        parameters, counts = dict(self._parameters()), tokens[self.world.rank] > 0
        with torch.no_grad():
            moved = [
                (a - parameters[name] if counts else torch.zeros_like(a)).flatten()
                for name in names
                for a in (self._agreed[name],)
            ]
            return torch.cat(moved).to(_DTYPES[self.outer.precision])

    def _mean_move(self, names: Sequence[str], tokens: Sequence[float]) -> Tensor | None:
        """Return the mean of what all ranks moved; None without a rank that counts."""
        if sum(tokens) == 0:
            return None
        return weighted_mean(self._moved(names, tokens), tokens, self.world)

    def _take_outer_step(self, names: Sequence[str], mean: Tensor | None) -> None:
        """Update some of the agreed weights and their momentum."""
        if mean is None:
            return
        agreed = [self._agreed[name] for name in names]
        eta, mu = self.outer.learning_rate, self.outer.momentum
        parts = torch.split(mean, [a.numel() for a in agreed])
        for name, a, part in zip(names, agreed, parts, strict=True):
            change = part.view_as(a)
            momentum = self._momentum[name].mul_(mu).add_(change)
            a.sub_(change.add(momentum, alpha=mu), alpha=eta)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)
