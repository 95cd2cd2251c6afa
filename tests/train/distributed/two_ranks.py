"""Ranks of a test's own program, launched once for all of a module's tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmtrain.files import LAUNCHED_VARIABLE
from llmtrain.train.distributed.failures import open_store, rank_environment
from tests.checkout import ROOT

_LIMIT_S = 200


def run_two_ranks(module: str, directory: Path) -> None:
    """Run the program on two ranks, which leave what they found in `directory`."""
    (directory / "two").mkdir()
    run_ranks(module, directory, 2, 2)


def run_ranks(module: str, directory: Path, number: int, local: int) -> None:
    """Run the program on so many ranks, of which each "machine" has `local`."""
    _store, port = open_store()
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", module, str(directory)],
            cwd=ROOT,
            env=os.environ
            | rank_environment(rank, number, port)
            | {"LOCAL_RANK": str(rank % local), "LOCAL_WORLD_SIZE": str(local)}
            | {LAUNCHED_VARIABLE: "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(number)
    ]
    try:
        for rank in ranks:
            _, err = rank.communicate(timeout=_LIMIT_S)
            assert rank.returncode == 0, err
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()


def found_by_two_ranks(directory: Path) -> list[dict[str, Any]]:
    """Return what each rank has written as JSON."""
    return found_by_ranks(directory, 2)


def found_by_ranks(directory: Path, number: int) -> list[dict[str, Any]]:
    """Return what each of so many ranks has written as JSON."""
    return [json.loads((directory / f"rank{rank}.json").read_text()) for rank in range(number)]


def assert_trains_as_one_process(
    found: Sequence[Mapping[str, Any]], name: str, *, weights: float
) -> None:
    """Losses and weights are those of one process, and two ranks share the optimizer's state."""
    for rank in found:
        assert rank[name]["fell"] > 0.1
        assert rank[name]["loss"] < 1e-5
        assert rank[name]["weights"] < weights
        assert 0.45 < rank[name]["state_share"] < 0.6
