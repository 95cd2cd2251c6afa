"""Open what a user names as RUN: a run, a checkpoint, or a model directory of another program.

`open_model` is how every command that uses a trained model gets it. A model directory has a
config.json and safetensors; `hf://OWNER/NAME` is such a directory on the Hugging Face Hub.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from llmtrain.engine.hub_model import fetch_model, is_hub_model
from llmtrain.profile.shape import ModelShape
from llmtrain.progress import Note
from llmtrain.tokenizer import Tokenizer
from llmtrain.tokenizer.of_model import tokenizer_of_model
from llmtrain.train.checkpoint.format import Checkpoint, load_checkpoint
from llmtrain.train.checkpoint.integrity import DamagedCheckpointError, RemovedCheckpointError
from llmtrain.train.checkpoint.names import step_of
from llmtrain.train.checkpoint.parts import MANIFEST, STATE
from llmtrain.train.checkpoint.pretrained import is_pretrained_directory, open_pretrained
from llmtrain.train.events import Observer
from llmtrain.train.run_directory.directory import RunDirectory
from llmtrain.train.run_directory.find import find_checkpoints

# Generation keeps keys and values of the whole context, and some models name 131,072 tokens.
_LONGEST_CONTEXT = 4096


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """The weights, shape and tokenizer of a trained model, and where they are from."""

    path: Path  # the checkpoint, or the model directory
    shape: ModelShape
    weights: Mapping[str, Tensor]  # fp32, by Hugging Face names
    tokenizer: Tokenizer
    step: int | None  # None: not a checkpoint of a run
    record: dict[str, Any] | None  # run.yaml, if the checkpoint still lies in a run


def open_model(name: str, observe: Observer) -> OpenedModel:
    """Load the model directory that `name` is, or the newest intact checkpoint that it names.

    Raises UsageError for an unknown or unsupported one, DataError for its tokenizer, and
    LlmtrainError where it is damaged.
    """
    directory = model_directory(name)
    if directory is not None:
        return _open_directory(directory, observe)
    path, checkpoint = _newest_whole(name, observe)
    run = RunDirectory(path.parent.parent)
    return OpenedModel(
        path,
        checkpoint.shape,
        checkpoint.whole_weights(),
        checkpoint.tokenizer,
        checkpoint.state.step,
        run.read_record() if run.exists else None,
    )


def model_directory(name: str) -> Path | None:
    """Return the model directory that `name` means; None if it can only name a run."""
    if is_hub_model(name):
        return fetch_model(name)
    path = Path(name)
    is_checkpoint = any((path / file).is_file() for file in (STATE, MANIFEST))
    return path if is_pretrained_directory(path) and not is_checkpoint else None


def _open_directory(path: Path, observe: Observer) -> OpenedModel:
    directory = open_pretrained(path)
    tokenizer, warnings = tokenizer_of_model(path)
    for warning in warnings:
        observe(Note(warning, is_warning=True))
    shape = directory.shape
    if shape.context > _LONGEST_CONTEXT:
        observe(
            Note(f"{_LONGEST_CONTEXT} tokens of the model's context of {shape.context} are used")
        )
        shape = replace(shape, context=_LONGEST_CONTEXT)
    return OpenedModel(path, shape, directory.read_weights(), tokenizer, None, None)


def _newest_whole(run: str, observe: Observer) -> tuple[Path, Checkpoint]:
    """Load the newest intact checkpoint that `run` names.

    Raises DamagedCheckpointError if none is intact, and LlmtrainError for one that cannot be read.
    """
    paths = find_checkpoints(run)
    for path in reversed(paths):
        try:
            return path, load_checkpoint(path, with_optimizer=False)
        except RemovedCheckpointError:  # a run in training removes it after saving a newer one
            return _newest_whole(run, observe)
        except DamagedCheckpointError as error:
            if path == paths[0]:
                raise
            text = f"damaged checkpoint: {error.message}; using one before step {step_of(path)}"
            observe(Note(text, is_warning=True))
    raise AssertionError("find_checkpoints returns at least one")
