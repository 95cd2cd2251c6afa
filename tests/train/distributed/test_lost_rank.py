"""A rank that is killed in a round of local steps costs no more than that round."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from llmtrain.train.run_directory.directory import RunDirectory
from tests.pinned import pinned_options
from tests.train.harness import LIMIT_S, Files, Start

if sys.platform == "win32":
    pytest.skip("kills as POSIX does", allow_module_level=True)

EVERY, STEPS, TOKENS = 5, 25, 256
SETTINGS = (f"train.sync_every={EVERY}", f"checkpoint.every_steps={EVERY}", "eval.every_steps=500")
TORCHRUN = ("--standalone", "--nproc-per-node", "2", "--max-restarts", "2")
# Rank 1 kills itself once: in its optimizer's step, or when half of an exchange is sent.
VANISHING = f"""
import os, signal, sys, time
from pathlib import Path
import torch.distributed as dist
from llmtrain.cli.app import main
from llmtrain.engine import train_run

build, rank, exchange = train_run.build_run, int(os.environ["RANK"]), dist.all_to_all_single
step, place = int(os.environ["VANISHES_AT"]), os.environ["VANISHES_IN"]
begun = step - 1 - (step - 1) % {EVERY}

def vanish():
    saved = Path(f"run/checkpoints/step-{{begun:08d}}")
    while begun and not saved.exists():  # the save of the round before is on the disk
        time.sleep(0.01)
    Path("vanished").write_text(str(step))
    os.kill(os.getpid(), signal.SIGKILL)

def vanishing(*args):
    run = build(*args)

    def trained(*_):
        with open(f"rank{{rank}}.txt", "a") as file:
            print(run.position.step + 1, file=file)
        if place == "step" and is_due():
            vanish()

    def exchanged(*arguments, **options):
        exchange(*arguments, **options)
        if place == "exchange" and is_due():
            vanish()

    def is_due():
        done = run.position.step + (place == "step")
        return rank == 1 and done == step and not Path("vanished").exists()

    run.optimizer.register_step_post_hook(trained)
    dist.all_to_all_single = exchanged
    return run

train_run.build_run = vanishing
main()
"""


def lost_steps(place: Path, rank: int) -> int:
    """How many of a rank's steps were taken for nothing."""
    taken = [int(line) for line in (place / f"rank{rank}.txt").read_text().split()]
    assert sorted(set(taken)) == list(range(1, STEPS + 1)), "each step is trained"
    return len(taken) - STEPS


@pytest.mark.slow
@pytest.mark.parametrize("where", ["step", "exchange"])
def test_a_rank_that_vanishes_costs_each_rank_a_round_at_most(
    where: str, start: Start, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = random.Random(where).randrange(1, STEPS) if where == "step" else 3 * EVERY
    (place / "vanishing.py").write_text(VANISHING)
    monkeypatch.setenv("VANISHES_AT", str(step))
    monkeypatch.setenv("VANISHES_IN", where)
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    training = ("train", "-p", "tiny.yaml", *pinned_options(), "--steps", STEPS, *settings)
    process = start(
        *TORCHRUN, "vanishing.py", *training, "--out", "run", module=("torch.distributed.run",)
    )
    _, err = process.communicate(timeout=LIMIT_S)

    assert process.returncode == 0, err
    assert (place / "vanished").read_text() == str(step)
    begun = step - 1 - (step - 1) % EVERY
    record = RunDirectory(place / "run").read_record()
    assert [session["from_step"] for session in record["sessions"]] == [0, begun]
    assert lost_steps(place, 1) == step - begun <= EVERY, "its own, and no more"
    assert lost_steps(place, 0) <= EVERY
    logged = [line for line in Files(place / "run").course() if "loss" in line]
    assert [(line["step"], line["tokens"]) for line in logged] == [
        (each, each * TOKENS) for each in range(1, STEPS + 1)
    ]
