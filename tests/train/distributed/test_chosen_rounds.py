"""`train.sync_every: auto`: ranks that meet decide it once, and the run keeps what they decided."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from llmtrain.train.run_directory.directory import RunDirectory
from tests.pinned import pinned_options
from tests.train.harness import (
    LIMIT_S,
    Files,
    InProcessTrainer,
    Llmtrain,
    Start,
    steps_of,
    wait_until,
)

KEY = "train.sync_every"
TRAIN = ("train", "-p", "tiny.yaml", *pinned_options(), "--steps", 60)
AUTO = ("--set", f"{KEY}=auto")
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")
# As far as these ranks know, their network carries a byte a second.
SLOW = """
from llmtrain.cli.app import main
from llmtrain.engine import agreed_plan
from llmtrain.plan.rounds import Exchange

agreed_plan.exchange_between = lambda *_: Exchange(0.0, 1.0)
main()
"""


def recorded(run: Path) -> tuple[Any, str, dict[str, Any]]:
    """The run's steps between two exchanges, their origin, and the decision in its plan."""
    record = RunDirectory(run).read_record()
    return (
        record["profile"]["train"]["sync_every"],
        record["origins"][KEY],
        record["plan"]["sync_every"],
    )


def saved(run: Path) -> dict[str, bytes]:
    """Weights and optimizer state of the last checkpoint, by file."""
    files = Files(run).newest.glob("*.safetensors")
    return {file.name: file.read_bytes() for file in files}


def test_one_process_averages_nothing(train: InProcessTrainer, place: Path) -> None:
    train(place / "run", train__sync_every="auto")
    reason = "one process trains alone"
    assert recorded(place / "run") == (1, f"chosen: {reason}", {"value": 1, "reason": reason})


def test_two_ranks_time_an_exchange_between_them(start: Start, place: Path) -> None:
    process = start(*TRAIN, *AUTO, "--nproc", 2, "--out", "run")
    _, err = process.communicate(timeout=LIMIT_S)

    assert process.returncode == 0, err
    number, origin, decision = recorded(place / "run")
    assert number == decision["value"]
    assert number in (1, *range(10, 31))
    assert "between these ranks, a step" in decision["reason"]
    assert origin == f"chosen: {decision['reason']}"
    assert " ".join(f"{KEY} is {number}: {decision['reason']}".split()) in " ".join(err.split())


def test_rounds_of_a_run_from_before_they_were_a_decision_stay(
    train: InProcessTrainer, llmtrain: Llmtrain, place: Path
) -> None:
    train(place / "run", train__sync_every=5)
    run = RunDirectory(place / "run")
    record = run.read_record()
    del record["plan"]["sync_every"]
    run.write_record(record)
    shown = llmtrain(*TRAIN, "--out", "run", "--resume", "auto", "--dry-run", "--json")
    assert shown.code == 0, shown.err
    plan = json.loads(shown.out)["plan"]
    assert (plan["sync_every"]["value"], plan["sync_every"]["reason"]) == (5, "asked for")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there is no such signal")
def test_a_resume_keeps_what_was_decided_bit_for_bit(start: Start, place: Path) -> None:
    """On a slow network; the ranks that resume would find a fast one."""
    (place / "slow.py").write_text(SLOW)
    process = start("slow.py", *TRAIN, *AUTO, "--out", "run", module=TORCHRUN)
    wait_until(lambda: steps_of(place / "run") > 3, process)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=LIMIT_S)
    before = recorded(place / "run")
    assert before[0] == 30
    assert Files(place / "run").checkpoints == ["step-00000030"]

    resumed = start(*TRAIN, *AUTO, "--out", "run", "--resume", "auto", "--nproc", 2)
    _, err = resumed.communicate(timeout=LIMIT_S)
    assert resumed.returncode == 0, err
    assert "not bitwise" not in err
    assert recorded(place / "run") == before

    whole = start(*TRAIN, "--set", f"{KEY}=30", "--out", "whole", "--nproc", 2)
    assert whole.wait(LIMIT_S) == 0
    assert Files(place / "run").course() == Files(place / "whole").course()
    assert saved(place / "run") == saved(place / "whole")


def test_a_resume_does_not_decide_anew_and_is_not_told_another_number(
    train: InProcessTrainer, llmtrain: Llmtrain, place: Path
) -> None:
    train(place / "run", train__sync_every="auto")
    assert llmtrain(*TRAIN, *AUTO, "--out", "run", "--resume", "auto").code == 0
    assert recorded(place / "run")[0] == 1
    refused = llmtrain("train", "--out", "run", "--resume", "auto", "--set", f"{KEY}=30")
    assert refused.code == 2
    assert f"{KEY} is 1 in run and 30 now" in refused.err
