"""Scores on benchmark tasks, in a file of the run: the newest of each task and metric."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from llmtrain.errors import UsageError
from llmtrain.files import write_text_atomically
from llmtrain.train.run_directory.directory import RunDirectory
from llmtrain.untrusted import JSON_BYTES, parse_model, problem_of, read_bytes

TASKS_FILE = "tasks.json"


@dataclass(frozen=True, slots=True)
class TaskScore:
    """A metric of a task, beside what guessing would reach."""

    task: str
    metric: str
    value: float
    standard_error: float | None
    chance: float | None  # None: the task is no choice among a few answers
    examples: int


@dataclass(frozen=True, slots=True)
class CheckpointScore:
    """A score, and the checkpoint that it is of."""

    checkpoint: str
    score: TaskScore


def read_scores(run: RunDirectory) -> list[CheckpointScore]:
    """Return the saved scores. Raises UsageError for a file that holds something else."""
    path = run.path / TASKS_FILE
    try:
        return parse_model(list[CheckpointScore], read_bytes(path, JSON_BYTES))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {problem_of(error)}", hint="remove it") from None


def save_scores(run: RunDirectory, checkpoint: str, scores: Sequence[TaskScore]) -> None:
    """Save scores in the run; they replace those of the same task and metric."""
    new = {(each.task, each.metric): CheckpointScore(checkpoint, each) for each in scores}
    kept = [each for each in read_scores(run) if (each.score.task, each.score.metric) not in new]
    found = [asdict(each) for each in (*kept, *new.values())]
    write_text_atomically(run.path / TASKS_FILE, json.dumps(found, indent=2) + "\n")
