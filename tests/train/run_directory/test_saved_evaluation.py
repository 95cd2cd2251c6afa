from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from llmtrain.errors import UsageError
from llmtrain.train.run_directory.directory import RunDirectory
from llmtrain.train.run_directory.saved_evaluation import (
    SavedEvaluation,
    read_evaluation,
    save_evaluation,
)

ONE = SavedEvaluation("step-1", 1.5, 1.4, 1.6, "block", 100, 10, 40, {"xz_bpb": 2.0, "a_bpb": None})


def test_the_newest_evaluation_is_read_back(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert read_evaluation(run) is None
    for each in (ONE, replace(ONE, checkpoint="step-2", bits_per_byte=None, low=None)):
        save_evaluation(run, each)
        assert read_evaluation(run) == each


@pytest.mark.parametrize("text", ["", "[]", '{"checkpoint": 3}', '{"checkpoint": "a"}'])
def test_a_file_that_holds_something_else_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text(text)
    with pytest.raises(UsageError, match="cannot be read"):
        read_evaluation(RunDirectory(tmp_path))
