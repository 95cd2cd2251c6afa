"""Check before costly work whether both parts of the text are long enough for the context."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, TypeAlias

from llmtrain.data.corpus import Corpus
from llmtrain.data.corpus_stats import CorpusStatsBuilder
from llmtrain.data.sources.resolve import BUILTIN_PYTHON
from llmtrain.data.split import Side
from llmtrain.errors import DataError
from llmtrain.prepare.context import MeasuredText, PrepareContext
from llmtrain.profile.schema import DataSection
from llmtrain.progress import Note

_BYTES_PER_TOKEN = 6  # more bytes per token than most tokenizers reach
_LARGEST_FRACTION = 0.25  # the greatest validation fraction for a short text
_GROWTH = 1.5
_WINDOWS = 2  # the windows of validation text to aim for
_NAMES: dict[Side, str] = {"train": "text to train on", "validation": "validation text"}
_SHORTEST_CONTEXT = 32  # the shortest context to propose


# The length of each part, in tokens or in bytes.
Lengths: TypeAlias = Mapping[Side, int]
Unit = Literal["tokens", "bytes"]
_BOUND: dict[Unit, str] = {"tokens": "", "bytes": "at most "}  # a token has a byte or more


def check_length(
    corpus: Corpus, section: DataSection, context: int, prepare: PrepareContext
) -> None:
    """Raise DataError if the text is certainly too short for windows of `context`.

    Of sources with weights each has to have a window. Reads only as much as is needed to decide.
    """
    if section.weights is not None:
        _require_every_source(corpus, context, prepare)
    if BUILTIN_PYTHON in section.specs and section.validation is None:
        return
    builder = CorpusStatsBuilder()
    for document in corpus.documents():
        prepare.check_stop()
        builder.add(document)
        if not corpus.has_validation and _is_long(builder.text_bytes, section, context):
            return
    text = MeasuredText(corpus, corpus.facts(builder), section, prepare)
    require_bytes(_with_working_fraction(text, context), context)


def _require_every_source(corpus: Corpus, context: int, prepare: PrepareContext) -> None:
    """Raise DataError for a source with too few bytes for one window with any tokenizer."""
    for source in corpus.sources:
        found_bytes = 1
        for document in replace(corpus, sources=(source,), validation=()).documents():
            prepare.check_stop()
            found_bytes += len(document.text.encode()) + 1
            if found_bytes > context:
                break
        else:
            shorter = _shorter_context(found_bytes // _BYTES_PER_TOKEN, context)
            raise DataError(
                f"{source.spec} has at most {found_bytes} tokens, too few for one window of "
                f"context {context}: a source with a weight fills windows of its own",
                hint=", or ".join([*shorter, "leave that source out, or add text to it"]),
            )


def _with_working_fraction(text: MeasuredText, context: int) -> MeasuredText:
    """Return the text; of a short one a larger fraction is held out, at most a quarter.

    If the fraction may hold out less than one window, it grows until two are held out.
    """
    if text.corpus.has_validation or _is_long(text.stats.text_bytes, text.section, context):
        return text
    window_bytes = context * _BYTES_PER_TOKEN
    fraction = text.section.validation_fraction
    if _bytes_of(text)["validation"] >= window_bytes:
        return text
    while fraction < _LARGEST_FRACTION:
        fraction = min(_LARGEST_FRACTION, round(fraction * _GROWTH, 4))
        if _bytes_of(text.with_fraction(fraction))["validation"] >= _WINDOWS * window_bytes:
            break
    return text.with_fraction(fraction)


def with_working_fraction(text: MeasuredText, context: int) -> MeasuredText:
    """Return the text; of a short one more is held out than asked, which is announced."""
    changed = _with_working_fraction(text, context)
    asked, fraction = text.section.validation_fraction, changed.section.validation_fraction
    if fraction != asked:
        said = f"the text is short: {fraction:.1%} of it is held out for validation instead of"
        text.prepare.observe(Note(f"{said} {asked:.1%}"))
    return changed


def require_bytes(text: MeasuredText, context: int) -> None:
    """Raise DataError if a part has too few bytes for one window with any tokenizer."""
    if text.corpus.has_validation or not _is_long(text.stats.text_bytes, text.section, context):
        _require(_bytes_of(text), "bytes", text, context)


def require_tokens(train: int, validation: int, text: MeasuredText, context: int) -> None:
    """Raise DataError if a part has too few tokens for one window."""
    _require({"train": train, "validation": validation}, "tokens", text, context)


def _is_long(text_bytes: int, section: DataSection, context: int) -> bool:
    """Return whether both parts certainly have several windows."""
    share = min(section.validation_fraction, 1 - section.validation_fraction)
    return text_bytes * share >= 4 * context * _BYTES_PER_TOKEN


def _bytes_of(text: MeasuredText) -> Lengths:
    """Return the bytes of text and separators, an upper bound on the number of tokens."""
    found: dict[Side, int] = {"train": 1, "validation": 1}
    for piece in text.split().assign(text.corpus.documents()):
        found[piece.side] += len(piece.document.text.encode()) + 1
    return found


def _require(lengths: Lengths, unit: Unit, text: MeasuredText, context: int) -> None:
    sides: tuple[tuple[Side, Side], ...] = (("train", "validation"), ("validation", "train"))
    for side, other in sides:
        if lengths[side] <= context:
            raise DataError(
                f"the {_NAMES[side]} has {_BOUND[unit]}{lengths[side]} tokens, too few for one "
                f"window of context {context}; the {_NAMES[other]} has {lengths[other]}",
                hint=_hint(lengths, unit, side, text, context),
            )


def _hint(lengths: Lengths, unit: Unit, side: Side, text: MeasuredText, context: int) -> str:
    """Return a hint: another fraction or a shorter context if that suffices, else more text."""
    per_token = 1 if unit == "tokens" else _BYTES_PER_TOKEN
    tokens = sum(lengths.values()) // per_token
    advice = []
    if not text.corpus.has_validation:
        needed = math.ceil(100 * _WINDOWS * (context + 1) / max(1, tokens)) / 100
        if needed <= 0.5 and (needed > text.section.validation_fraction) == (side == "validation"):
            advice.append(f"--set data.validation_fraction={needed:g}")
    advice += _shorter_context(min(lengths.values()) // per_token, context)
    file = "data.validation" if text.corpus.has_validation and side == "validation" else "--data"
    return ", or ".join([*advice, f"add text with {file}"])


def _shorter_context(tokens: int, context: int) -> list[str]:
    """Return the option of a context of which `tokens` fill windows, if it is worth training."""
    shorter = 1 << max(0, tokens // _WINDOWS).bit_length() >> 1
    return [f"--set model.context={shorter}"] if _SHORTEST_CONTEXT <= shorter < context else []
