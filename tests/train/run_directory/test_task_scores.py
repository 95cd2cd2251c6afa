from __future__ import annotations

from pathlib import Path

import pytest

from llmtrain.errors import UsageError
from llmtrain.train.run_directory.directory import RunDirectory
from llmtrain.train.run_directory.task_scores import (
    CheckpointScore,
    TaskScore,
    read_scores,
    save_scores,
)


def score(task: str, value: float, metric: str = "acc") -> TaskScore:
    return TaskScore(task, metric, value, None, 0.25, 10)


def test_a_new_score_replaces_the_old_one_of_its_task_and_metric(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert read_scores(run) == []
    save_scores(run, "step-1", [score("a", 0.1), score("a", 0.2, "acc_norm"), score("b", 0.3)])
    save_scores(run, "step-2", [score("a", 0.4)])
    assert read_scores(run) == [
        CheckpointScore("step-1", score("a", 0.2, "acc_norm")),
        CheckpointScore("step-1", score("b", 0.3)),
        CheckpointScore("step-2", score("a", 0.4)),
    ]


@pytest.mark.parametrize("text", ["", "{}", "[1]", '[{"checkpoint": "a", "score": {}}]'])
def test_a_file_that_holds_something_else_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "tasks.json").write_text(text)
    with pytest.raises(UsageError, match="cannot be read"):
        read_scores(RunDirectory(tmp_path))
