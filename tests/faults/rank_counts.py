"""Sharded runs at several numbers of ranks: `python -m tests.faults.rank_counts`.

With Muon and with AdamW: are the losses of 2 and 4 sharded ranks those of one process, also where
each of two machines (pairs of ranks of this one) has a replica, and does what four ranks saved in
the middle go on at two and at one as at four? Over gloo, in fp32.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from llmtrain.train.run_directory.directory import RunDirectory
from tests.faults.tiny import furnish

_STEPS = 30
_TOLERANCE = 1e-5  # in nats per token


def train(out: Path, ranks: int, optimizer: str, *options: str, machines: int = 1) -> list[float]:
    """Train so many steps; return the loss of each."""
    sharding = "hybrid" if machines > 1 else "shard" if ranks > 1 else "auto"
    settings = (
        f"optim.name={optimizer}",
        f"train.steps={_STEPS}",
        "train.tokens_per_step=512",
        f"checkpoint.every_steps={_STEPS // 2}",
        f"device.processes={ranks}",
        f"device.sharding={sharding}",
        "device.compile=false",
        "eval.sample_every_steps=null",
    )
    flags = [word for setting in settings for word in ("--set", setting)]
    command = [sys.executable, "-m", "llmtrain", "train", "-p", "tiny.yaml", "--out", str(out)]
    started = [
        subprocess.Popen(
            [*command, *flags, *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=each,
        )
        for each in _environments(ranks, machines)
    ]
    for process in started:
        _, err = process.communicate()
        if process.returncode:
            raise SystemExit(f"{ranks} ranks with {optimizer}: {err[-2000:]}")
    return [line["loss"] for line in RunDirectory(out).read_metrics() if "loss" in line]


def _environments(ranks: int, machines: int) -> list[dict[str, str]]:
    """Return those of what is started: one command, or the ranks of several machines."""
    if machines == 1:
        return [dict(os.environ)]
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    local = ranks // machines
    shared = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(local)}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    places = ({"RANK": str(rank), "LOCAL_RANK": str(rank % local)} for rank in range(ranks))
    return [os.environ | shared | place for place in places]


def compared(directory: Path, optimizer: str) -> Iterator[tuple[str, float]]:
    """Yield what was compared, and the largest difference of a loss."""
    alone = train(directory / f"{optimizer}-1", 1, optimizer)
    for ranks in (2, 4):
        losses = train(directory / f"{optimizer}-{ranks}", ranks, optimizer)
        yield f"{optimizer}, {ranks} ranks beside one process", _worst(losses, alone)
    losses = train(directory / f"{optimizer}-2x2", 4, optimizer, machines=2)
    yield f"{optimizer}, 2 machines of 2 ranks beside one process", _worst(losses, alone)
    for by, name in (("4 ranks", "4"), ("2 machines", "2x2")):
        for ranks in (2, 1):
            copy = directory / f"{optimizer}-{name}-to-{ranks}"
            shutil.copytree(directory / f"{optimizer}-{name}", copy)
            shutil.rmtree(copy / "checkpoints" / f"step-{_STEPS:08d}")
            losses = train(copy, ranks, optimizer, "--resume", "auto")
            yield f"{optimizer}, saved by {by}, resumed by {ranks}", _worst(losses, alone)


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
                sys.stdout.write(f"{what:<52} {difference:.1e}\n")
                sys.stdout.flush()
                worst = max(worst, difference)
        os.chdir("/")
    return 0 if worst <= _TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
