"""Many kills across one training: `python -m tests.faults.kills --kills 100 [--ranks 2]`.

Prints where they struck, and ends with 1 where the killed run is not the uninterrupted one.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from llmtrain.engine.prove_resume.proof import Proof, ProofOptions, prove_resume
from llmtrain.engine.request import TrainRequest
from llmtrain.profile.setting import Setting
from llmtrain.progress import Note
from llmtrain.train.events import Event
from tests.faults.tiny import furnish


def prove(
    kills: int,
    steps: int,
    ranks: int,
    seed: int,
    sharding: str = "auto",
    sync_every: int = 1,
    sync_delay: int = 0,
    device: str = "cpu",
) -> Proof:
    """The tiny profile in the current directory, killed so often."""
    flags = {
        "device.processes": Setting(ranks, "--ranks"),
        "device.sharding": Setting(sharding, "--sharding"),
        "train.sync_every": Setting(sync_every, "--sync-every"),
        "train.sync_delay": Setting(sync_delay, "--sync-delay"),
    }
    if device != "cpu":
        # A compiler at each start would take longer than the run.
        flags |= {"device.kind": Setting(device, "--device"), "device.compile": Setting(False, "")}
    request = TrainRequest(profile="tiny.yaml", flags=flags)
    return prove_resume(request, ProofOptions(kills, steps, seed), _tell, lambda: None)


def _tell(event: Event) -> None:
    if isinstance(event, Note):
        sys.stderr.write(f"{time.strftime('%H:%M:%S')} {event.text}\n")


def report(proof: Proof) -> str:
    """What the kills did, as text."""
    rows = [
        ("kills", str(len(proof.kills))),
        ("struck in", _counted(Counter(kill.phase for kill in proof.kills))),
        ("victims", _counted(Counter(kill.victim for kill in proof.kills))),
        ("all gone after", f"{max(kill.gone_after_s for kill in proof.kills):.1f} s at most"),
        ("resumes", str(len(proof.kills))),
        ("steps", f"{proof.steps} in {proof.processes} processes"),
        ("model", f"{proof.uninterrupted.model_sha256} {proof.interrupted.model_sha256}"),
        (
            "optimizer",
            f"{proof.uninterrupted.optimizer_sha256} {proof.interrupted.optimizer_sha256}",
        ),
        ("equal", str(proof.is_equal)),
        ("first difference", str(proof.first_difference)),
    ]
    return "\n".join(f"{name:<17}{value}" for name, value in rows) + "\n"


def _counted(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counter.most_common())


def main() -> int:
    """0 where all kills were delivered and all trainings ended equal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--sharding", choices=("auto", "replicate", "shard"), default="auto")
    parser.add_argument("--sync-every", type=int, default=1)
    parser.add_argument("--sync-delay", type=int, default=0)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--steps", type=int, default=0, help="default: 4 a kill")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="llmtrain-kills-") as directory:
        furnish(Path(directory))
        os.chdir(directory)
        steps = options.steps or 4 * options.kills
        proof = prove(
            options.kills,
            steps,
            options.ranks,
            options.seed,
            options.sharding,
            options.sync_every,
            options.sync_delay,
            options.device,
        )
        os.chdir("/")
    sys.stdout.write(report(proof))
    return 0 if proof.is_equal and len(proof.kills) == options.kills else 1


if __name__ == "__main__":
    sys.exit(main())
