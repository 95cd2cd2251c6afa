"""run.yaml holds what a session came to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmtrain.engine.record import write_result
from llmtrain.train.events import TrainResult
from llmtrain.train.run_directory.directory import RunDirectory


@pytest.mark.parametrize("name", ["step-00000008", None])
def test_the_checkpoint_of_a_result_is_its_path_or_null(name: str | None, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(json.dumps({"profile": {"name": "small"}, "sessions": []}))
    checkpoint = None if name is None else tmp_path / name
    figures = (8, 64, 1.0, None, None, None, None, 0, None)
    directory = RunDirectory(tmp_path)
    write_result(directory, TrainResult(tmp_path, checkpoint, *figures, stopped="done"))
    found = directory.read_record()["result"]["checkpoint"]
    assert found == (None if checkpoint is None else str(checkpoint))
