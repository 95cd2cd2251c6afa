"""Past runs as people read them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from llmtrain.cli.output import Output
from tests.cli.conftest import Command


@pytest.fixture
def runs(place: Path, trained: Path) -> Path:
    """Runs that finished, were interrupted, and crashed."""
    for name, stopped in (("a", "done"), ("b", "interrupted"), ("c", None)):
        run = shutil.copytree(trained, place / "runs" / name)
        record = yaml.safe_load((run / "run.yaml").read_text())
        record["result"] = None if stopped is None else record["result"] | {"stopped": stopped}
        record["sessions"][0]["process"] = "1 1.0"  # another process had that id then
        (run / "run.yaml").write_text(yaml.safe_dump(record))
    return place / "runs"


def test_a_list_has_a_heading_dates_profiles_and_states(llmtrain: Command, runs: Path) -> None:
    outcome = llmtrain("runs", "list")
    heading, *lines = outcome.out.splitlines()
    assert heading.split() == ["run", "started", "profile", "steps", "bits/byte", "state"]
    assert [line.split()[-1] for line in lines] == ["finished", "interrupted", "crashed"]
    assert all(re.search(r" 20\d\d-\d\d-\d\d \d\d:\d\d  tiny  +20 ", line) for line in lines)
    assert all(line == line.rstrip() for line in outcome.out.splitlines())
    rows = llmtrain("runs", "list", "--json").document["runs"]
    assert [row["state"] for row in rows] == ["finished", "interrupted", "crashed"]
    assert [row["status"] for row in rows] == ["done", "interrupted", "unfinished"]


def test_runs_that_cannot_be_read_are_not_called_none(llmtrain: Command, runs: Path) -> None:
    for record in runs.glob("*/run.yaml"):
        record.write_text("[")
    outcome = llmtrain("runs", "list")
    assert "none of 3 runs under runs can be read" in outcome.err
    assert "start one" not in outcome.err


def test_a_directory_that_is_named_and_not_there_is_refused(llmtrain: Command) -> None:
    outcome = llmtrain("runs", "list", "no/runs")
    assert (outcome.code, outcome.err.splitlines()[0]) == (2, "error: no/runs does not exist")


@pytest.mark.parametrize("arguments", [("list",), ("show", "runs/a"), ("tag", "runs/a", "x")])
def test_what_reads_runs_alone_does_not_import_torch(
    arguments: tuple[str, ...], runs: Path
) -> None:
    code = (
        f"import sys; sys.argv = ['llmtrain', 'runs', *{arguments!r}]\n"
        "from llmtrain.cli.app import main\n"
        "try: main()\n"
        "finally: assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_run_is_shown_with_units(llmtrain: Command, runs: Path) -> None:
    out = llmtrain("runs", "show", "a").out
    assert re.search(r"^state +finished: all steps done$", out, re.M)
    assert re.search(r"^started +20.*, 1 session$", out, re.M)
    assert re.search(r"^progress +20 steps, 5\.12k tokens, .*s$", out, re.M)
    assert re.search(
        r"^validation loss +\d\.\d{4} nats/token, best \d\.\d{4}; \d\.\d{4} bits/byte$", out, re.M
    )
    assert re.search(r"^checkpoints +step-00000010, step-00000020$", out, re.M)
    assert not re.search(r"\d\.\d{6}|\['| $|True|False", out, re.M)


@pytest.mark.parametrize(
    ("machines", "shown"), [([2], "2 on 1 machine"), ([2, 1], "3 on 2 machines (2, 1)")]
)
def test_what_was_launched_is_shown(
    machines: list[int], shown: str, llmtrain: Command, runs: Path
) -> None:
    record = yaml.safe_load((runs / "a" / "run.yaml").read_text())
    ranks = {"by": "torchrun", "processes": sum(machines), "backend": "gloo"}
    record["sessions"][-1]["ranks"] = ranks | {"of_machines": machines}
    (runs / "a" / "run.yaml").write_text(yaml.safe_dump(record))
    out = llmtrain("runs", "show", "a").out
    assert re.search(rf"^ranks +{re.escape(shown)}, over gloo, started by torchrun$", out, re.M)
    assert not re.search(r"^ranks", llmtrain("runs", "show", "b").out, re.M), "one process"


def test_a_narrow_terminal_shows_names_and_states_whole(
    llmtrain: Command, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Output, "stdout", Console(width=60))
    name = "tiny-20261129-002241"
    (runs / "a").rename(runs / name)
    lines = llmtrain("runs", "list").out.splitlines()
    assert lines[0].split() == ["run", "steps", "bits/byte", "state"]
    assert any(line.startswith(str(Path("runs") / name)) for line in lines)
    assert all(len(line) <= 60 for line in lines)
