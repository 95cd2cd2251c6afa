"""One training of a sweep: ours or the naive baseline, on one text, to a number of tokens."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict

from llmtrain.choice import Choice
from llmtrain.data.batches.windows import BatchReader
from llmtrain.data.shards.prepared import PreparedData
from llmtrain.engine.plan_run import plan_run
from llmtrain.eval.evaluate import bits_per_byte, sum_loss
from llmtrain.prepare.context import PrepareContext
from llmtrain.prepare.dataset import prepare_dataset
from llmtrain.profile.load import load_profile
from llmtrain.profile.schema import DataSection, Profile
from llmtrain.train.build import build_run
from llmtrain.train.distributed.world import World
from llmtrain.train.loop import Run, training_steps
from llmtrain.train.readers import TrainTokens
from tests.benchmarks.documents import CurvePoint, Quality, QualityJob
from tests.benchmarks.quality import train_on
from tests.benchmarks.variants import VARIANTS


class SweepJob(BaseModel):
    """What is trained. `settings` are a profile's, dotted; `data` is a corpus by name.

    `growth`: from which share of the tokens on a step has how many of them, instead of the
    profile's. `learning_rate` is the naive baseline's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    data: str
    profile: str
    tokens: int
    system: Literal["ours", "naive"] = "ours"
    settings: dict[str, Any] = {}
    growth: tuple[tuple[float, int], ...] = ()
    variant: str | None = None
    learning_rate: float = 6e-4
    evaluation_tokens: int = 524_288
    curve_points: int = 0

    @property
    def assignments(self) -> tuple[str, ...]:
        """The settings as `--set` takes them."""
        return tuple(f"{key}={value}" for key, value in self.settings.items())


class SweepResult(BaseModel):
    """A job and what came out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    job: SweepJob
    quality: Quality
    parameters: int
    device: str
    torch: str


def read_results(path: Path) -> list[SweepResult]:
    """What is known so far."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    return [SweepResult.model_validate_json(line) for line in lines]


def prepare_job(job: SweepJob, corpora: Mapping[str, str], threads: int) -> str:
    """The job's tokenizer and shards are in the cache. The name of its data."""
    _data(profile_of(job, corpora).data, profile_of(job, corpora).model.vocab_size, threads)
    return job.data


def run_job(job: SweepJob, corpora: Mapping[str, str], device: str, threads: int) -> SweepResult:
    """The job is trained and evaluated on `device`."""
    torch.set_num_threads(threads)
    torch._dynamo.config.recompile_limit = 64  # lengths of steps are many in one process
    _forget_compiled(job)
    profile = profile_of(job, corpora)
    data = _data(profile.data, profile.model.vocab_size, threads)
    torch.manual_seed(profile.train.seed)
    patch = VARIANTS[job.variant]() if job.variant is not None else nullcontext()
    with patch:
        if job.system == "naive":
            quality, parameters = _naive(job, profile, data, device, threads)
        else:
            quality, parameters = _ours(job, profile, data)
    if device == "cuda":
        torch.cuda.empty_cache()  # several processes share the GPU
    return SweepResult(
        job=job, quality=quality, parameters=parameters, device=device, torch=torch.__version__
    )


def profile_of(job: SweepJob, corpora: Mapping[str, str]) -> Profile:
    sources = f"data.sources=[{corpora[job.data]}]"
    assignments = (sources, f"train.tokens={job.tokens}", *job.assignments)
    return load_profile(job.profile, environment={}, assignments=assignments).profile


@lru_cache(maxsize=8)
def _data(section: DataSection, vocab_size: int, threads: int) -> PreparedData:
    work = PrepareContext(threads, observe=lambda event: None, check_stop=lambda: None)
    return prepare_dataset(section, vocab_size, work).shards


@lru_cache(maxsize=1)
def _compiled_for(key: str) -> None:
    """Shapes change with the key, and compilers keep only so many of them."""
    torch.compiler.reset()


def _forget_compiled(job: SweepJob) -> None:
    shapes = {k: v for k, v in job.settings.items() if k.startswith(("model.", "device."))}
    _compiled_for(f"{os.getpid()} {job.system} {job.profile} {shapes}")


def _naive(
    job: SweepJob, profile: Profile, data: PreparedData, device: str, threads: int
) -> tuple[Quality, int]:
    steps = max(1, round(job.tokens / profile.train.chosen_tokens_per_step))
    quality_job = QualityJob(
        profile=job.profile,
        assignments=job.assignments,
        steps=steps,
        learning_rate=job.learning_rate,
        threads=threads,
        device="cuda" if device == "cuda" else "cpu",
        evaluation_tokens=job.evaluation_tokens,
        curve_every_steps=steps // job.curve_points if job.curve_points else None,
    )
    return train_on(quality_job, profile, data), 0


def _ours(job: SweepJob, profile: Profile, data: PreparedData) -> tuple[Quality, int]:
    plan = plan_run(profile).plan
    run = build_run(profile, plan, World(), TrainTokens(data.train, data.index.separator_id))
    phases = job.growth or ((0.0, profile.train.chosen_tokens_per_step),)
    curve: list[CurvePoint] = []
    begun_s, examined_s = time.monotonic(), 0.0
    for number, (_, tokens_per_step) in enumerate(phases):
        ends = phases[number + 1][0] if number + 1 < len(phases) else 1.0
        windows = tokens_per_step // run.context
        micro_batch = min(plan.micro_batch.value, windows)
        run.plan = replace(
            plan,
            micro_batch=Choice(micro_batch, "the sweep's"),
            accumulation=Choice(windows // micro_batch, "the sweep's"),
        )
        for _ in islice(_steps(run, job.tokens), _count(run, job.tokens, ends, tokens_per_step)):
            due = len(curve) + 1 <= job.curve_points * run.position.tokens / job.tokens
            if due and run.position.tokens + tokens_per_step <= job.tokens:
                begun_examining_s = time.monotonic()
                seconds = begun_examining_s - begun_s - examined_s
                curve.append(_point(job, run, data, seconds))
                examined_s += time.monotonic() - begun_examining_s
    seconds = time.monotonic() - begun_s - examined_s
    run.plan = plan
    curve.append(_point(job, run, data, seconds))
    quality = Quality(
        seconds=seconds,
        steps=run.position.step,
        tokens=run.position.tokens,
        bits_per_byte=curve[-1].bits_per_byte,
        curve=tuple(curve),
    )
    return quality, run.model.shape.parameters


def _count(run: Run, tokens: int, ends: float, tokens_per_step: int) -> int:
    return max(0, round((tokens * ends - run.position.tokens) / tokens_per_step))


def _steps(run: Run, tokens: int) -> Iterator[None]:
    """Steps whose schedule follows the tokens."""
    run.position.time_progress = run.position.tokens / tokens
    for _ in training_steps(run):
        yield
        run.position.time_progress = min(1.0, run.position.tokens / tokens)


def _point(job: SweepJob, run: Run, data: PreparedData, seconds: float) -> CurvePoint:
    reader = BatchReader(data.validation, run.context, seed=0)
    windows = min(job.evaluation_tokens // run.context, reader.num_windows)
    found = sum_loss(
        run.model,
        (
            (inputs[0], targets[0])
            for inputs, targets in (reader.read(i, 1) for i in range(windows))
        ),
        micro_batch=run.plan.micro_batch.value,
        autocast=run.autocast,
        check_stop=lambda: None,
    )
    facts = data.index.validation
    bits = bits_per_byte(found.nats_per_token, facts.tokens, facts.text_bytes)
    return CurvePoint(seconds=seconds, tokens=run.position.tokens, bits_per_byte=bits)
