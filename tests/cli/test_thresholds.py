"""A limit that is not met: everything is done and shown as ever, and then exit code 6."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmtrain.cli.thresholds import at_most, require_met
from llmtrain.errors import ThresholdError
from llmtrain.train.checkpoint.format import load_state
from llmtrain.train.checkpoint.names import list_checkpoints
from tests.cli.conftest import Command, ProcessCommand

TRAIN = ("train", "-p", "tiny.yaml", "--out", "run")


def test_eval(llmtrain: Command, trained: Path) -> None:
    plain = llmtrain("eval", trained, "--json").document
    bpb = plain["bits_per_byte"]
    missed = llmtrain("eval", trained, "--max-bpb", bpb - 0.01, "--json")
    met = llmtrain("eval", trained, "--max-bpb", bpb, "--json")

    assert (missed.code, met.code) == (6, 0)
    for outcome, limit, is_met in ((missed, bpb - 0.01, False), (met, bpb, True)):
        document = outcome.document
        assert document.pop("thresholds") == [
            {"name": "max_bpb", "limit": limit, "measured": bpb, "met": is_met}
        ]
        assert document == plain
    assert f"{bpb:.4f}" in missed.err
    assert "--max-bpb" in missed.err
    assert missed.err.count("error: ") == missed.err.count("hint: ") == 1
    assert "error" not in met.err


def test_results_as_lines_are_whole(llmtrain: Command, trained: Path) -> None:
    plain, missed = llmtrain("eval", trained), llmtrain("eval", trained, "--max-bpb", 0.1)
    assert missed.out == plain.out
    assert (plain.code, missed.code) == (0, 6)


def test_memory_predicted(llmtrain: Command) -> None:
    memory = ("memory", "-p", "tiny.yaml")
    peak = llmtrain(*memory, "--json").document["prediction"]["total_bytes"]
    missed = llmtrain(*memory, "--fail-over", peak - 1, "--json")

    assert missed.code == 6
    assert missed.document["prediction"]["total_bytes"] == peak
    assert missed.document["thresholds"] == [
        {"name": "fail_over", "limit": peak - 1, "measured": peak, "met": False}
    ]
    assert str(peak) in missed.err
    assert llmtrain(*memory, "--fail-over", peak).code == 0
    assert "fits:" in llmtrain(*memory, "--fail-over", "1MiB").out


def test_memory_in_use(llmtrain: Command) -> None:
    missed = llmtrain("memory", "--fail-over", "1MiB", "--json")
    (threshold,) = missed.document["thresholds"]
    part = "system" if missed.document["cgroup"] is None else "cgroup"
    assert missed.code == 6
    assert threshold["measured"] == missed.document[part]["used_bytes"]
    assert llmtrain("memory", "--fail-over", "1000TiB").code == 0

    own = llmtrain("memory", "--pid", os.getpid(), "--fail-over", "1MiB", "--json")
    assert own.document["thresholds"][0]["measured"] == own.document["process"]["used_bytes"]
    assert f"process {os.getpid()}" in own.err


def test_what_does_not_fit_is_worse(llmtrain: Command) -> None:
    too_large = ("--set", "model.num_layers=10000000")
    assert llmtrain("memory", "-p", "tiny.yaml", *too_large, "--fail-over", "1MiB").code == 3


def test_train(llmtrain: Command, place: Path) -> None:
    missed = llmtrain(*TRAIN, "--max-loss", 0.5, "--json")

    document = missed.document
    assert missed.code == 6
    assert document["thresholds"] == [
        {"name": "max_loss", "limit": 0.5, "measured": document["val_loss"], "met": False}
    ]
    assert f"{document['val_loss']:.4f}" in missed.err
    assert "done after 20 steps" in missed.err
    assert load_state(list_checkpoints(place / "run" / "checkpoints")[-1]).finished
    # Asked again of a run that is finished.
    again = ("train", "--out", "run", "--resume", "auto", "-q")
    assert llmtrain(*again, "--max-loss", document["val_loss"] + 0.001).code == 0
    assert llmtrain(*again, "--max-loss", 0.5).code == 6
    assert llmtrain(*again).code == 0


def test_a_loss_that_nobody_knows_is_not_below(capsys: pytest.CaptureFixture[str]) -> None:
    for loss in (None, float("nan"), float("inf")):
        [threshold] = at_most("--max-loss", 3.5, loss, is_named="it", unknown="nobody knows")
        assert (threshold.name, threshold.limit) == ("max_loss", 3.5)
        assert (threshold.measured, threshold.met) == (None, False)
        with pytest.raises(ThresholdError, match=r"nobody knows, so --max-loss 3\.5 is not met"):
            require_met([threshold], hint="")


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGTERM")
def test_interrupted_is_worse(place: Path) -> None:
    command = [sys.executable, "-m", "llmtrain", *TRAIN, "--steps", "100000", "--json"]
    calm = ["--set", "eval.every_steps=99999", "--set", "eval.sample_every_steps=99999"]
    plain = ("attention=sdpa", "block_kernels=torch", "loss=chunks", "compile=false")
    for kernel in plain:  # nothing is compiled, so that it begins at once
        calm += ["--set", f"device.{kernel}"]
    with subprocess.Popen(
        [*command, *calm, "--max-loss", "0.001"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        while process.poll() is None and not (place / "run" / "metrics.jsonl").exists():
            time.sleep(0.05)
        process.terminate()
        out, _ = process.communicate(timeout=200)
    assert process.returncode == 75
    document = json.loads(out)
    assert document["stopped"] == "interrupted"
    assert "thresholds" not in document


@pytest.mark.slow
def test_launched_ranks_tell_it_once(process: ProcessCommand, place: Path) -> None:
    done = process(*TRAIN, "--steps", 2, "--nproc", 2, "--max-loss", 0.5, "--json", "-q")
    document = json.loads(done.stdout)
    assert done.returncode == 6
    assert document["thresholds"][0]["met"] is False
    assert done.stderr.count(b"error: ") == 1
    assert b"--max-loss" in done.stderr


def test_features(llmtrain: Command) -> None:
    info = ("device", "info", "-p", "tiny.yaml", "--force-cpu")
    met = llmtrain(*info, "--require", "cpu,cores:1", "--json")
    assert met.code == 0
    assert [row["met"] for row in met.document["thresholds"]] == [True, True]

    missed = llmtrain(*info, "--require", "cpu,mps,cores:100000,memory:1000TiB", "--json")
    rows = {row["name"]: row for row in missed.document["thresholds"]}
    assert missed.code == 6
    assert [row["met"] for row in rows.values()] == [True, False, False, False]
    assert rows["require mps"]["limit"] is True
    assert rows["require cores"]["limit"] == 100000
    assert rows["require cores"]["measured"] == missed.document["cpu"]["usable_cores"]
    assert missed.err.count("error: ") == 1
    for words in ("--require mps is not met", "cores:100000", "memory:1000 TiB"):
        assert words in missed.err
    assert "plan" in llmtrain(*info, "--require", "mps").out
    assert "thresholds" not in llmtrain(*info, "--json").document


@pytest.mark.parametrize("limit", ["nan", "inf", "-1", "0", "lots", "-inf", ""])
def test_a_limit_that_is_none_is_refused_before_anything_is_done(
    limit: str, llmtrain: Command, trained: Path, place: Path
) -> None:
    for arguments in (
        ("eval", trained, "--max-bpb", limit),
        (*TRAIN, "--max-loss", limit),
        ("memory", "--fail-over", limit),
        ("memory", "-p", "tiny.yaml", "--fail-over", limit),
    ):
        outcome = llmtrain(*arguments, "--json")
        assert outcome.code == 2
        assert outcome.document["error"]["code"] == 2
        assert arguments[-2] in outcome.err
    assert not (place / "run").exists()


def test_unknown_features_and_senseless_pairs_are_refused(llmtrain: Command, place: Path) -> None:
    asked = llmtrain("device", "info", "--require", "bf16,cuad")
    assert asked.code == 2
    assert "did you mean cuda?" in asked.err
    assert llmtrain(*TRAIN, "--dry-run", "--max-loss", 3).code == 2
    assert llmtrain("memory", "--watch", "--fail-over", "1GiB").code == 2


def test_thresholds_are_explained_in_the_help(llmtrain: Command) -> None:
    flags = {"train": "--max-loss", "eval": "--max-bpb", "memory": "--fail-over"}
    for command, flag in {**flags, "device info": "--require"}.items():
        text = " ".join(llmtrain(*command.split(), "--help").out.split())
        assert flag in text
        assert "Exit with 6" in text


def test_a_run_that_was_copied_is_evaluated_too(
    llmtrain: Command, trained: Path, place: Path
) -> None:
    shutil.copytree(trained / "checkpoints" / "step-00000020", place / "model")
    outcome = llmtrain("eval", "model", "--data", "corpus.txt", "--max-bpb", 0.1, "--json")
    assert outcome.code == 6
    assert str(Path("model")) in outcome.err
