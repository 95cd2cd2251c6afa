"""Check before costly work whether both parts of the text are long enough for the context."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from llmtrain.data.corpus import Corpus
from llmtrain.data.corpus_stats import CorpusStats, CorpusStatsBuilder
from llmtrain.data.sources.resolve import BUILTIN_PYTHON
from llmtrain.data.split import Side, plan_split
from llmtrain.errors import DataError
from llmtrain.prepare.context import PrepareContext
from llmtrain.profile.schema import DataSection
from llmtrain.progress import Note

_BYTES_PER_TOKEN = 6  # more bytes per token than most tokenizers reach
_LARGEST_FRACTION = 0.25  # the greatest validation fraction for a short text
_GROWTH = 1.5
_WINDOWS = 2  # the windows of validation text to aim for
_NAMES: dict[Side, str] = {"train": "text to train on", "validation": "validation text"}
_SHORTEST_CONTEXT = 32  # the shortest context to propose


@dataclass(frozen=True, slots=True)
class Lengths:
    """The length of both parts of the text, in tokens or in bytes."""

    train: int
    validation: int
    unit: Literal["tokens", "bytes"]

    def of(self, side: Side) -> int:
        return self.train if side == "train" else self.validation


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
    stats = corpus.facts(builder)
    fraction = working_fraction(corpus, stats, section, context)
    require_bytes(corpus, stats, section, fraction, context)


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
                f"{source.spec} has {found_bytes} bytes, too few for one window of context "
                f"{context}: a source with a weight fills windows of its own",
                hint=", or ".join([*shorter, "leave that source out, or add text to it"]),
            )


def working_fraction(
    corpus: Corpus, stats: CorpusStats, section: DataSection, context: int
) -> float:
    """Return `data.validation_fraction`; for a short text a larger one, of a quarter at most.

    If the fraction may hold out less than one window, it grows until two are held out.
    """
    fraction = section.validation_fraction
    if corpus.has_validation or _is_long(stats.text_bytes, section, context):
        return fraction
    window_bytes = context * _BYTES_PER_TOKEN
    if _bytes_of(corpus, stats, fraction).validation >= window_bytes:
        return fraction
    while fraction < _LARGEST_FRACTION:
        fraction = min(_LARGEST_FRACTION, round(fraction * _GROWTH, 4))
        if _bytes_of(corpus, stats, fraction).validation >= _WINDOWS * window_bytes:
            break
    return fraction


def with_working_fraction(
    corpus: Corpus, stats: CorpusStats, section: DataSection, context: int, prepare: PrepareContext
) -> DataSection:
    """Return the section with the working fraction; announce it if it differs."""
    fraction = working_fraction(corpus, stats, section, context)
    if fraction == section.validation_fraction:
        return section
    prepare.observe(
        Note(
            f"the text is short: {fraction:.1%} of it is held out for validation instead of "
            f"{section.validation_fraction:.1%}"
        )
    )
    return section.model_copy(update={"validation_fraction": fraction})


def require_bytes(
    corpus: Corpus, stats: CorpusStats, section: DataSection, fraction: float, context: int
) -> None:
    """Raise DataError if a part has too few bytes for one window with any tokenizer."""
    if corpus.has_validation or not _is_long(stats.text_bytes, section, context):
        lengths = _bytes_of(corpus, stats, fraction)
        _require(lengths, context, fraction, is_given=corpus.has_validation)


def require_tokens(
    train: int, validation: int, context: int, fraction: float, *, is_given: bool
) -> None:
    """Raise DataError if a part has too few tokens for one window. `is_given`: not split off."""
    _require(Lengths(train, validation, "tokens"), context, fraction, is_given=is_given)


def _is_long(text_bytes: int, section: DataSection, context: int) -> bool:
    """Return whether both parts certainly have several windows."""
    share = min(section.validation_fraction, 1 - section.validation_fraction)
    return text_bytes * share >= 4 * context * _BYTES_PER_TOKEN


def _bytes_of(corpus: Corpus, stats: CorpusStats, fraction: float) -> Lengths:
    """Return the bytes of text and separators, an upper bound on the number of tokens."""
    found: dict[Side, int] = {"train": 1, "validation": 1}
    for piece in plan_split(corpus, stats, fraction).assign(corpus.documents()):
        found[piece.side] += len(piece.document.text.encode()) + 1
    return Lengths(found["train"], found["validation"], "bytes")


def _require(lengths: Lengths, context: int, fraction: float, *, is_given: bool) -> None:
    sides: tuple[tuple[Side, Side], ...] = (("train", "validation"), ("validation", "train"))
    for side, other in sides:
        if lengths.of(side) <= context:
            raise DataError(
                f"the {_NAMES[side]} has {lengths.of(side)} {lengths.unit}, too few for one "
                f"window of context {context}; the {_NAMES[other]} has {lengths.of(other)}",
                hint=_hint(lengths, side, context, fraction, is_given=is_given),
            )


def _hint(lengths: Lengths, side: Side, context: int, fraction: float, *, is_given: bool) -> str:
    """Return a hint: another fraction or a shorter context if that suffices, else more text."""
    per_token = 1 if lengths.unit == "tokens" else _BYTES_PER_TOKEN
    tokens = (lengths.train + lengths.validation) // per_token
    advice = []
    if not is_given:
        needed = math.ceil(100 * _WINDOWS * (context + 1) / max(1, tokens)) / 100
        if needed <= 0.5 and (needed > fraction) == (side == "validation"):
            advice.append(f"--set data.validation_fraction={needed:g}")
    shortest = min(lengths.train, lengths.validation) // per_token
    advice += _shorter_context(shortest, context)
    file = "data.validation" if is_given and side == "validation" else "--data"
    return ", or ".join([*advice, f"add text with {file}"])


def _shorter_context(tokens: int, context: int) -> list[str]:
    """Return the option of a context of which `tokens` fill windows, if it is worth training."""
    shorter = 1 << max(0, tokens // _WINDOWS).bit_length() >> 1
    return [f"--set model.context={shorter}"] if _SHORTEST_CONTEXT <= shorter < context else []
