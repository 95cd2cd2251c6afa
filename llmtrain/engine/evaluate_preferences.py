"""Evaluation on pairs of answers, beside the model that the run began with."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from llmtrain.choice import Precision
from llmtrain.data.batches.conversations import read_conversations
from llmtrain.data.batches.preferences import (
    PreferenceReader,
    References,
    both_answers,
    pack_preferences,
)
from llmtrain.data.batches.windows import Tokens
from llmtrain.data.chat.marks import Marks
from llmtrain.data.shards.prepared import PreparedData
from llmtrain.engine.evaluate_chat import MemoryTokens
from llmtrain.engine.initial_model import recorded_initial_model
from llmtrain.engine.references import FirstModel
from llmtrain.errors import UsageError
from llmtrain.eval.preferences import sum_preferences
from llmtrain.eval.questions import share_interval
from llmtrain.model.decoder import Decoder
from llmtrain.ops.precision import autocast_as
from llmtrain.prepare.context import PrepareContext
from llmtrain.profile.load import profile_from_values
from llmtrain.train.references import (
    ReferenceModel,
    Work,
    ensure_references,
    read_references,
    reference_file,
)


@dataclass(frozen=True, slots=True)
class PreferenceScores:
    """How a model does on pairs of answers, beside the one that its run began with."""

    pairs: int
    loss: float
    margin: float
    accuracy: float
    accuracy_low: float
    accuracy_high: float


def first_model(
    record: Mapping[str, Any] | None, checkpoint: Path, precision: Precision, model: Decoder
) -> FirstModel:
    """Return the model that the run of this record began with, to compute on the same device.

    Raises UsageError where it is not known.
    """
    initial = None if record is None else recorded_initial_model(record)
    if record is None or initial is None:
        raise UsageError(
            f"{checkpoint} lies in no run that fine-tuned a model, which pairs are compared with",
            hint="name a run of llmtrain finetune",
        )
    profile = profile_from_values(record["profile"], "run.yaml")
    return FirstModel(profile, initial, precision, model.head_weight.device)


def score_preferences(
    model: Decoder,
    first: FirstModel,
    stream: Tokens,
    marks: Marks,
    shards: PreparedData | None,
    work: PrepareContext,
) -> PreferenceScores:
    """Return the scores on all pairs of a stream, which is the validation side of `shards`.

    Raises DataError if no pair fits into the context, and LlmtrainError if the first model is gone.
    """
    context = model.shape.context
    autocast = partial(autocast_as, first.precision, first.device)
    references = _references(first, stream, marks, context, shards, autocast, work)
    packed = pack_preferences(stream, marks, context, check_stop=work.check_stop)
    reader = PreferenceReader(stream, packed, marks, context, 0, references)
    model.preference_beta = first.profile.dpo.beta
    loss = sum_preferences(
        model,
        (reader.read(position, 1) for position in range(reader.num_windows)),
        autocast=autocast,
        check_stop=work.check_stop,
    )
    share, low, high = share_interval(loss.correct, loss.tokens)
    return PreferenceScores(loss.tokens, loss.nats_per_token, loss.margin, share, low, high)


def _references(
    first: FirstModel,
    stream: Tokens,
    marks: Marks,
    context: int,
    shards: PreparedData | None,
    autocast: Callable[[], AbstractContextManager[object]],
    work: PrepareContext,
) -> References:
    """Return what training kept for these pairs, or compute it."""
    if shards is not None:
        path = reference_file(shards.directory, "validation", first.key, context)
        kept = read_references(path, stream, marks, context)
        if kept is not None:
            return kept
    reference = ReferenceModel(first.build, autocast)
    return ensure_references(None, stream, marks, context, reference, Work(work.check_stop))


def chosen_conversations(stream: Tokens, marks: Marks) -> MemoryTokens:
    """Return the chosen answers of pairs with their prompts, as a stream of conversations."""
    separator = np.array([marks.separator])
    parts = (
        (both_answers(found, marks)[0], separator) for _, found in read_conversations(stream, marks)
    )
    return MemoryTokens(np.concatenate([separator, *itertools.chain.from_iterable(parts)]))
