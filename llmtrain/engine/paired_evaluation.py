"""Several models on the same documents: the loss of each, and whether differences are seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np

from llmtrain.data.shards.token_stream import TokenStream
from llmtrain.engine.evaluation import (
    READ_TOKENS,
    Evaluation,
    Texts,
    evaluate_run,
    evaluate_shards,
    evaluate_texts,
    mask_as_trained,
    validation_shards,
)
from llmtrain.engine.inference import Trained, load_trained
from llmtrain.prepare.context import PrepareContext
from llmtrain.profile.schema import DeviceSection
from llmtrain.progress import Note
from llmtrain.tokenizer import Tokenizer
from llmtrain.train.events import Observer
from llmtrain.train.run_directory.directory import RunDirectory
from llmtrain.train.run_directory.saved_evaluation import SavedEvaluation, save_evaluation

_SPLIT = ("validation", "validation_fraction")  # what decides which documents are held out


def evaluate_models(
    runs: Sequence[str],
    data: Sequence[str],
    device: DeviceSection,
    observe: Observer,
    check_stop: Callable[[], None],
    text_field: str = "text",
    questions: int = 100,
) -> list[Evaluation]:
    """Evaluate each model on all of `data`, or on all of the first run's validation text.

    On its own validation text the first one's evaluation is saved in its run. Models are in memory
    one at a time. A warning says where the validation text of the first may
    have been training text of another.
    """
    evaluated = partial(
        evaluate_run,
        data=data,
        device=device,
        observe=observe,
        check_stop=check_stop,
        text_field=text_field,
        questions=questions,
    )
    first = evaluated(runs[0])
    if not data:
        _save(first, observe)
    found = [first]
    for run in runs[1:]:
        if data:
            found.append(evaluated(run))
            continue
        trained = load_trained(run, device, observe)
        mask_as_trained(trained)
        work = PrepareContext(trained.plan.workers.value, observe, check_stop)
        record = RunDirectory(first.checkpoint.parent.parent).read_record()
        if not _hold_out_the_same(record, trained.record):
            text = (
                f"{trained.checkpoint} was not trained on the text of {first.checkpoint}, or "
                "held out other parts of it: it may have seen this validation text"
            )
            observe(Note(text, is_warning=True))
        found.append(_evaluate_on(record, first, runs[0], trained, work))
    return found


def _save(evaluation: Evaluation, observe: Observer) -> None:
    """Save an evaluation in its run, for the report; a run that cannot be written gets a note."""

    def known(value: float | None) -> float | None:
        return value if value is not None and math.isfinite(value) else None

    interval = evaluation.interval
    saved = SavedEvaluation(
        checkpoint=evaluation.checkpoint.name,
        bits_per_byte=known(evaluation.bits_per_byte),
        low=known(interval.low),
        high=known(interval.high),
        unit=interval.unit,
        units=interval.units,
        tokens=evaluation.tokens,
        bytes=evaluation.bytes,
        baselines={name: known(value) for name, value in asdict(evaluation.baselines).items()},
    )
    try:
        save_evaluation(RunDirectory(evaluation.checkpoint.parent.parent), saved)
    except OSError as error:
        observe(Note(f"the evaluation is not saved in its run: {error.strerror}"))


def _evaluate_on(
    record: Mapping[str, Any],
    first: Evaluation,
    run: str,
    trained: Trained,
    work: PrepareContext,
) -> Evaluation:
    """Evaluate a model on the validation documents of the run of `first`."""
    with validation_shards(record, first.checkpoint, run, work) as shards:
        if trained.tokenizer.fingerprint == shards.index.encoder_fingerprint:
            return evaluate_shards(trained, shards, work)
        return evaluate_texts(
            trained, _documents(shards.validation, Tokenizer.load(first.checkpoint)), work
        )


def _documents(stream: TokenStream, tokenizer: Tokenizer) -> Texts:
    """Return the documents of a stream, decoded one by one."""

    def texts() -> Iterator[str]:
        pending: list[int] = []
        for start in range(1, stream.num_tokens, READ_TOKENS):  # after the first separator
            ids = stream.read(start, min(READ_TOKENS, stream.num_tokens - start))
            ends = np.flatnonzero(ids == tokenizer.separator_id)
            begin = 0
            for end in ends.tolist():
                yield tokenizer.decode(pending + ids[begin:end].tolist())
                pending, begin = [], end + 1
            pending += ids[begin:].tolist()

    return texts


def _hold_out_the_same(first: Mapping[str, Any], other: Mapping[str, Any] | None) -> bool:
    """Return whether two runs read the same text and hold out the same documents."""
    if other is None:
        return False
    texts = [(each.get("data") or {}).get("corpus_sha256") for each in (first, other)]
    splits = [[each["profile"].get("data", {}).get(n) for n in _SPLIT] for each in (first, other)]
    return texts[0] is not None and texts[0] == texts[1] and splits[0] == splits[1]
