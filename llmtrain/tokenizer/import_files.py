"""Which file of a tokenizer is imported, and what lies beside it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from llmtrain.errors import DataError
from llmtrain.tokenizer.codec import JSON_FILE, MODEL_FILE
from llmtrain.tokenizer.vocabulary_json import MERGES_FILE, VOCABULARY_FILE

_KINDS = "a sentencepiece .model, tokenizer.json, vocab.json or .tiktoken, or a directory of one"
_MODEL_NAME = re.compile(r"\.model(\.v\d+)?$", re.IGNORECASE)  # Mistral numbers its files


def is_model(file: Path) -> bool:
    """Return whether this is the name of a sentencepiece model."""
    return _MODEL_NAME.search(file.name) is not None


def file_to_import(path: Path, *, has_pattern: bool) -> Path:
    """Return the file to import; with a pattern, any name is accepted. Raises DataError."""
    if path.is_dir():
        return _file_in(path)
    if not path.exists():
        raise DataError(f"{path} does not exist", hint=f"name {_KINDS}")
    if not has_pattern and path.name == MERGES_FILE:
        return path.with_name(VOCABULARY_FILE)
    if not has_pattern and not is_model(path) and path.suffix not in (".json", ".tiktoken"):
        raise DataError(f"{path} is no kind of tokenizer that is known", hint=f"name {_KINDS}")
    return path


def _file_in(directory: Path) -> Path:
    """Return the tokenizer file in a directory. Raises DataError if there is none or several."""
    found = files_in(directory)
    if not found:
        raise DataError(
            f"{directory} has no {JSON_FILE}, no {MODEL_FILE} and no {VOCABULARY_FILE}",
            hint=f"name {_KINDS}",
        )
    if len(found) > 1:
        names = ", ".join(path.name for path in found[:5])
        raise DataError(
            f"{directory} has several sentencepiece models: {names}",
            hint=f"name one: llmtrain tokenizer import {shlex.quote(str(found[-1]))} --out DIR",
        )
    return found[0]


def files_in(directory: Path) -> list[Path]:
    """Return the preferred tokenizer file of a directory; several if it has several models."""
    for name in (JSON_FILE, MODEL_FILE):
        if (directory / name).is_file():
            return [directory / name]
    models = sorted(path for path in directory.iterdir() if is_model(path))
    pair = [path for path in (directory / VOCABULARY_FILE,) if path.is_file()]
    return models or pair
