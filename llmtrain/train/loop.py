"""The training loop: one optimizer step after the other."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from llmtrain.data.batches.prefetch import Prefetch
from llmtrain.data.batches.windows import WindowReader, Windows
from llmtrain.model.decoder import Decoder
from llmtrain.model.optimizer import RoleOptimizer
from llmtrain.ops.precision import autocast_as
from llmtrain.plan.planner import Plan
from llmtrain.train.checkpoint.adapter import Adapter
from llmtrain.train.distributed.rounds import Rounds
from llmtrain.train.distributed.sharding import ShardedModel
from llmtrain.train.distributed.world import World
from llmtrain.train.divergence.policy import DivergenceState, StepVerdict, judge, judge_alone
from llmtrain.train.parameter_groups import set_learning_rate
from llmtrain.train.schedule import Schedule

ReadWeights = Callable[[], Mapping[str, Tensor]]


@dataclass(slots=True)
class Position:
    """Progress of a run: what changes besides weights, optimizer state and divergence state."""

    step: int = 0
    tokens: int = 0
    windows: int = 0
    horizon_steps: int | None = None  # where known; with a time limit an estimate
    time_progress: float | None = None  # share of the time limit used; None: steps count

    @property
    def progress(self) -> float | None:
        """The share of the run that is done; None while unknown."""
        if self.time_progress is not None or self.horizon_steps is None:
            return self.time_progress
        return self.step / self.horizon_steps


@dataclass(frozen=True, slots=True)
class StepReport:
    """One optimizer step, applied or skipped. With rounds of local steps it is this rank's."""

    step: int
    loss: float  # mean nats per target, before the update; over all ranks but in rounds
    grad_norm: float  # before clipping
    lr: float  # of the hidden matrices
    verdict: StepVerdict = field(default_factory=StepVerdict)
    first_window: int = 0  # position of the batch in the run's order of windows


@dataclass(slots=True)
class Run:
    """The model, optimizer, data and position that a training step reads and changes."""

    model: Decoder
    objective: nn.Module  # the model, or the model in DDP
    optimizer: RoleOptimizer
    scaler: torch.amp.GradScaler
    schedule: Schedule
    batches: WindowReader
    plan: Plan
    world: World
    device: torch.device
    position: Position
    context: int
    peak_learning_rate: float
    gradient_clip: float | None
    skips_spikes: bool = True
    divergence: DivergenceState = field(default_factory=DivergenceState)
    prefetch: Prefetch | None = None  # of `batches`
    initial_weights: ReadWeights | None = None  # of step 0; None: random ones
    adapter: Adapter | None = None  # where only adapters are trained
    sharded: ShardedModel | None = None  # the model, where each rank has a part of it
    rounds: Rounds | None = None  # where ranks take steps of their own between exchanges

    @property
    def windows_per_step(self) -> int:
        """The number of windows that all ranks together read in one step."""
        plan = self.plan
        return plan.micro_batch.value * plan.accumulation.value * self.world.size

    @property
    def own_windows(self) -> int:
        """The number of windows that this rank reads in one step."""
        if self.rounds is not None:
            return self.rounds.own_windows
        return self.plan.micro_batch.value * self.plan.accumulation.value

    @property
    def first_own_window(self) -> int:
        """The position of this rank's first window of the next step."""
        if self.rounds is not None:
            return self.position.windows + self.rounds.windows_before
        return self.position.windows + self.world.rank * self.own_windows

    @property
    def is_within_round(self) -> bool:
        """True after a local step that no exchange followed: the ranks' weights differ."""
        return self.rounds is not None and not self.rounds.is_at_end

    @property
    def saving_ranks(self) -> int:
        """How many ranks, the first ones, save: those with a part of the first replica, those with
        a state of their own, or the first one.
        """
        if self.sharded is not None:
            return self.sharded.replica.size
        return self.world.size if self.rounds is not None else 1

    @property
    def steps_together(self) -> int:
        """The steps since ranks last decided together: one, or those of the last round."""
        return 1 if self.rounds is None else self.rounds.last_steps

    def autocast(self) -> AbstractContextManager[object]:
        """Return a context in which matrices are multiplied in the plan's precision."""
        return autocast_as(self.plan.precision.value, self.device)

    def micro_batches(self) -> Iterator[tuple[tuple[Tensor, ...], bool]]:
        """Yield this rank's arrays of the next step, and whether they are the last."""
        micro_batch, own, first = (
            self.plan.micro_batch.value,
            self.own_windows,
            self.first_own_window,
        )
        for start in range(0, own, micro_batch):
            position, count = first + start, min(micro_batch, own - start)
            is_last = start + count == own
            following = first + self.windows_per_step if is_last else position + count
            arrays = self._read(position, count, following)
            yield self.to_device(arrays), is_last

    def advance(self, tokens: int) -> None:
        """Count a step that was applied or skipped, and move the data cursor past its batch."""
        position = self.position
        position.step += 1
        position.tokens += tokens
        position.windows += self.windows_per_step
        position.windows = self.divergence.cursor_after(position.step, position.windows)

    def all_reduce(self, values: Sequence[float]) -> list[float]:
        """Return each value's sum over all ranks."""
        return self.world.sum_values(values, self.device)

    def gradient_sync(self, is_last: bool) -> AbstractContextManager[object]:
        """Return a context for a backward; DDP averages gradients in a step's last one only.

        FSDP2 does so over replicas. Within one it does in every one: what a rank had to keep
        otherwise would be of all weights.
        """
        if self.sharded is not None:
            self.sharded.add_over_replicas(is_last=is_last)
        if isinstance(self.objective, DistributedDataParallel) and not is_last:
            return self.objective.no_sync()
        return nullcontext()

    def clip_gradients(self, parameters: list[nn.Parameter]) -> float:
        """Scale gradients down to the limit of their global norm; return the norm before that.

        Native kernels do so while they read them for the update.
        """
        if self.sharded is not None:
            return self.sharded.clip_gradients(self.gradient_clip)
        if self.optimizer.native:
            return self.optimizer.clip_gradients(self.gradient_clip)
        return _clipped_norm(parameters, self.gradient_clip)

    def agreed_weights(self) -> AbstractContextManager[None]:
        """Return a context in which the model has the weights that all ranks agreed on.

        They differ from its own at the end of a round whose exchange travels beside the next steps.
        """
        return nullcontext() if self.rounds is None else self.rounds.agreed()

    def whole_weights(self) -> AbstractContextManager[None]:
        """Return a context in which this rank has the whole weights. Every rank has to call it."""
        return nullcontext() if self.sharded is None else self.sharded.gathered()

    def count_targets(self) -> tuple[int, int]:
        """Return the targets by which the next step's loss is divided, and DDP's part in that.

        They are those of all ranks, over which DDP averages, or this rank's where it is by itself.
        """
        if self.rounds is not None:
            return self.batches.count_targets(self.first_own_window, self.own_windows), 1
        targets = self.batches.count_targets(self.position.windows, self.windows_per_step)
        return targets, self.world.size

    def _read(self, first: int, count: int, following: int) -> Windows:
        if self.prefetch is None:
            return self.batches.read(first, count)
        return self.prefetch.read(first, count, following)

    def to_device(self, arrays: Windows) -> tuple[Tensor, ...]:
        """Return the arrays on the run's device; references, with which the CPU computes, there."""
        return tuple(map(self._to_device, arrays[:2])) + tuple(map(torch.as_tensor, arrays[2:]))

    def _to_device(self, array: object) -> Tensor:
        tensor = torch.as_tensor(array)
        if self.plan.pin_memory.value:
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)


def training_steps(run: Run) -> Iterator[StepReport]:
    """Yield one report per optimizer step, without end. Knows no logs, files or evaluation.

    A loss or gradient that is not finite never reaches the weights; its consequences for the run
    are in `run.divergence`.
    """
    parameters = list(run.model.parameters())
    tokens_per_step = run.windows_per_step * run.context
    while True:
        position, started_s = run.position, time.monotonic()
        if run.rounds is not None:
            run.rounds.send()  # after what ranks have decided at the end of a round
        targets, averaged_over = run.count_targets()
        factor = run.schedule.factor(position.step, position.progress)
        set_learning_rate(run.optimizer, factor)
        nats = torch.zeros((), dtype=_sum_dtype(run.device), device=run.device)
        for arrays_bt, is_last in run.micro_batches():
            with run.gradient_sync(is_last):
                with run.autocast():
                    loss = run.objective(*arrays_bt)
                # DDP averages over ranks; the loss is a sum over all of them
                run.scaler.scale(loss * (averaged_over / targets)).backward()
            nats += loss.detach()
        if run.sharded is not None:
            run.sharded.finish_gradients()
        run.scaler.unscale_(run.optimizer)
        norm = run.clip_gradients(parameters)
        if run.rounds is None:
            total_nats, norm = _reduce(run.world, nats, norm)
            mean_loss = total_nats / targets
            verdict = _judge(run, mean_loss, norm)
        else:
            mean_loss = float(nats) / targets
            verdict = judge_alone(mean_loss, norm)
        _update(run, verdict, norm)
        if run.rounds is not None:
            run.rounds.record(mean_loss, norm, time.monotonic() - started_s)
        run.optimizer.zero_grad()  # no gradients in memory while activations are
        first_window = position.windows
        run.advance(tokens_per_step)
        _finish_round(run)
        lr = factor * run.peak_learning_rate
        yield StepReport(position.step, mean_loss, norm, lr, verdict, first_window)


def _sum_dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64  # MPS has no fp64


def _clipped_norm(parameters: list[nn.Parameter], limit: float | None) -> float:
    """Scale gradients down to a global norm of `limit`; return the norm before that."""
    if limit is None:
        gradients = [p.grad for p in parameters if p.grad is not None]
        return float(nn.utils.get_total_norm(gradients, foreach=True))
    return float(nn.utils.clip_grad_norm_(parameters, limit, foreach=True))


def _reduce(world: World, nats: Tensor, grad_norm: float) -> tuple[float, float]:
    """Return the loss summed over all ranks, and this rank's norm or NaN if any is not finite.

    Gradients are the same on all ranks after DDP; where one rank's became bad after that, no rank
    may apply the update.
    """
    is_bad = nats.new_tensor(0.0 if math.isfinite(grad_norm) else 1.0)
    total_nats, bad_ranks = world.sum(torch.stack([nats, is_bad])).tolist()
    return total_nats, math.nan if bad_ranks and math.isfinite(grad_norm) else grad_norm


def _judge(run: Run, loss: float, grad_norm: float) -> StepVerdict:
    """Return whether the step may update the weights, and update the divergence state."""
    verdict, run.divergence = judge(
        run.divergence,
        run.position.step + 1,
        loss,
        grad_norm,
        is_scaled=run.scaler.is_enabled(),
        skips_spikes=run.skips_spikes,
    )
    return verdict


def _finish_round(run: Run) -> None:
    """Let the ranks agree on weights again where a round of local steps ends."""
    rounds, position = run.rounds, run.position
    if rounds is None:
        return
    has_mixed = rounds.mix_after(position.step)
    if rounds.ends_after(position.step, position.horizon_steps):
        run.divergence = rounds.finish(position.step, run.divergence)
    elif not has_mixed:
        return
    if run.model.casts is not None:
        run.model.casts.forget()


def _update(run: Run, verdict: StepVerdict, grad_norm: float) -> None:
    """Apply the optimizer step and adapt the loss scale; change nothing if the step is skipped.

    Where ranks average gradients, `grad_norm` is not finite on any of them or on none, so their
    scalers see the same overflow and keep the same scale. Local steps have no loss scale.
    """
    if verdict.skipped is not None:
        run.scaler.update(run.scaler.get_scale())
        return
    if run.scaler.is_enabled() and not math.isfinite(grad_norm):
        for found_inf in run.scaler._found_inf_per_device(run.optimizer).values():  # noqa: SLF001
            found_inf.fill_(1.0)
    run.scaler.step(run.optimizer)
    run.scaler.update()
