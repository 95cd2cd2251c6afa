"""docs/guides/ci.md does what it says: its shell blocks run, and its workflows run nothing else."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from llmtrain.machine.process_identity import running_process
from llmtrain.train.checkpoint.format import load_state
from llmtrain.train.checkpoint.names import list_checkpoints
from llmtrain.train.run_directory.directory import RunDirectory
from tests.small import ENVIRONMENT

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "guides" / "ci.md").read_text(encoding="utf-8")
SMALL = {
    **ENVIRONMENT,
    "LLMTRAIN_EVAL__EVERY_STEPS": "9999",
    "LLMTRAIN_EVAL__SAMPLE_EVERY_STEPS": "9999",
    "OMP_NUM_THREADS": "1",
}
STEPS = "250"  # enough that the run can be interrupted in mid-way
INSTALL = "pip install --constraint constraints.txt ."


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


SMOKE, FEATURES, PYTHON, JQ, WATCH, NIGHTLY = blocks("bash")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory in which all blocks run, with the text that they name."""
    directory = tmp_path_factory.mktemp("ci")
    (directory / "text").mkdir()
    for name in ("pprint", "textwrap"):
        shutil.copy(Path(os.__file__).parent / f"{name}.py", directory / "text" / f"{name}.py")
    if os.name == "posix":  # `llmtrain` is this checkout's, installed or not
        command = directory / "bin" / "llmtrain"
        command.parent.mkdir()
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m llmtrain "$@"\n')
        command.chmod(0o755)
    return directory


def started(block: str, place: Path) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(place / "bin"), os.environ["PATH"]])
    return subprocess.Popen(
        ["bash", "-c", block],
        cwd=place,
        env={**os.environ, **SMALL, "STEPS": STEPS, "PATH": path, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(block: str, place: Path) -> str:
    with started(block, place) as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


pytestmark = pytest.mark.skipif(
    sys.platform == "win32" or shutil.which("bash") is None, reason="the blocks are for bash"
)


@pytest.mark.slow
def test_a_smoke_training_and_its_numbers(place: Path) -> None:
    run(SMOKE, place)
    document = json.loads((place / "eval.json").read_text())
    (limit,) = document["thresholds"]
    assert (limit["name"], limit["limit"], limit["met"]) == ("max_bpb", 6, True)
    assert f"{document['bits_per_byte']:.3f} bits per byte\nmax_bpb" in run(PYTHON, place)
    if shutil.which("jq") is not None:
        assert "bits per byte\ntrue" in run(JQ, place)


def test_a_job_for_gpus_is_skipped_where_there_is_none(place: Path) -> None:
    import torch

    run(FEATURES, place)
    said = (place / "gpu.txt").read_text()
    assert said.startswith("trained" if torch.cuda.is_available() else "skipped: no GPU")
    assert "plan" in (place / "device.txt").read_text()


@pytest.mark.slow
def test_memory_is_watched_to_the_end_of_a_training(place: Path) -> None:
    assert re.fullmatch(r"\d+ MiB\n", run(WATCH, place))
    samples = (place / "memory.jsonl").read_text().splitlines()
    assert len({json.loads(line)["process"]["pid"] for line in samples}) == 1
    assert RunDirectory(place / "runs" / "watched").exists


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("timeout") is None, reason="timeout is a GNU tool")
def test_a_night_is_as_many_jobs_as_it_takes(place: Path) -> None:
    nightly = RunDirectory(place / "runs" / "nightly")
    with started(NIGHTLY, place) as first:
        while first.poll() is None and not nightly.metrics.exists():
            time.sleep(0.02)
        pid = running_process(nightly.process() or "")
        assert pid is not None
        os.kill(pid, signal.SIGTERM)
        first.communicate(timeout=120)
    assert first.returncode == 0
    assert (place / "nightly.txt").read_text().startswith("saved")
    assert load_state(list_checkpoints(nightly.checkpoints)[-1]).step < int(STEPS)

    run(NIGHTLY, place)
    assert (place / "nightly.txt").read_text() == "trained\n"
    assert load_state(list_checkpoints(nightly.checkpoints)[-1]).step == int(STEPS)


def test_workflows_run_what_the_blocks_do() -> None:
    workflows = [yaml.safe_load(text) for text in blocks("yaml")]
    assert [workflow["name"] for workflow in workflows] == ["smoke", "nightly"]
    lines = {line for block in (SMOKE, NIGHTLY) for line in block.splitlines()} | {INSTALL}
    for workflow in workflows:
        (job,) = workflow["jobs"].values()
        for step in job["steps"]:
            assert set(step) <= {"uses", "with", "run"}
            assert set(step.get("run", "").splitlines()) <= lines
    assert INSTALL.removeprefix("pip install ").removesuffix(" .") in (
        ROOT / "README.md"
    ).read_text(encoding="utf-8")
