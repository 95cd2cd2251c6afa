"""What sweeps found, a line a training: `python -m tests.benchmarks.sweep_table RESULTS [NAME]`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.sweep_job import SweepResult, read_results


def main(arguments: Sequence[str]) -> int:
    """The results whose name starts as asked are on stdout, by text, size and tokens."""
    path, *names = arguments
    found = [r for r in read_results(Path(path)) if r.job.name.startswith(tuple(names) or "")]
    for result in sorted(found, key=_order):
        sys.stdout.write(line(result) + "\n")
    return 0


def _order(result: SweepResult) -> tuple[str, str, str, int, float]:
    job = result.job
    return job.name, job.data, job.profile, job.tokens, result.quality.bits_per_byte


def line(result: SweepResult) -> str:
    """One training: bits a byte, what was trained, and what was changed."""
    job, found = result.job, result.quality
    changed = [f"{key}={value}" for key, value in job.settings.items()]
    if job.system == "naive":
        changed.append(f"learning_rate={job.learning_rate:g}")
    if job.variant is not None:
        changed.append(job.variant)
    if job.growth:
        changed.append(f"growth={list(job.growth)}")
    size, million = Path(job.profile).stem, found.tokens / 1e6
    return (
        f"{found.bits_per_byte:.4f}  {job.name} {size} {job.data} {job.system} "
        f"{million:.2f}M tokens {found.steps} steps {found.seconds:.0f} s  {' '.join(changed)}"
    ).rstrip()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
