"""Many trainings by `llmtrain sweep`, told as lines of JSON.

    python -m tests.benchmarks.sweep tests/benchmarks/sweeps/batch.yaml out \\
        --data code=code.jsonl.gz --workers 2

The plan is a list of blocks: what `SweepJob` has, and under `grid` lists whose every combination is
a training. Each block is a sweep in a directory of its own in OUT, which the same command continues
after any kill. `out/results.jsonl` has what `sweeps/results.jsonl` has of earlier ones.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from llmtrain.engine.sweep.plan import SweepPlan
from llmtrain.engine.sweep.results import TrialResult
from llmtrain.engine.sweep.sweep import SweepRequest, run_sweep
from llmtrain.engine.sweep.trial import TRAIN, TrialProgram
from llmtrain.files import write_pieces_atomically
from llmtrain.profile.load import load_profile
from llmtrain.profile.shape import shape_of
from llmtrain.train.signals import stop_on_signals
from tests.benchmarks.documents import Quality
from tests.benchmarks.sweep_job import SweepJob, SweepResult
from tests.benchmarks.sweep_table import line
from tests.programs import program_parser

_OTHER = "tests.benchmarks.sweep_trial:main"
_RATE = "optim.learning_rate"
_NEVER = 10**9  # steps


@dataclass(frozen=True, slots=True)
class BlockSweep:
    """A sweep of a plan, and what its trials are called in the results, by number."""

    plan: SweepPlan
    program: TrialProgram
    jobs: Sequence[SweepJob]


def main(arguments: Sequence[str]) -> int:
    """Train what is left of the plans; print a line for each training that ends."""
    values = _parser().parse_args(arguments)
    corpora = dict(item.split("=", 1) for item in values.data)
    blocks = [block for plan in values.plan for block in read_blocks(plan.read_text("utf-8"))]
    found: list[SweepResult] = []
    with stop_on_signals() as stop:
        for number, block in enumerate(blocks):
            sweep = block_sweep(block, corpora, values.device)
            directory = values.out / f"{number:02d}-{sweep.plan.name}"

            def show(result: TrialResult, jobs: Sequence[SweepJob] = sweep.jobs) -> None:
                if (known := _recorded(result, jobs, values.device)) is not None:
                    sys.stdout.write(line(known) + "\n")
                    sys.stdout.flush()

            request = SweepRequest(sweep.plan, directory, values.workers, {}, sweep.program)
            results = run_sweep(request, show, stop.check)
            known = (_recorded(each, sweep.jobs, values.device) for each in results)
            found += [each for each in known if each is not None]
            lines = (f"{each.model_dump_json()}\n".encode() for each in found)
            write_pieces_atomically(values.out / "results.jsonl", lines)
    return 0


def read_blocks(text: str) -> list[dict[str, Any]]:
    """Return the blocks of a plan, each with one variant and one grid of settings."""
    blocks = []
    for block in yaml.safe_load(text):
        grid = dict(block.pop("grid", {}))
        for variant in grid.pop("variant", [block.get("variant")]):
            blocks.append({**block, "variant": variant, "grid": grid})
    return blocks


def read_jobs(text: str) -> list[SweepJob]:
    """Return every training of a plan, in order."""
    return [job for block in read_blocks(text) for job in _jobs(block)]


def _jobs(block: Mapping[str, Any]) -> list[SweepJob]:
    grid = block["grid"]
    rows = itertools.product(*grid.values())
    return [_job(block, dict(zip(grid, row, strict=True))) for row in rows]


def _job(block: Mapping[str, Any], chosen: Mapping[str, Any]) -> SweepJob:
    """Return a training of a block; dotted keys are settings, others are the job's own."""
    fields = {key: value for key, value in block.items() if key not in ("grid", "settings")}
    settings = dict(block.get("settings", {}))
    for key, value in chosen.items():
        (settings if "." in key else fields)[key] = value
    return SweepJob.model_validate({**fields, "settings": settings})


def block_sweep(block: Mapping[str, Any], corpora: Mapping[str, str], device: str) -> BlockSweep:
    """Return a block as a plan of `llmtrain sweep`, whose trials are the block's, in order."""
    jobs = _jobs(block)
    first, is_naive = jobs[0], jobs[0].system == "naive"
    names = {"tokens": "train.tokens", "learning_rate": _RATE}
    grid = {names.get(key, key): tuple(values) for key, values in block["grid"].items()}
    if "train.tokens" not in grid:
        grid["train.tokens"] = (first.tokens,)
    settings: dict[str, Any] = {
        "eval.tokens": first.evaluation_tokens,
        "eval.every_steps": _NEVER,
    }
    settings |= {"eval.sample_every_steps": _NEVER, "device.kind": device}
    if is_naive and _RATE not in grid:
        settings[_RATE] = first.learning_rate
    program = TRAIN
    if is_naive or first.growth or first.variant is not None:
        told = first.model_copy(update={"settings": {}}).model_dump_json()
        program = TrialProgram(_OTHER, (told,))
    plan = SweepPlan(
        name=first.name if first.variant is None else f"{first.name}-{first.variant}",
        profile=first.profile,
        data=(corpora[first.data],),
        settings=settings | dict(block.get("settings", {})),
        grid=grid,
        stop_early=False,
    )
    return BlockSweep(plan, program, jobs)


def _recorded(result: TrialResult, jobs: Sequence[SweepJob], device: str) -> SweepResult | None:
    """Return a trial's result as `results.jsonl` has it; None if it has no loss."""
    if result.outcome != "done" or result.val_bpb is None:
        sys.stderr.write(f"{result.run}: {result.outcome} {result.reason}\n")
        return None
    job = jobs[result.trial]
    profile = load_profile(job.profile, environment={}, assignments=job.assignments).profile
    quality = Quality(
        seconds=result.seconds,
        steps=result.step,
        tokens=result.tokens,
        bits_per_byte=result.val_bpb,
        curve=(),
    )
    return SweepResult(
        job=job,
        quality=quality,
        parameters=shape_of(profile.model).parameters if job.system == "ours" else 0,
        device=device,
        torch=torch.__version__,
    )


def _parser() -> argparse.ArgumentParser:
    parser = program_parser(__file__, __doc__)
    add = parser.add_argument
    add("plan", type=Path, nargs="+", help="YAML files of blocks, in order of importance")
    add("out", type=Path, help="the directory of the sweeps and of results.jsonl")
    add("--data", action="append", default=[], metavar="NAME=PATH", help="a corpus of the plan")
    add("--workers", type=int, default=1, help="trainings at once; they share the cores")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where everything is trained")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
