"""A tracker that hangs, dies, talks or fills a disk: training does not notice."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from llmtrain.errors import UsageError
from llmtrain.progress import Note
from llmtrain.tracking import tracker as module
from llmtrain.tracking.tracker import Tracker, require_trackers


def started(tmp_path: Path, notes: list[Note], program: str) -> Tracker:
    command = [sys.executable, "-c", program, str(tmp_path / "out")]
    return Tracker("tensorboard", tmp_path, notes.append, command=command)


COPIES = "import sys; open(sys.argv[1], 'wb').write(sys.stdin.buffer.read())"


def test_every_line_arrives_in_order(tmp_path: Path) -> None:
    notes: list[Note] = []
    with started(tmp_path, notes, COPIES) as tracker:
        for step in range(500):
            tracker.send({"metrics": {"step": step}})
    lines = (tmp_path / "out").read_text().splitlines()
    assert [json.loads(line)["metrics"]["step"] for line in lines] == list(range(500))
    assert notes == []


def test_one_warning_says_why_a_tracker_died(tmp_path: Path) -> None:
    notes: list[Note] = []
    program = "import sys; sys.exit('no space left on device')"
    with started(tmp_path, notes, program) as tracker:
        tracker._process.wait(20)
        for step in range(100):
            tracker.send({"metrics": {"step": step}})
            time.sleep(0.001)
    (note,) = notes
    assert note.is_warning
    assert "no space left on device" in note.text or "stopped logging" in note.text


def test_a_tracker_that_hangs_costs_no_time_and_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_QUEUED_LINES", 10)
    monkeypatch.setattr(module, "_CLOSE_S", 0.5)
    notes: list[Note] = []
    tracker = started(tmp_path, notes, "import time; time.sleep(1000)")
    for step in range(3_000):
        tracker.send({"metrics": {"step": step, "text": "x" * 1_000}})
    tracker.close()
    assert tracker._process.returncode != 0
    assert any("lines were dropped" in note.text for note in notes)


def test_what_a_tracker_prints_is_not_shown(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    program = "import sys; print('banner'); print('banner', file=sys.stderr); sys.stdin.read()"
    with started(tmp_path, [], program) as tracker:
        tracker.send({"metrics": {"step": 1}})
    assert capfd.readouterr() == ("", "")


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="--log-to trackio") as error:
        require_trackers(["trackio"])
    assert error.value.hint == "pip install 'llmtrain[trackio]'"
