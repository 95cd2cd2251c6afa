"""Two ranks of which one is short of memory: `python -m tests.faults.memory_ranks`.

An allocation that fails on one rank ends both, and says what to set; what a look finds on one rank
is done by both at one step. Exits 1 where anything else happened.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llmtrain.train.run_directory.directory import RunDirectory
from tests.checkout import import_path

_RUN_LIMIT_S = 300
_PROFILE = """\
name: tiny
model: {vocab_size: 400, hidden_size: 32, intermediate_size: 64, num_layers: 2, num_heads: 2,
        context: 32}
data: {sources: [corpus.txt]}
train: {tokens_per_step: 256, steps: 6, log_every_steps: 1}
eval: {every_steps: 10, tokens: 512, sample_every_steps: null}
device: {kind: cpu, threads: 1}
"""


@dataclass(frozen=True)
class Case:
    """What happens on which rank, and what has to come of it."""

    rank: int
    how: str
    says: tuple[str, ...]
    checkpoint: str | None
    micro_batch: int
    does_end_well: bool = False


def cases() -> Iterator[Case]:
    """An allocation that fails, and both answers to a look, on either rank."""
    smaller, end = "from here on micro-batch 2 × 2", "stopped before memory ran out"
    for rank in (0, 1):
        out = f"error: rank {rank}: 64.00 MiB could not be allocated in step 3 with micro-batch 4"
        hint = "--resume auto --set train.micro_batch=2"
        yield Case(rank, "out", (out, hint), None, 4)
        yield Case(rank, "smaller", (smaller,), "step-00000006", 2, does_end_well=True)
        yield Case(rank, "stop", (end, "saved"), "step-00000002", 4)


def problem_of(case: Case, directory: Path) -> str | None:
    """What went otherwise than it has to."""
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    ranks = ("-m", "tests.faults.short_rank", str(case.rank), case.how)
    arguments = ("train", "-p", "tiny.yaml", "--out", f"{case.how}-{case.rank}")
    done = subprocess.run(
        [sys.executable, *torchrun, *ranks, *arguments],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": import_path(), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=_RUN_LIMIT_S,
        check=False,
    )
    run = RunDirectory(directory / arguments[-1])
    missing = [text for text in case.says if text not in done.stderr]
    if missing or (done.returncode == 0) != case.does_end_well:
        return f"code {done.returncode}, not said: {missing}\n{done.stderr}"
    found = [path.name for path in run.checkpoints.iterdir()] if run.checkpoints.is_dir() else []
    if found != ([case.checkpoint] if case.checkpoint else []):
        return f"checkpoints {found}"
    micro_batch = run.read_record()["plan"]["micro_batch"]["value"]
    return None if micro_batch == case.micro_batch else f"micro-batch {micro_batch}"


def _furnish(directory: Path) -> None:
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(2, 7))) for _ in range(300)]
    lines = (" ".join(draw.choices(words, k=9)) for _ in range(800))
    (directory / "corpus.txt").write_text("\n".join(lines), encoding="utf-8")
    (directory / "tiny.yaml").write_text(_PROFILE, encoding="utf-8")


def main() -> int:
    """A line a case is told; returns the exit code."""
    problems = 0
    with tempfile.TemporaryDirectory(prefix="llmtrain-ranks-") as directory:
        _furnish(Path(directory))
        for case in cases():
            problem = problem_of(case, Path(directory))
            problems += problem is not None
            sys.stdout.write(f"rank {case.rank} {case.how:<8} {problem or 'as it has to'}\n")
            sys.stdout.flush()
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
