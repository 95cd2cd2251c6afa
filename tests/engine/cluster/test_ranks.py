"""The lines are run by bash, with a command in place of llmtrain."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from llmtrain.engine.cluster.ranks import start_ranks, yaml_with_lines
from llmtrain.profile.yaml_text import parse_document
from tests.engine.cluster.conftest import MakeJob

pytestmark = pytest.mark.skipif(
    os.name == "nt" or shutil.which("bash") is None, reason="the lines are for bash"
)


def started(make: MakeJob, directory: Path, does: str) -> subprocess.Popen[bytes]:
    (directory / "llmtrain").write_text(f"#!/bin/bash\n{does}\n")
    (directory / "llmtrain").chmod(0o755)
    lines = start_ranks(make("cuda:2x80GiB"), "NODE", "first.host")
    path = f"{directory}{os.pathsep}{os.environ['PATH']}"
    return subprocess.Popen(
        ["bash", "-c", "\n".join(lines)],
        cwd=directory,
        env=os.environ | {"PATH": path, "NODE": "1"},
    )


def test_a_machine_runs_its_ranks_and_ends_with_the_largest_code(
    make: MakeJob, tmp_path: Path
) -> None:
    does = 'echo "$LOCAL_RANK $WORLD_SIZE $LOCAL_WORLD_SIZE $MASTER_ADDR" > "$RANK"; exit $RANK'
    assert started(make, tmp_path, does).wait(timeout=30) == 3
    assert (tmp_path / "2").read_text() == "0 4 2 first.host\n"
    assert (tmp_path / "3").read_text() == "1 4 2 first.host\n"


def test_sigterm_reaches_every_rank_which_has_time_to_save(make: MakeJob, tmp_path: Path) -> None:
    does = (
        'trap "sleep 0.3; touch saved$RANK; exit 75" TERM\n'
        'touch "up$RANK"; for _ in $(seq 200); do sleep 0.05; done'
    )
    process = started(make, tmp_path, does)
    end_s = time.monotonic() + 30
    while not all((tmp_path / f"up{rank}").exists() for rank in (2, 3)):
        assert time.monotonic() < end_s
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 75
    assert all((tmp_path / f"saved{rank}").exists() for rank in (2, 3))


def test_lines_stay_what_they_are_in_yaml() -> None:
    lines = ['echo "a: b" | cat', "  indented", "exit 1"]
    document = {"a": {"command": ["bash", "-c", "LINES-OF-SHELL"]}, "b": 1}
    text = yaml_with_lines(document, lines)
    assert "- |\n" in text
    import yaml

    assert yaml.safe_load(text) == {
        "a": {"command": ["bash", "-c", "\n".join(lines) + "\n"]},
        "b": 1,
    }
    parse_document(text, "the text")
