"""The training loop, as the algorithm reads."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from llmtrain.data.batches import BatchReader
from llmtrain.device.plan import Plan
from llmtrain.errors import DivergedError
from llmtrain.model.decoder import Decoder
from llmtrain.ops.precision import autocast_as
from llmtrain.train.muon import RoleOptimizer
from llmtrain.train.optim import set_learning_rate
from llmtrain.train.schedule import Schedule
from llmtrain.train.world import World


@dataclass(slots=True)
class Position:
    """Where training stands; all that changes besides weights and optimizer state."""

    step: int = 0
    tokens: int = 0
    windows: int = 0
    horizon_steps: int | None = None  # where known; under a time an estimate
    time_progress: float | None = None  # the share of the time that is over; None: steps count

    @property
    def progress(self) -> float | None:
        """The share of the run that is over; None where nobody knows yet."""
        if self.time_progress is not None or self.horizon_steps is None:
            return self.time_progress
        return self.step / self.horizon_steps


@dataclass(frozen=True, slots=True)
class StepReport:
    """One optimizer step, done."""

    step: int
    loss: float  # mean nats per token over all ranks, before the update
    grad_norm: float  # before clipping
    lr: float  # of the hidden matrices


@dataclass(slots=True)
class Run:
    """Everything that training steps on."""

    model: Decoder
    objective: nn.Module  # the model, or the model in DDP
    optimizer: RoleOptimizer
    scaler: torch.amp.GradScaler
    schedule: Schedule
    batches: BatchReader
    plan: Plan
    world: World
    device: torch.device
    position: Position
    context: int
    peak_learning_rate: float
    gradient_clip: float | None

    @property
    def windows_per_step(self) -> int:
        """Windows that all ranks together read in one step."""
        plan = self.plan
        return plan.micro_batch.value * plan.accumulation.value * self.world.size

    def autocast(self) -> AbstractContextManager[object]:
        """Matrices are multiplied in the plan's precision."""
        return autocast_as(self.plan.precision.value, self.device)

    def micro_batches(self) -> Iterator[tuple[Tensor, Tensor, bool]]:
        """This rank's inputs and targets of the next step, and whether they are its last."""
        micro_batch, count = self.plan.micro_batch.value, self.plan.accumulation.value
        first = self.position.windows + self.world.rank * micro_batch * count
        for i in range(count):
            inputs, targets = self.batches.read(first + i * micro_batch, micro_batch)
            yield self._moved(inputs), self._moved(targets), i == count - 1

    def synchronising(self, is_last: bool) -> AbstractContextManager[object]:
        """Gradients are summed over ranks in the backward of a step's last micro-batch only."""
        if isinstance(self.objective, DistributedDataParallel) and not is_last:
            return self.objective.no_sync()
        return nullcontext()

    def _moved(self, array: object) -> Tensor:
        tensor = torch.as_tensor(array)
        if self.plan.pin_memory.value:
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)


def training_steps(run: Run) -> Iterator[StepReport]:
    """One report per optimizer step, without end. Knows nothing of logs, files or evaluation.

    Raises DivergedError before a loss or gradient that is not finite could reach the weights.
    """
    parameters = list(run.model.parameters())
    targets_per_step = run.windows_per_step * run.context
    while True:
        position = run.position
        factor = run.schedule.factor(position.step, position.progress)
        set_learning_rate(run.optimizer, factor)
        loss = torch.zeros((), dtype=_sum_dtype(run.device), device=run.device)
        for inputs, targets, is_last in run.micro_batches():
            with run.synchronising(is_last):
                with run.autocast():
                    nats = run.objective(inputs, targets)
                # DDP averages over ranks; the loss is a sum over all of them
                scaled = run.scaler.scale(nats * (run.world.size / targets_per_step))
                scaled.backward()
            loss += nats.detach()
        mean_loss = float(run.world.sum(loss)) / targets_per_step
        run.scaler.unscale_(run.optimizer)
        grad_norm = _clipped_norm(parameters, run.gradient_clip)
        _require_finite(mean_loss, grad_norm, run, factor)
        run.scaler.step(run.optimizer)
        run.scaler.update()
        run.optimizer.zero_grad()  # no gradients in memory while activations are
        position.step += 1
        position.tokens += targets_per_step
        position.windows += run.windows_per_step
        yield StepReport(position.step, mean_loss, grad_norm, factor * run.peak_learning_rate)


def _sum_dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64  # MPS has no fp64


def _clipped_norm(parameters: list[nn.Parameter], limit: float | None) -> float:
    """The global gradient norm, and gradients scaled down to `limit` where it is above."""
    if limit is None:
        gradients = [p.grad for p in parameters if p.grad is not None]
        return float(nn.utils.get_total_norm(gradients, foreach=True))
    return float(nn.utils.clip_grad_norm_(parameters, limit, foreach=True))


def _require_finite(loss: float, grad_norm: float, run: Run, factor: float) -> None:
    # Under fp16 an overflow is ordinary: the scaler skips the update and scales down.
    if math.isfinite(loss) and (math.isfinite(grad_norm) or run.scaler.is_enabled()):
        return
    raise DivergedError(
        f"step {run.position.step + 1}: loss {loss:g}, gradient norm {grad_norm:g} at learning "
        f"rate {factor * run.peak_learning_rate:g}; the weights are those of the step before",
        hint=f"--set optim.learning_rate={run.peak_learning_rate / 2:g}, or see the last "
        "checkpoint with: llmtrain runs show",
    )
