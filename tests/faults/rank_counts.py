"""Sharded runs at several numbers of ranks: `python -m tests.faults.rank_counts`.

With Muon and with AdamW: are the losses of 2 and 4 sharded ranks those of one process, and does
what four ranks saved in the middle go on at two and at one as at four? Over gloo, in fp32.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from llmtrain.train.run_directory.directory import RunDirectory
from tests.faults.tiny import furnish

_STEPS = 30
_TOLERANCE = 1e-5  # in nats per token


def train(out: Path, ranks: int, optimizer: str, *options: str) -> list[float]:
    """Train so many steps; return the loss of each."""
    settings = (
        f"optim.name={optimizer}",
        f"train.steps={_STEPS}",
        "train.tokens_per_step=512",
        f"checkpoint.every_steps={_STEPS // 2}",
        f"device.processes={ranks}",
        f"device.sharding={'shard' if ranks > 1 else 'auto'}",
        "device.compile=false",
        "eval.sample_every_steps=null",
    )
    flags = [word for setting in settings for word in ("--set", setting)]
    command = [sys.executable, "-m", "llmtrain", "train", "-p", "tiny.yaml", "--out", str(out)]
    ended = subprocess.run(
        [*command, *flags, *options], capture_output=True, text=True, check=False
    )
    if ended.returncode:
        raise SystemExit(f"{ranks} ranks with {optimizer}: {ended.stderr[-2000:]}")
    return [line["loss"] for line in RunDirectory(out).read_metrics() if "loss" in line]


def compared(directory: Path, optimizer: str) -> Iterator[tuple[str, float]]:
    """Yield what was compared, and the largest difference of a loss."""
    alone = train(directory / f"{optimizer}-1", 1, optimizer)
    for ranks in (2, 4):
        losses = train(directory / f"{optimizer}-{ranks}", ranks, optimizer)
        yield f"{optimizer}, {ranks} ranks beside one process", _worst(losses, alone)
    four = directory / f"{optimizer}-4"
    for ranks in (2, 1):
        copy = directory / f"{optimizer}-4-to-{ranks}"
        shutil.copytree(four, copy)
        shutil.rmtree(copy / "checkpoints" / f"step-{_STEPS:08d}")
        losses = train(copy, ranks, optimizer, "--resume", "auto")
        yield f"{optimizer}, saved by 4 ranks, resumed by {ranks}", _worst(losses, alone)


def _worst(ours: Sequence[float], theirs: Sequence[float]) -> float:
    assert len(ours) == len(theirs) == _STEPS
    return max(abs(a - b) for a, b in zip(ours, theirs, strict=True))


def main() -> int:
    """0 where all losses agree."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--optimizers", default="muon,adamw")
    options = parser.parse_args()
    worst = 0.0
    with tempfile.TemporaryDirectory(prefix="llmtrain-ranks-") as directory:
        furnish(Path(directory))
        os.chdir(directory)
        for optimizer in options.optimizers.split(","):
            for what, difference in compared(Path(directory), optimizer):
                sys.stdout.write(f"{what:<45} {difference:.1e}\n")
                sys.stdout.flush()
                worst = max(worst, difference)
        os.chdir("/")
    return 0 if worst <= _TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
