from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from llmtrain.train.run_directory.directory import RunDirectory
from llmtrain.train.run_directory.history import Rewind, read_history


def run_of(directory: Path, *lines: dict[str, object]) -> RunDirectory:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (directory / "metrics.jsonl").write_text(text)
    return RunDirectory(directory)


def step(number: int, loss: float | None = 2.0, **more: object) -> dict[str, object]:
    return {"step": number, "tokens": 100 * number, "elapsed_s": 1.0 * number, "loss": loss, **more}


def test_evaluations_are_placed_between_logged_steps(tmp_path: Path) -> None:
    run = run_of(tmp_path, step(10), {"step": 15, "val_loss": 3.0, "val_bpb": 1.5}, step(20))
    (evaluation,) = read_history(run).evaluations
    assert (evaluation.tokens, evaluation.elapsed_s) == (1500, 15)


def test_what_a_rewind_undid_is_left_out(tmp_path: Path) -> None:
    run = run_of(
        tmp_path,
        step(10, 3.0),
        step(20, 9.0),
        {"step": 20, "val_loss": 9.0, "val_bpb": 9.0},
        {"step": 21, "skipped": True, "reason": "the loss is 9"},
        {"step": 10, "rewound_from": 21, "windows": 5},
        step(20, 2.0),
    )
    history = read_history(run)
    assert [each.loss for each in history.steps] == [3.0, 2.0]
    assert history.evaluations == ()
    assert history.skipped == (21,)
    assert history.rewinds == (Rewind(21, 10),)


@pytest.mark.parametrize("value", [None, "high", [1], {"a": 1}])
def test_what_is_no_number_is_unknown(tmp_path: Path, value: object) -> None:
    run = run_of(tmp_path, step(1) | {"lr": value, "memory_bytes": value})
    (logged,) = read_history(run).steps
    assert math.isnan(logged.lr)
    assert math.isnan(logged.memory_bytes)


def test_a_run_without_metrics_has_no_curve(tmp_path: Path) -> None:
    assert read_history(RunDirectory(tmp_path)).steps == ()
