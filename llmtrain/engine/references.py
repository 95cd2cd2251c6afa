"""Log-probabilities of pairs of answers by the model that a run began with.

They are computed before training, by rank 0, and kept beside the shards: a resumed run reads them,
and so does the next run from the same model on the same pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial

import torch

from llmtrain.choice import Precision
from llmtrain.data.batches.conversations import END
from llmtrain.data.batches.preferences import References
from llmtrain.data.chat.marks import Marks
from llmtrain.data.shards.cache_entry import locked_entry, map_write_errors
from llmtrain.data.shards.prepared import PreparedData
from llmtrain.engine.initial_model import InitialModel
from llmtrain.files import cache_directory, json_key
from llmtrain.model.decoder import Decoder
from llmtrain.ops.precision import autocast_as
from llmtrain.prepare.context import TimedProgress
from llmtrain.profile.schema import Profile
from llmtrain.progress import Note, Notify
from llmtrain.train.model_weights import build_adapted_model, build_model
from llmtrain.train.references import (
    ReferenceModel,
    Work,
    ensure_references,
    read_references,
    reference_file,
)


@dataclass(frozen=True, slots=True)
class ReferencesOfRun:
    """Log-probabilities by the first model, of the pairs to train on and to validate."""

    train: References
    validation: References


@dataclass(frozen=True, slots=True)
class FirstModel:
    """The model that a run began with, as it computes in that run."""

    profile: Profile
    initial: InitialModel
    precision: Precision
    device: torch.device

    @property
    def key(self) -> str:
        """A key of the model, the vocabulary and the precision, on which the values depend."""
        rows = self.profile.model.vocab_size
        is_adapted = self.profile.lora.rank is not None  # whose new rows differ
        return json_key([sorted(self.initial.sha256.items()), rows, is_adapted, self.precision])

    def build(self) -> Decoder:
        """Return the model. Raises LlmtrainError if its files are missing or have changed."""
        adapter = self.initial.adapter(self.profile.lora)
        if adapter is None:
            model = build_model(self.profile, None, self.initial.read_weights)
        else:
            model = build_adapted_model(self.profile, adapter, self.precision, None)
        model = model.to(self.device).eval()
        model.separator_id, model.has_padding = END, True
        if self.device.type == "cpu":
            model.compute_with(attention="blocks")  # torch's kernel wants a mask of all pairs
        return model


def references_of_run(
    first: FirstModel, shards: PreparedData, observe: Notify, check_stop: Callable[[], None]
) -> ReferencesOfRun:
    """Return the values of all pairs of a run: those that are kept, and what is missing.

    Raises DataError if a side has no pair that fits into the context, and LlmtrainError where the
    model is gone.
    """
    kept = kept_references(first, shards)
    if kept is not None:
        return kept
    observe(Note("log-probabilities of the answers by the model that training begins with"))
    progress = TimedProgress("answers' log-probabilities", observe)
    model = ReferenceModel(cache(first.build), partial(autocast_as, first.precision, first.device))
    with _locked(first, shards, observe, check_stop):
        train, validation = (
            ensure_references(
                reference_file(shards.directory, side, first.key, first.profile.model.context),
                stream,
                Marks.of_separator(shards.index.separator_id),
                first.profile.model.context,
                model,
                Work(check_stop, progress),
            )
            for side, stream in (("train", shards.train), ("validation", shards.validation))
        )
    return ReferencesOfRun(train, validation)


def kept_references(first: FirstModel, shards: PreparedData) -> ReferencesOfRun | None:
    """Return the values that are kept; None unless those of all pairs are."""
    context = first.profile.model.context
    marks = Marks.of_separator(shards.index.separator_id)
    found = [
        read_references(
            reference_file(shards.directory, side, first.key, context), stream, marks, context
        )
        for side, stream in (("train", shards.train), ("validation", shards.validation))
    ]
    train, validation = found
    return None if train is None or validation is None else ReferencesOfRun(train, validation)


@contextmanager
def _locked(
    first: FirstModel, shards: PreparedData, observe: Notify, check_stop: Callable[[], None]
) -> Iterator[None]:
    """Let one process compute at a time."""

    def on_wait() -> None:
        observe(Note("another process computes these log-probabilities; waiting for it"))

    key = json_key(["references", shards.index.key, first.key])
    with (
        map_write_errors(shards.directory, "log-probabilities"),
        locked_entry(cache_directory(), key, check_stop, on_wait),
    ):
        yield
