"""Training with trackers: equal weights, and curves that equal metrics.jsonl."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from llmtrain.cli.app import run
from tests.train.harness import PROFILE, Files

CURVES = ("loss", "lr", "grad_norm", "tokens", "elapsed_s", "val_loss", "val_bpb")
Curves = dict[str, dict[int, float]]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    (tmp_path / "tiny.yaml").write_text(PROFILE)
    (tmp_path / "corpus.txt").write_text(
        "".join(f"line {n * n % 997} of text\n" for n in range(4000))
    )
    return tmp_path


def train(*arguments: str) -> None:
    assert run(["train", "-p", "tiny.yaml", "-q", *arguments]) == 0


def logged(path: Path) -> Curves:
    curves: Curves = defaultdict(dict)
    for line in Files(path).lines("metrics.jsonl"):
        for name in CURVES:
            if line.get(name) is not None:
                curves[name][line["step"]] = line[name]
    return curves


def in_tensorboard(path: Path) -> Curves:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(path / "tensorboard"), {"scalars": 0})
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert set(CURVES) <= tags
    return {name: {e.step: e.value for e in events.Scalars(name)} for name in CURVES}


def assert_equal(found: Curves, expected: Curves) -> None:
    for name in CURVES:
        assert found[name].keys() == expected[name].keys(), name
        for step, value in expected[name].items():
            assert math.isclose(found[name][step], value, rel_tol=1e-6), (name, step)


def test_tensorboard_has_the_curves_also_after_a_resume(place: Path) -> None:
    pytest.importorskip("tensorboard")
    train("--out", "plain", "--steps", "30")
    train("--out", "run", "--steps", "20", "--log-to", "tensorboard")
    train("--resume", "run", "--steps", "30", "--log-to", "tensorboard")
    assert_equal(in_tensorboard(place / "run"), logged(place / "run"))
    record = (place / "run" / "run.yaml").read_text()
    assert "log_to:" in record


def test_a_tracker_that_dies_changes_no_weight(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorboard")
    train("--out", "plain")
    monkeypatch.setattr("llmtrain.tracking.tracker._WORKER", "llmtrain.tracking.worker:missing")
    train("--out", "run", "--log-to", "tensorboard")
    assert Files(place / "run").digests() == Files(place / "plain").digests()
    assert "tensorboard stopped logging" in capsys.readouterr().err


def test_trackio_has_the_curves(place: Path) -> None:
    pytest.importorskip("trackio")
    import sqlite3

    train("--out", "run", "--log-to", "trackio")
    (database,) = (place / "trackio").glob("llmtrain*.db")
    connection = sqlite3.connect(database)
    rows = connection.execute("select step, metrics from metrics where run_name = 'run'").fetchall()
    connection.close()
    found: dict[str, dict[int, Any]] = defaultdict(dict)
    for step, text in rows:
        for name, value in json.loads(text).items():
            found[name][step] = value
    assert_equal(found, logged(place / "run"))
    assert found["sample"]


def test_an_unknown_tracker_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "-p", "tiny.yaml", "--log-to", "abacus"]) == 2
    assert "--log-to" in capsys.readouterr().err
