"""Every command of docs/guides/experiments.md and agents.md, on a model that trains in a second."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llmtrain.cli.app import run
from tests.checkout import ROOT
from tests.small import ENVIRONMENT

GUIDES = ROOT / "docs" / "guides"
EXPERIMENTS = (GUIDES / "experiments.md").read_text(encoding="utf-8")
AGENTS = (GUIDES / "agents.md").read_text(encoding="utf-8")
TASK = {
    "task": "my_task",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "rows.jsonl"}},
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{answer}}",
    "metric_list": [{"metric": "acc"}],
}


def commands(page: str) -> list[str]:
    """The lines of the page's shell blocks, without comments."""
    blocks = re.findall(r"^```bash\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    lines = [re.sub(r"\s+#.*", "", line) for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def shortened(command: str) -> list[str]:
    """The words of a command that trains a few steps where it would train for minutes."""
    words = shlex.split(re.sub(r"--time \S+", "--steps 6", command))
    if words[:2] == ["llmtrain", "eval"] and "--tasks" in words and "--limit" not in words:
        words += ["--limit", "3"]
    return words[1:]


def is_for_here(command: str) -> bool:
    """Whether a command is ours, ends by itself, and has its library."""
    if not command.startswith("llmtrain ") or "--watch" in command:
        return False  # pip and tensorboard; test_runs_report.py watches a run
    needed = {"--tasks": "lm_eval", "runs report": "matplotlib", "tensorboard": "tensorboard"}
    return all(importlib.util.find_spec(n) for words, n in needed.items() if words in command)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The text, plan, task and models that the pages name."""
    monkeypatch.chdir(tmp_path)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache", raising=False)
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(2, 7))) for _ in range(300)]
    (tmp_path / "notes").mkdir()
    for number in range(120):
        text = "\n".join(" ".join(draw.choices(words, k=9)) for _ in range(20))
        (tmp_path / "notes" / f"{number}.txt").write_text(text)
    (tmp_path / "test.jsonl").write_text(json.dumps({"text": " ".join(words)}) + "\n")
    plan = "settings: {train.steps: 6}\ngrid: {optim.learning_rate: [0.005, 0.02]}\n"
    (tmp_path / "plan.yaml").write_text(f"profile: cpu-tiny\ndata: [notes/]\n{plan}")
    (tmp_path / "my_task.yaml").write_text(json.dumps(TASK))
    row = {"question": "is it", "choices": [" so", " no"], "answer": 0}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    return tmp_path


@pytest.mark.slow
def test_every_command_of_the_page_on_experiments_runs(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in filter(is_for_here, commands(EXPERIMENTS)):
        if "other-run" in command or "./model" in command or "runs/failed" in command:
            for name in ("other-run", "failed"):
                shutil.copytree(place / "runs" / "base", place / "runs" / name, dirs_exist_ok=True)
            newest = max((place / "runs" / "base" / "checkpoints").glob("step-????????"))
            shutil.copytree(newest, place / "model", dirs_exist_ok=True)
        code = run(shortened(command))
        assert code == 0, (command, capsys.readouterr().err)


@pytest.mark.slow
def test_every_command_for_programs_prints_one_document(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    documents: dict[str, dict[str, object]] = {}
    for command in filter(is_for_here, commands(AGENTS)):
        capsys.readouterr()
        code = run(shortened(command))
        out, err = capsys.readouterr()
        assert (code, err if "--quiet" in command else "") == (0, ""), command
        documents[command] = json.loads(out)
    (trained,) = [d for c, d in documents.items() if "--out runs/base " in c]
    assert {"val_bpb", "run", "checkpoint"} <= set(trained)
    compared = [d for c, d in documents.items() if "runs compare" in c]
    for document in compared:
        (verdict,) = document["verdicts"]  # type: ignore[misc]
        assert verdict["outcome"] in re.findall(r"^\| `(.*)` \|", AGENTS, re.MULTILINE)
        assert {"difference_bpb", "margin_bpb", "noise"} <= set(verdict)
    (sweep,) = [d for c, d in documents.items() if "llmtrain sweep" in c]
    assert {"trials", "best", "command"} <= set(sweep)
    lines = (place / "sweeps" / "plan" / "results.jsonl").read_text().splitlines()
    assert [json.loads(line)["trial"] for line in lines] == [0, 1]


def test_each_exit_code_of_the_page_is_one_of_the_reference() -> None:
    page = (ROOT / "docs" / "reference" / "commands.md").read_text(encoding="utf-8")
    known = set(re.findall(r"^\| (\d+) \|", page, re.MULTILINE))
    own = set(re.findall(r"^\| ([\d, ]+) \|", AGENTS, re.MULTILINE))
    assert {code for codes in own for code in codes.split(", ")} <= known


def test_a_dry_run_has_what_the_page_says(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "--profile", "cpu-tiny", "--steps", "6", "--dry-run", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    (sentence,) = re.findall(r"^`--dry-run.*$", AGENTS, re.MULTILINE)
    keys = re.findall(r"`\.(\w+)`", sentence)
    assert keys
    assert set(keys) <= set(document)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("jq") is None or sys.platform == "win32", reason="bash and jq")
def test_the_loop_ends_with_the_best_run(place: Path) -> None:
    (loop,) = re.findall(r"^```sh\n(.*?)^```", AGENTS, re.DOTALL | re.MULTILINE)
    for words, shorter in (("--time 5m", "--steps 6"), ("0.005 0.02 0.04", "0.02")):
        assert words in loop
        loop = loop.replace(words, shorter)
    command = place / "bin" / "llmtrain"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m llmtrain "$@"\n')
    command.chmod(0o755)
    first = "llmtrain train --profile cpu-tiny --data notes/ --steps 6 --out runs/base --quiet\n"
    path = os.pathsep.join([str(command.parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-c", first + loop],
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in {"runs/base", "runs/rate-0.02"}
    assert len(list((place / "runs").glob("*.json"))) == 1
