"""Training with trackers: equal weights, and curves that equal metrics.jsonl."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from llmtrain.cli.app import run
from tests.tracking.curves import READERS, difference, logged
from tests.train.harness import PROFILE, Files


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


def assert_equal(name: str, place: Path) -> None:
    """The curves of the run `run` in a tracker's own files are those of metrics.jsonl."""
    found = READERS[name](place / "run", place / "trackio")
    assert difference(found, logged(place / "run")) == ""


def test_tensorboard_has_the_curves_also_after_a_resume(place: Path) -> None:
    pytest.importorskip("tensorboard")
    train("--out", "plain", "--steps", "30")
    train("--out", "run", "--steps", "20", "--log-to", "tensorboard")
    train("--resume", "run", "--steps", "30", "--log-to", "tensorboard")
    assert_equal("tensorboard", place)
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


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_a_tracker_has_the_curves_offline(
    name: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(name)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    train("--out", "run", "--log-to", name)
    assert_equal(name, place)
    assert READERS[name](place / "run", place / "trackio")["sample"]


@pytest.mark.slow
def test_mlflow_continues_its_run_after_a_resume(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    train("--out", "run", "--steps", "10", "--log-to", "mlflow")
    train("--resume", "run", "--steps", "20", "--log-to", "mlflow")
    assert_equal("mlflow", place)
    with closing(sqlite3.connect(place / "run" / "mlflow" / "mlflow.db")) as connection:
        assert connection.execute("select name, status from runs").fetchall() == [
            ("run", "FINISHED")
        ]
        (context,) = connection.execute("select value from params where key = 'model.context'")
        assert context == ("32",)
    samples = list((place / "run" / "mlflow").rglob("samples/*.txt"))
    assert {path.name[:8] for path in samples} == {"00000010", "00000020"}


def test_an_unknown_tracker_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "-p", "tiny.yaml", "--log-to", "abacus"]) == 2
    assert "--log-to" in capsys.readouterr().err
