"""The naive baseline trained to a time, and what it then needs for held-out text.

AdamW as nanoGPT sets it: betas 0.9 and 0.95, weight decay 0.1, clipping at 1, a cosine to a tenth
of the learning rate, here over the time. Warm-up takes the first twentieth of it.
"""

from __future__ import annotations

import math
import os
import time

import torch
from torch import Tensor, nn

from llmtrain.data.batches import BatchReader
from llmtrain.data.shards import PreparedData
from llmtrain.engine.dataset import DataWork, prepare_dataset
from llmtrain.eval.evaluate import bits_per_byte
from llmtrain.profile.load import load_profile
from llmtrain.profile.schema import Profile
from tests.benchmarks.documents import Quality, QualityJob
from tests.benchmarks.naive import NaiveGpt2
from tests.benchmarks.plain import GRADIENT_CLIP

_WARMUP, _LEAST = 0.05, 0.1
_MICRO_BATCH_TOKENS = 4096


def train_for_quality(job: QualityJob) -> Quality:
    """A model of the profile's size, trained on its text for the job's time, and evaluated."""
    torch.set_num_threads(job.threads)
    profile = load_profile(job.profile, environment=os.environ, assignments=job.assignments).profile
    torch.manual_seed(profile.train.seed)
    work = DataWork(job.threads, observe=lambda event: None, check_stop=lambda: None)
    data = prepare_dataset(profile.data, profile.model.vocab_size, work).shards
    model = NaiveGpt2(profile.model)
    seconds, steps = _train(model, job, profile, data)
    facts = data.validation, data.index.validation
    nats = _validation_nats(model, profile, data)
    data.close()
    return Quality(
        seconds=seconds,
        steps=steps,
        tokens=steps * profile.train.tokens_per_step,
        bits_per_byte=bits_per_byte(nats, facts[1].tokens, facts[1].text_bytes),
    )


def _train(
    model: NaiveGpt2, job: QualityJob, profile: Profile, data: PreparedData
) -> tuple[float, int]:
    """Seconds and steps."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=job.learning_rate, betas=(0.9, 0.95), weight_decay=0.1
    )
    context = profile.model.context
    reader = BatchReader(data.train, context, profile.train.seed)
    windows = profile.train.tokens_per_step // context
    micro_batch = _micro_batch(windows, context)
    begun_s, steps = time.monotonic(), 0
    while (elapsed_s := time.monotonic() - begun_s) < job.budget_s:
        for group in optimizer.param_groups:
            group["lr"] = job.learning_rate * _factor(elapsed_s / job.budget_s)
        for first in range(steps * windows, (steps + 1) * windows, micro_batch):
            inputs, targets = map(torch.from_numpy, reader.read(first, micro_batch))
            _logits, loss = model(inputs, targets)
            torch.autograd.backward(loss * (micro_batch / windows))
        nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        steps += 1
    return time.monotonic() - begun_s, steps


def _micro_batch(windows: int, context: int) -> int:
    enough = max(1, _MICRO_BATCH_TOKENS // context)
    return max(n for n in range(1, min(windows, enough) + 1) if windows % n == 0)


def _factor(progress: float) -> float:
    if progress < _WARMUP:
        return max(progress, 0.001) / _WARMUP
    cosine = 0.5 * (1 + math.cos(math.pi * (progress - _WARMUP) / (1 - _WARMUP)))
    return _LEAST + (1 - _LEAST) * cosine


@torch.no_grad()
def _validation_nats(model: NaiveGpt2, profile: Profile, data: PreparedData) -> float:
    """A token's mean loss over the windows that `llmtrain train` evaluates."""
    context = profile.model.context
    reader = BatchReader(data.validation, context, seed=0)
    asked = profile.eval.batches * profile.train.tokens_per_step // context
    losses: list[Tensor] = []
    for i in range(min(asked, reader.num_windows)):
        inputs, targets = map(torch.from_numpy, reader.read(i, 1))
        losses.append(model(inputs, targets)[1])
    return float(torch.stack(losses).mean())
