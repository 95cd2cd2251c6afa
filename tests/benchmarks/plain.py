"""Training as a tutorial writes it: fp32, eager, torch's default AdamW, logits at once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from tests.benchmarks.documents import TrainJob

LEARNING_RATE = 6e-4
GRADIENT_CLIP = 1.0


class LanguageModel(Protocol):
    """A module whose call gives logits and the mean loss."""

    def __call__(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...


def random_batches(job: TrainJob) -> Iterator[tuple[Tensor, Tensor]]:
    """Windows from anywhere in the token file, without end."""
    tokens = np.memmap(job.tokens_file, dtype=job.dtype, mode="r")
    context = job.model.context
    while True:
        starts = torch.randint(len(tokens) - context, (job.micro_batch,)).tolist()
        rows = np.stack([tokens[i : i + context + 1].astype(np.int64) for i in starts])
        batch = torch.from_numpy(rows)
        yield batch[:, :-1].contiguous(), batch[:, 1:].contiguous()


def train_plainly(
    model: LanguageModel, optimizer: torch.optim.Optimizer, job: TrainJob
) -> tuple[float, ...]:
    """Seconds of each of the job's steps, from reading the batch to the updated weights."""
    step_s = []
    batches = random_batches(job)
    for _ in range(job.steps):
        begun_s = time.perf_counter()
        inputs, targets = next(batches)
        # As in nanoGPT's loop the logits keep their name, and their memory, through the backward.
        _logits, loss = model(inputs, targets)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        step_s.append(time.perf_counter() - begun_s)
    return tuple(step_s)
