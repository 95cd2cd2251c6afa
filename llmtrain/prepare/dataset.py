"""Prepare the tokenizer and the shards of a run, or open them in the cache."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from llmtrain.data.batches.mixture import MixedSource, locate_sources
from llmtrain.data.corpus import Corpus
from llmtrain.data.corpus_stats import CorpusStats
from llmtrain.data.quality.clean import Cleaned, clean
from llmtrain.data.quality.dropped import DropCount
from llmtrain.data.quality.filters import filters_of
from llmtrain.data.quality.leakage import Leakage
from llmtrain.data.shards.build import BuildOptions, ShardSpec
from llmtrain.data.shards.encode import Encode
from llmtrain.data.shards.prepared import PreparedData, entry_directory, open_prepared
from llmtrain.data.shards.prepared import prepare as prepare_shards
from llmtrain.data.sources.download import FetchOptions
from llmtrain.data.sources.resolve import BUILTIN_PYTHON, resolve_sources
from llmtrain.data.sources.urls import without_secrets
from llmtrain.errors import DataError
from llmtrain.files import cache_directory
from llmtrain.prepare.chat import ChatEncoder, encode_conversations, encoder_of
from llmtrain.prepare.context import MeasuredText, PrepareContext, TimedProgress
from llmtrain.prepare.leakage_cache import cached_leakage, leakage_warning
from llmtrain.prepare.length import require_bytes, require_tokens, with_working_fraction
from llmtrain.prepare.tokenizer import ensure_tokenizer, load_tokenizer
from llmtrain.profile.schema import DataSection
from llmtrain.progress import Note
from llmtrain.tokenizer import Tokenizer
from llmtrain.tokenizer.encode_processes import encode_in_processes, encode_in_this_process

_NOTED_SHARE = 0.01  # of the text; a smaller share is not announced
_WORTH_PROCESSES_BYTES = 16 << 20  # of text: each process takes a second to start


@dataclass(frozen=True, slots=True)
class Dataset:
    """The data of a run. `directory` is the cache entry that every rank opens."""

    tokenizer: Tokenizer
    tokenizer_directory: Path
    shards: PreparedData
    sources: list[dict[str, object]]
    checked: dict[str, object] | None = None  # dropped documents, leakage; None: no longer known
    mixture: tuple[MixedSource, ...] = ()  # if sources have weights
    left_out: tuple[DropCount, ...] = ()  # if they were read in this process


def prepare_dataset(
    section: DataSection,
    vocab_size: int,
    prepare: PrepareContext,
    *,
    context: int | None = None,
    corpus: Corpus | None = None,
) -> Dataset:
    """Prepare token shards of the profile's sources, and their tokenizer. Raises DataError.

    With a `context` both parts have at least one window, and of a short text more is held out than
    the section says. `corpus`: the sources, if they are resolved already.
    """
    is_own = section.specs == (BUILTIN_PYTHON,)  # the user neither chose nor can fix that text
    is_chat = section.has_conversations  # whose windows are packed, however short the text is
    text, left_out = _measured_text(section, prepare, corpus, warns=not is_own)
    corpus, stats = text.corpus, text.stats
    if context is not None and not is_chat:
        text = with_working_fraction(text, context)
        require_bytes(text, context)
    leakage = _leakage(text, warns=not is_own)
    directory = ensure_tokenizer(text, vocab_size)
    tokenizer = load_tokenizer(directory, vocab_size)
    encoder = encoder_of(section, tokenizer)
    spec = ShardSpec(corpus, stats, encoder, text.section.validation_fraction)
    options = BuildOptions(
        partial(encode_conversations, encoder, prepare.check_stop)
        if isinstance(encoder, ChatEncoder)
        else _encode_with(directory, tokenizer, stats, prepare),
        on_progress=TimedProgress("tokenizing", prepare.observe),
        check_stop=prepare.check_stop,
        on_wait=prepare.announce_waiting,
        made_from={"tokenizer_directory": str(directory)},
    )
    shards = prepare_shards(spec, options, cache_directory())
    checked: dict[str, object] = {
        "left_out": [tally.document() for tally in left_out],
        "leakage": leakage.document() if leakage is not None else None,
        "documents": _documents(stats),
    }
    try:
        if context is not None and not is_chat:
            index = shards.index
            require_tokens(index.train.tokens, index.validation.tokens, text, context)
        mixture = _mixture(shards, text)
    except BaseException:
        shards.close()
        raise
    sources = corpus.describe()
    return Dataset(tokenizer, directory, shards, sources, checked, mixture, left_out)


def _measured_text(
    section: DataSection, prepare: PrepareContext, corpus: Corpus | None, *, warns: bool
) -> tuple[MeasuredText, tuple[DropCount, ...]]:
    """Read the text once: return it with its statistics, and what is left out of it."""
    cleaned = clean_corpus(corpus or resolve_corpus(section, prepare), section, prepare)
    corpus, left_out = cleaned.corpus, cleaned.left_out
    bad = DropCount("that cannot be used (data.on_error: skip)")
    reading = prepare.with_progress("reading", corpus).counting(bad.add_bad)
    stats = reading.measure(prepare.check_stop)
    if bad.documents:
        left_out = (*left_out, bad)
        prepare.observe(Note(f"left out {bad.describe()}", is_warning=True))
    if warns and stats.repeated_bytes > _NOTED_SHARE * stats.text_bytes:
        prepare.observe(_repeats_note(stats))
    if warns:
        announce_skipped(corpus, prepare)
    return MeasuredText(corpus, stats, section, prepare), left_out


def _documents(stats: CorpusStats) -> dict[str, object]:
    """Return how many documents there are, how long, and how many repeat an earlier one."""
    return {
        "documents": stats.documents,
        "text_bytes": stats.text_bytes,
        "repeated_documents": stats.repeated_documents,
        "repeated_bytes": stats.repeated_bytes,
        "length_bytes": list(stats.length_bytes),
    }


def _leakage(text: MeasuredText, *, warns: bool) -> Leakage | None:
    """Return the held-out text that is trained on too, with a warning if it is much."""
    leakage = cached_leakage(text)
    if leakage is not None and warns:
        is_without_copies = text.section.duplicates == "drop_near"
        warning = leakage_warning(leakage, is_without_copies=is_without_copies)
        if warning is not None:
            text.prepare.observe(warning)
    return leakage


def _mixture(shards: PreparedData, text: MeasuredText) -> tuple[MixedSource, ...]:
    """Return the sources' ranges of tokens if they have weights. Raises DataError."""
    weights, separator_id = text.section.weights, shards.index.separator_id
    if weights is None:
        return ()
    return locate_sources(text.corpus, text.split(), shards.train, separator_id, weights)


def _repeats_note(stats: CorpusStats) -> Note:
    share = stats.repeated_bytes / stats.text_bytes
    return Note(
        f"{stats.repeated_documents} of {stats.documents} documents are equal to an earlier one, "
        f"{share:.1%} of the text; --set data.duplicates=drop_exact leaves them out"
    )


def resolve_corpus(section: DataSection, prepare: PrepareContext) -> Corpus:
    """Return the corpus of the section's sources, fetched if remote. Raises DataError."""
    fetching = FetchOptions(
        cache_directory(),
        section.text_field,
        section.rows,
        TimedProgress("fetching", prepare.observe),
        prepare.check_stop,
    )
    return resolve_sources(
        section.specs,
        validation=section.validation,
        text_field=section.text_field,
        rows=section.rows,
        include=section.include,
        exclude=section.exclude,
        skips_bad=section.on_error == "skip",
        fetching=fetching,
    )


def announce_skipped(corpus: Corpus, prepare: PrepareContext) -> None:
    """Announce the number of skipped files and directories by reason, and the held-out files."""
    directories = {each.reason for each in corpus.skipped if each.origin.endswith(os.sep)}
    for reason, count in corpus.skipped_by_reason.items():
        one, more = ("directory", "directories") if reason in directories else ("file", "files")
        prepare.observe(Note(f"skipped {count} {one if count == 1 else more}: {reason}"))
    held_out = sum(file.held_out for source in corpus.sources for file in source.files)
    if held_out:
        text = f"{held_out} file{'s' if held_out > 1 else ''} of a dataset's validation split"
        prepare.observe(Note(f"validation text: {text}"))


def clean_corpus(corpus: Corpus, section: DataSection, prepare: PrepareContext) -> Cleaned:
    """Return the corpus without what the section's rules drop; announce the counts."""
    filters = filters_of(section.filters)
    watched = prepare.with_progress("deciding what to leave out", corpus)
    cleaned = clean(watched, filters, section.duplicates, prepare.check_stop)
    for count in cleaned.left_out:
        prepare.observe(Note(f"left out {count.describe()}"))
    return replace(cleaned, corpus=replace(cleaned.corpus, on_read=None))


def _encode_with(
    directory: Path, tokenizer: Tokenizer, stats: CorpusStats, prepare: PrepareContext
) -> Encode:
    """Return an `Encode` by processes, or by this one if the text is short."""
    if prepare.workers == 1 or stats.text_bytes < _WORTH_PROCESSES_BYTES:
        return partial(encode_in_this_process, tokenizer)
    return partial(
        encode_in_processes, directory, tokenizer.fingerprint, prepare.workers, prepare.check_stop
    )


def open_dataset(
    section: DataSection,
    vocab_size: int,
    key: str,
    tokenizer_directory: Path,
    prepare: PrepareContext,
    context: int | None = None,
) -> Dataset:
    """Open the data that a run started with: cached shards, even if their sources changed.

    If the cache entry is gone, the shards are made again, and must be the same.
    """
    tokenizer = load_tokenizer(tokenizer_directory, vocab_size)
    try:
        shards = open_prepared(entry_directory(cache_directory(), key))
    except DataError:
        prepare.observe(Note("the token shards are no longer in the cache; making them again"))
        again = section.model_copy(update={"tokenizer": str(tokenizer_directory)})
        return _made_again(again, vocab_size, key, prepare, context)
    if shards.index.encoder_fingerprint != encoder_of(section, tokenizer).fingerprint:
        shards.close()
        raise DataError(
            f"the token shards {key} were made with another tokenizer than {tokenizer_directory}",
            hint="start a new run with another --out",
        )
    return Dataset(tokenizer, tokenizer_directory, shards, [])


def _made_again(
    section: DataSection, vocab_size: int, key: str, prepare: PrepareContext, context: int | None
) -> Dataset:
    """Prepare the shards `key` again. Raises DataError if the text is gone or has changed."""
    names = ", ".join(map(without_secrets, section.specs))
    needed = (
        f"the run needs the text that it was started with, or {entry_directory(Path(), key)} in "
        f"{cache_directory()}; if the text is elsewhere now, name it with --data"
    )
    for length in dict.fromkeys((context, None)):  # runs of 0.2.0 split short texts without it
        try:
            dataset = prepare_dataset(section, vocab_size, prepare, context=length)
        except DataError as error:
            if length is None or context is None:
                message = f"the token shards of the run are not in the cache: {error.message}"
                raise DataError(message, hint=needed) from error
            continue
        if dataset.shards.index.key == key:
            return dataset
        dataset.shards.close()
    raise DataError(
        f"the text of {names} has changed since the run started, and its token shards are not in "
        "the cache",
        hint=needed,
    )


def with_recorded_mixture(
    dataset: Dataset, section: DataSection, ranges: Sequence[tuple[int, int]]
) -> Dataset:
    """Return the dataset with the sources' token ranges that the run recorded.

    Raises DataError if they do not match the profile's sources.
    """
    weights = section.weights or ()
    if len(ranges) != len(weights):
        dataset.shards.close()
        raise DataError(
            f"run.yaml says where {len(ranges)} sources with weights lie, and the run has "
            f"{len(weights)}",
            hint="start a new run with another --out",
        )
    sources = zip(map(without_secrets, section.specs), weights, ranges, strict=False)
    return replace(dataset, mixture=tuple(MixedSource(s, w, *place) for s, w, place in sources))
