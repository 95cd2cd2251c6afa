"""The naive baseline trained to a time or a number of steps, and how good it then is.

AdamW as nanoGPT sets it: betas 0.9 and 0.95, matrices and embeddings decay by 0.1, clipping at 1,
a cosine to a tenth of the learning rate. Warm-up takes the first twentieth of the run. On a CPU it
computes in fp32, eagerly; on a GPU in bf16, compiled.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llmtrain.choice import Choice
from llmtrain.data.batches.windows import BatchReader
from llmtrain.data.shards.prepared import PreparedData
from llmtrain.eval.evaluate import bits_per_byte
from llmtrain.plan.auto_profile import with_chosen_step
from llmtrain.prepare.context import PrepareContext
from llmtrain.prepare.dataset import prepare_dataset
from llmtrain.profile.load import load_profile
from llmtrain.profile.schema import Profile
from tests.benchmarks.documents import CurvePoint, Quality, QualityJob
from tests.benchmarks.naive import NaiveGpt2
from tests.benchmarks.plain import GRADIENT_CLIP

_WARMUP, _LEAST = 0.05, 0.1
_BETAS, _WEIGHT_DECAY = (0.9, 0.95), 0.1
_TOKENS_PER_STEP = Choice(16_384, "the baseline's, where the profile leaves it open")
_MICRO_BATCH_TOKENS = {"cpu": 4096, "cuda": 16384}


@dataclass(frozen=True, slots=True)
class Work:
    """A job and what it works on."""

    job: QualityJob
    profile: Profile
    data: PreparedData
    model: nn.Module

    @property
    def micro_batch(self) -> int:
        """Sequences at once: they divide the step."""
        context = self.profile.model.context
        windows = self.profile.train.chosen_tokens_per_step // context
        enough = max(1, _MICRO_BATCH_TOKENS[self.job.device] // context)
        return max(n for n in range(1, min(windows, enough) + 1) if windows % n == 0)

    def loss(self, reader: BatchReader, first: int, count: int) -> Tensor:
        """The mean over `count` windows, in nats a token."""
        device = self.job.device
        inputs, targets = (torch.from_numpy(a).to(device) for a in reader.read(first, count))
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            loss: Tensor = self.model(inputs, targets)[1]
        return loss


def train_for_quality(job: QualityJob) -> Quality:
    """A model of the profile's size, trained on its text for the job's length, and evaluated."""
    torch.set_num_threads(job.threads)
    loaded = load_profile(job.profile, environment=os.environ, assignments=job.assignments)
    profile = with_chosen_step(loaded, _TOKENS_PER_STEP).profile
    work = PrepareContext(job.threads, observe=lambda event: None, check_stop=lambda: None)
    with closing(prepare_dataset(profile.data, profile.model.vocab_size, work).shards) as data:
        return train_on(job, profile, data)


def train_on(job: QualityJob, profile: Profile, data: PreparedData) -> Quality:
    """See `train_for_quality`; the data is open."""
    torch.manual_seed(profile.train.seed)
    model: nn.Module = NaiveGpt2(profile.model).to(job.device)
    if job.device == "cuda":
        model.compile(dynamic=False)
    work = Work(job, profile, data, model)
    curve = list(_training(work))
    last = curve[-1]
    steps = last.tokens // profile.train.chosen_tokens_per_step
    return Quality(
        seconds=last.seconds,
        steps=steps,
        tokens=last.tokens,
        bits_per_byte=last.bits_per_byte,
        curve=tuple(curve),
    )


def _training(work: Work) -> Iterator[CurvePoint]:
    """The model is trained; its quality on the way where that was asked for, and at the end."""
    job, train = work.job, work.profile.train
    optimizer = _optimizer(work.model, job)
    reader = BatchReader(work.data.train, work.profile.model.context, train.seed)
    windows = train.chosen_tokens_per_step // work.profile.model.context
    steps, examined_s, begun_s = 0, 0.0, time.monotonic()
    while (progress := _progress(job, steps, time.monotonic() - begun_s - examined_s)) < 1.0:
        for group in optimizer.param_groups:
            group["lr"] = job.learning_rate * _factor(progress)
        for first in range(steps * windows, (steps + 1) * windows, work.micro_batch):
            loss = work.loss(reader, first, work.micro_batch)
            torch.autograd.backward(loss * (work.micro_batch / windows))
        nn.utils.clip_grad_norm_(work.model.parameters(), GRADIENT_CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        steps += 1
        if job.curve_every_steps and steps % job.curve_every_steps == 0:
            seconds = time.monotonic() - begun_s - examined_s
            yield _point(work, seconds, steps)
            examined_s = time.monotonic() - begun_s - seconds
    yield _point(work, time.monotonic() - begun_s - examined_s, steps)


def _point(work: Work, seconds: float, steps: int) -> CurvePoint:
    facts = work.data.index.validation
    bits = bits_per_byte(_validation_nats(work), facts.tokens, facts.text_bytes)
    tokens = steps * work.profile.train.chosen_tokens_per_step
    return CurvePoint(seconds=seconds, tokens=tokens, bits_per_byte=bits)


def _optimizer(model: nn.Module, job: QualityJob) -> torch.optim.Optimizer:
    matrices = [p for p in model.parameters() if p.dim() > 1]
    gains = [p for p in model.parameters() if p.dim() == 1]
    groups = [
        {"params": matrices, "weight_decay": _WEIGHT_DECAY},
        {"params": gains, "weight_decay": 0.0},
    ]
    fused = job.device == "cuda"
    return torch.optim.AdamW(groups, lr=job.learning_rate, betas=_BETAS, fused=fused)


def _progress(job: QualityJob, steps: int, elapsed_s: float) -> float:
    """The share of the run that is over."""
    if job.steps is not None:
        return steps / job.steps
    if job.budget_s is None:
        raise ValueError("a job has a time or a number of steps")
    return elapsed_s / job.budget_s


def _factor(progress: float) -> float:
    if progress < _WARMUP:
        return max(progress, 0.001) / _WARMUP
    cosine = 0.5 * (1 + math.cos(math.pi * (progress - _WARMUP) / (1 - _WARMUP)))
    return _LEAST + (1 - _LEAST) * cosine


@torch.no_grad()
def _validation_nats(work: Work) -> float:
    """A token's mean loss over the windows that `llmtrain train` evaluates, or so many more."""
    context, job = work.profile.model.context, work.job
    reader = BatchReader(work.data.validation, context, seed=0)
    tokens = job.evaluation_tokens or work.profile.eval.tokens
    windows = min(tokens // context, reader.num_windows)
    sums = [
        work.loss(reader, first, count) * count
        for first in range(0, windows, work.micro_batch)
        for count in [min(work.micro_batch, windows - first)]
    ]
    return float(torch.stack(sums).sum()) / windows
