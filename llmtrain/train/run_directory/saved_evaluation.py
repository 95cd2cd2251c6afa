"""The last evaluation on all of a run's validation text, in a file of the run."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from llmtrain.errors import UsageError
from llmtrain.files import write_text_atomically
from llmtrain.train.run_directory.directory import RunDirectory
from llmtrain.untrusted import JSON_BYTES, parse_model, problem_of, read_bytes

EVALUATION_FILE = "evaluation.json"


@dataclass(frozen=True, slots=True)
class SavedEvaluation:
    """Bits per byte of a checkpoint with their 95% interval, beside those without a model.

    `unit` was drawn for the interval: documents or blocks. None stands for what is not finite or
    was not measured.
    """

    checkpoint: str
    bits_per_byte: float | None
    low: float | None
    high: float | None
    unit: str
    units: int
    tokens: int
    bytes: int
    baselines: dict[str, float | None]


def read_evaluation(run: RunDirectory) -> SavedEvaluation | None:
    """Return the saved evaluation; None if there is none. Raises UsageError for another file."""
    path = run.path / EVALUATION_FILE
    try:
        return parse_model(SavedEvaluation, read_bytes(path, JSON_BYTES))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {problem_of(error)}", hint="remove it") from None


def save_evaluation(run: RunDirectory, evaluation: SavedEvaluation) -> None:
    """Save an evaluation in the run, in place of the one before. Raises OSError."""
    write_text_atomically(
        run.path / EVALUATION_FILE, json.dumps(asdict(evaluation), indent=2) + "\n"
    )
