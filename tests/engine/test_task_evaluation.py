"""Tasks by lm-evaluation-harness, offline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmtrain.engine.task_evaluation import _spec
from llmtrain.errors import UsageError


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("task: t\nprocess_docs: !function utils.process\n", "a tag is not used"),
        ("dataset_path: json\n", "no key task"),
        ("- a\n", "no key task"),
        ("task: t\nunsafe_code: true\n", "unsafe_code"),
    ],
)
def test_a_file_that_could_run_code_is_refused(text: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "task.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=complaint):
        _spec(str(path))


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        _spec(str(tmp_path / "none.yaml"))


def test_a_name_and_an_own_task_are_told_apart() -> None:
    assert _spec("arc_easy") == "arc_easy"
    own: Any = _spec("python_brackets")
    assert own["output_type"] == "multiple_choice"


def test_a_file_is_plain_values(tmp_path: Path) -> None:
    path = tmp_path / "task.yaml"
    values = {"task": "t", "dataset_path": "json", "doc_to_text": "{{question}}"}
    path.write_text(json.dumps(values))
    assert _spec(str(path)) == values
