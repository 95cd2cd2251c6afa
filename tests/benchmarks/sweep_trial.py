"""A trial of `tests.benchmarks.sweep` that `llmtrain train` does not have: a program in its place.

Called as `JOB train ARGUMENTS`, where JOB says which: a variant is `llmtrain train` itself with a
function replaced; the naive baseline and steps that grow are trained here, and leave `run.yaml` and
`metrics.jsonl` as a run does. These two begin again after a kill.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path

import torch

from llmtrain.choice import Choice
from llmtrain.cli.app import main as llmtrain
from llmtrain.data.batches.windows import BatchReader
from llmtrain.data.shards.prepared import PreparedData
from llmtrain.engine.plan_run import plan_run
from llmtrain.errors import InterruptedRunError
from llmtrain.eval.evaluate import bits_per_byte, sum_loss
from llmtrain.prepare.context import PrepareContext
from llmtrain.prepare.dataset import prepare_dataset
from llmtrain.profile.load import load_profile
from llmtrain.profile.schema import Profile
from llmtrain.train.build import build_run
from llmtrain.train.distributed.world import World, run_process_identity
from llmtrain.train.loop import Run, training_steps
from llmtrain.train.readers import TrainTokens
from llmtrain.train.run_directory.directory import RunDirectory
from tests.benchmarks.documents import Quality, QualityJob
from tests.benchmarks.quality import train_on
from tests.benchmarks.sweep_job import SweepJob
from tests.benchmarks.variants import VARIANTS


def main() -> None:
    """Train the trial that the command line names."""
    job = SweepJob.model_validate_json(sys.argv.pop(1))
    if job.variant is not None:
        with VARIANTS[job.variant]():
            sys.exit(llmtrain())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(InterruptedRunError.exit_code))
    values = _values(sys.argv[2:])
    (out,), (name,) = values["--out"], values["--profile"]
    sources = f"data.sources=[{', '.join(values['--data'])}]"
    profile = load_profile(name, environment={}, assignments=[sources, *values["--set"]]).profile
    run = RunDirectory(Path(out))
    with run.claimed():
        session = {"process": run_process_identity()}
        run.write_record({"profile": profile.model_dump(mode="json"), "sessions": [session]})
        run.metrics.unlink(missing_ok=True)
        quality = _trained(job, profile)
        end = {"step": quality.steps, "tokens": quality.tokens, "elapsed_s": quality.seconds}
        run.append(run.metrics, {**end, "loss": 0.0})
        run.append(run.metrics, {**end, "val_loss": 0.0, "val_bpb": quality.bits_per_byte})


def _values(arguments: Sequence[str]) -> dict[str, list[str]]:
    """Return what follows each option of the command line."""
    found: dict[str, list[str]] = {"--data": [], "--set": []}
    for option, value in pairwise(arguments):
        if option.startswith("--") and not value.startswith("--"):
            found.setdefault(option, []).append(value)
    return found


def _trained(job: SweepJob, profile: Profile) -> Quality:
    threads = torch.get_num_threads()
    if isinstance(profile.device.threads, int):
        threads = profile.device.threads
        torch.set_num_threads(threads)
    torch._dynamo.config.recompile_limit = 64  # lengths of steps are many in one process
    work = PrepareContext(threads, observe=lambda event: None, check_stop=lambda: None)
    torch.manual_seed(profile.train.seed)
    with closing(prepare_dataset(profile.data, profile.model.vocab_size, work).shards) as data:
        if job.system == "naive":
            return train_on(_naive(job, profile, threads), profile, data)
        return _growing(job, profile, data)


def _naive(job: SweepJob, profile: Profile, threads: int) -> QualityJob:
    rate, tokens = profile.optim.learning_rate, profile.train.tokens
    assert isinstance(rate, float)
    assert tokens is not None
    return QualityJob(
        profile=job.profile,
        assignments=(),
        steps=max(1, round(tokens / profile.train.chosen_tokens_per_step)),
        learning_rate=rate,
        threads=threads,
        device="cuda" if profile.device.kind == "cuda" else "cpu",
        evaluation_tokens=job.evaluation_tokens,
        curve_every_steps=None,
    )


def _growing(job: SweepJob, profile: Profile, data: PreparedData) -> Quality:
    """Train with steps of other sizes from a share of the tokens on, and evaluate."""
    tokens = profile.train.tokens
    assert tokens is not None
    plan = plan_run(profile).plan
    run = build_run(profile, plan, World(), TrainTokens(data.train, data.index.separator_id))
    begun_s = time.monotonic()
    ends = [share for share, _ in job.growth[1:]] + [1.0]
    for (_, tokens_per_step), end in zip(job.growth, ends, strict=True):
        windows = tokens_per_step // run.context
        micro_batch = min(plan.micro_batch.value, windows)
        run.plan = replace(
            plan,
            micro_batch=Choice(micro_batch, "the sweep's"),
            accumulation=Choice(windows // micro_batch, "the sweep's"),
        )
        steps = max(0, round((tokens * end - run.position.tokens) / tokens_per_step))
        for _ in islice(_steps(run, tokens), steps):
            pass
    run.plan, seconds = plan, time.monotonic() - begun_s
    return Quality(
        seconds=seconds,
        steps=run.position.step,
        tokens=run.position.tokens,
        bits_per_byte=_bits_per_byte(job, run, data),
        curve=(),
    )


def _steps(run: Run, tokens: int) -> Iterator[None]:
    """Train steps whose schedule follows the tokens."""
    run.position.time_progress = run.position.tokens / tokens
    for _ in training_steps(run):
        yield
        run.position.time_progress = min(1.0, run.position.tokens / tokens)


def _bits_per_byte(job: SweepJob, run: Run, data: PreparedData) -> float:
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
    return bits_per_byte(found.nats_per_token, facts.tokens, facts.text_bytes)


if __name__ == "__main__":
    main()
