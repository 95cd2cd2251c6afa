"""Many trainings, several at once on one GPU or CPU, told as lines of JSON.

    python -m tests.benchmarks.sweep tests/benchmarks/sweeps/batch.yaml results.jsonl \\
        --data code=code.jsonl.gz --workers 6

The plan is a list of blocks of jobs: what `SweepJob` has, and under `grid` lists whose every
combination is a job. Jobs that RESULTS has already are not trained again, so that a sweep that was
cut short goes on where it was.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

import yaml

from tests.benchmarks.sweep_job import (
    SweepJob,
    SweepResult,
    prepare_job,
    profile_of,
    read_results,
    run_job,
)
from tests.benchmarks.sweep_table import line
from tests.programs import program_parser


def main(arguments: Sequence[str]) -> int:
    """Every job of the plan has a line in the results, or the time is over."""
    values = _parser().parse_args(arguments)
    jobs = [job for plan in values.plan for job in read_plan(plan.read_text(encoding="utf-8"))]
    done = [result.job for result in read_results(values.results)]
    left = [job for job in jobs if job not in done]
    sys.stderr.write(f"{len(left)} of {len(jobs)} jobs are left\n")
    corpora = dict(item.split("=", 1) for item in values.data)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(values.workers, mp_context=context) as pool:
        _prepare(pool, left, corpora, values)
        for result in _run(pool, left, corpora, values):
            _keep(values.results, result)
    return 0


def read_plan(text: str) -> list[SweepJob]:
    """Every combination of every block."""
    jobs = []
    for block in yaml.safe_load(text):
        grid = block.pop("grid", {})
        for combination in itertools.product(*grid.values()):
            jobs.append(_job(block, dict(zip(grid, combination, strict=True))))
    return jobs


def _job(block: Mapping[str, Any], chosen: Mapping[str, Any]) -> SweepJob:
    """Dotted keys are settings; others are the job's own."""
    fields = dict(block)
    settings = dict(fields.pop("settings", {}))
    for key, value in chosen.items():
        (settings if "." in key else fields)[key] = value
    return SweepJob.model_validate({**fields, "settings": settings})


def _prepare(
    pool: ProcessPoolExecutor,
    jobs: Sequence[SweepJob],
    corpora: Mapping[str, str],
    values: argparse.Namespace,
) -> None:
    """Each text is tokenized once, before anything that needs it."""
    distinct = {(job.data, profile_of(job, corpora).model.vocab_size): job for job in jobs}
    threads = max(1, (os.cpu_count() or 1) // max(1, len(distinct)))
    for future in [pool.submit(prepare_job, j, corpora, threads) for j in distinct.values()]:
        future.result()


def _run(
    pool: ProcessPoolExecutor,
    jobs: Sequence[SweepJob],
    corpora: Mapping[str, str],
    values: argparse.Namespace,
) -> Iterator[SweepResult]:
    begun_s = time.monotonic()
    waiting, running = list(reversed(jobs)), set[Future[SweepResult]]()
    while waiting or running:
        is_over = time.monotonic() - begun_s > values.minutes * 60
        while waiting and not is_over and len(running) < values.workers:
            job = waiting.pop()
            running.add(pool.submit(run_job, job, corpora, values.device, values.threads))
        if not running:
            return
        finished, running = wait(running, return_when=FIRST_COMPLETED)
        for future in finished:
            yield future.result()


def _keep(path: Path, result: SweepResult) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(result.model_dump_json() + "\n")
    sys.stdout.write(line(result) + "\n")
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = program_parser(__file__, __doc__)
    add = parser.add_argument
    add("plan", type=Path, nargs="+", help="YAML files of jobs, in order of importance")
    add("results", type=Path, help="JSON lines, one a training; added to")
    add("--data", action="append", default=[], metavar="NAME=PATH", help="a corpus of the plan")
    add("--workers", type=int, default=1, help="trainings at once")
    add("--threads", type=int, default=1, help="of each training")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where the baseline trains")
    add("--minutes", type=float, default=1e6, help="after which no training is begun")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
