"""One measurement in a process of its own: `python -m tests.benchmarks.worker WHAT JOB RESULT`.

JOB and RESULT are files of JSON; torch is imported here and never in the process that compares,
because a child's peak memory begins with what its parent held.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.benchmarks.documents import (
    PeakJob,
    Peaks,
    Prepared,
    PrepareJob,
    Quality,
    QualityJob,
    Trained,
    TrainJob,
)


def main(arguments: list[str]) -> None:
    """The job is done and RESULT says what came out."""
    what, job, result = arguments
    document = _work(what, Path(job).read_text(encoding="utf-8"))
    Path(result).write_text(document.model_dump_json(), encoding="utf-8")


def _work(what: str, job: str) -> Prepared | Peaks | Trained | Quality:
    if what == "prepare":
        from tests.benchmarks.tokens import prepare_tokens

        return prepare_tokens(PrepareJob.model_validate_json(job))
    if what == "peak":
        from tests.benchmarks.peak import measure_peaks

        return measure_peaks(PeakJob.model_validate_json(job))
    if what == "quality":
        from tests.benchmarks.quality import train_for_quality

        return train_for_quality(QualityJob.model_validate_json(job))
    return train_system(TrainJob.model_validate_json(job))


def train_system(job: TrainJob) -> Trained:
    """One of the systems that are not llmtrain has trained."""
    import torch

    torch.set_num_threads(job.threads)
    torch.manual_seed(job.seed)
    if job.system == "naive":
        from tests.benchmarks.naive import train_naive

        return train_naive(job)
    if job.system == "nanogpt":
        from tests.benchmarks.nanogpt import train_nanogpt

        return train_nanogpt(job)
    from tests.benchmarks.hf import train_hf

    return train_hf(job, "fp32" if job.system == "hf-fp32" else "bf16")


if __name__ == "__main__":
    main(sys.argv[1:])
