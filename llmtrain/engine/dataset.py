"""The tokenizer and the shards of a run: from the cache, or made now."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from llmtrain.data.addresses import shown
from llmtrain.data.cleaning import Cleaned, clean
from llmtrain.data.corpus import Corpus
from llmtrain.data.encoding import Encode
from llmtrain.data.filters import filters_of
from llmtrain.data.gauge import CorpusFacts
from llmtrain.data.manifest import now_utc, versions, write_record
from llmtrain.data.mixture import MixedSource, locate_sources
from llmtrain.data.remote import Fetching
from llmtrain.data.shards import PreparedData, entry_directory, open_prepared, prepare
from llmtrain.data.sources import resolve_sources
from llmtrain.data.split import plan_split
from llmtrain.engine.leaking import known_leakage, leakage_warning
from llmtrain.errors import DataError
from llmtrain.files import cache_directory
from llmtrain.profile.schema import DataSection
from llmtrain.tokenizer import Tokenizer, open_tokenizer, train_tokenizer
from llmtrain.tokenizer.codec import NAMING_FILES
from llmtrain.tokenizer.encoders import encode_alone, encode_apart
from llmtrain.tokenizer.learner import learn_apart
from llmtrain.train.events import Note, Observer, Progress
from llmtrain.units import format_bytes

_TOLD_SHARE = 0.01  # of the text; less than that is not worth a line
_TOKENIZER_RECIPE = 2  # raised when training a tokenizer from the same text gives another
_WORTH_PROCESSES_BYTES = 16 << 20  # of text: each process takes a second to start


@dataclass(frozen=True, slots=True)
class Dataset:
    """What a run reads. `directory` is the cache entry that every rank opens."""

    tokenizer: Tokenizer
    tokenizer_directory: Path
    shards: PreparedData
    sources: list[dict[str, object]]
    checked: dict[str, object] | None = None  # left out, leakage; None: not known any more
    mixture: tuple[MixedSource, ...] = ()  # where sources have weights


@dataclass(frozen=True, slots=True)
class DataWork:
    """How data is prepared, and who is told."""

    workers: int  # processes that tokenize
    observe: Observer
    check_stop: Callable[[], None]


def prepare_dataset(section: DataSection, vocab_size: int, work: DataWork) -> Dataset:
    """Token shards of the profile's sources, and their tokenizer. Raises DataError."""
    cleaned = cleaned_corpus(found_corpus(section, work), section, work)
    corpus = cleaned.corpus
    facts = corpus.measure(work.check_stop)
    if facts.repeated_bytes > _TOLD_SHARE * facts.text_bytes:
        work.observe(_told_repeats(facts))
    for reason, count in Counter(skipped.reason for skipped in corpus.skipped).items():
        work.observe(Note(f"skipped {count} files: {reason}"))
    leakage = known_leakage(corpus, facts, section.validation_fraction, work.check_stop)
    if leakage is not None and (warning := leakage_warning(leakage)):
        work.observe(warning)
    directory = tokenizer_of(corpus, facts, section, vocab_size, work)
    tokenizer = load_tokenizer(directory, vocab_size)
    shards = prepare(
        corpus,
        tokenizer,
        validation_fraction=section.validation_fraction,
        threads=work.workers,
        cache_directory=cache_directory(),
        on_progress=TimedProgress("tokenizing", work.observe),
        check_stop=work.check_stop,
        facts=facts,
        encode=_encode_with(directory, tokenizer, facts, work),
        on_wait=lambda: work.observe(Note("another process prepares this text; waiting for it")),
        made_from={"tokenizer_directory": str(directory)},
    )
    checked: dict[str, object] = {
        "left_out": [tally.document() for tally in cleaned.left_out],
        "leakage": leakage.document() if leakage is not None else None,
    }
    dataset = Dataset(tokenizer, directory, shards, corpus.describe(), checked)
    return dataset if section.weights is None else _mixed(dataset, corpus, facts, section)


def _mixed(dataset: Dataset, corpus: Corpus, facts: CorpusFacts, section: DataSection) -> Dataset:
    shards = dataset.shards
    try:
        split = plan_split(corpus, facts, section.validation_fraction)
        mixture = locate_sources(
            corpus, split, shards.train, shards.index.separator_id, section.weights or ()
        )
    except BaseException:
        shards.close()
        raise
    return replace(dataset, mixture=mixture)


def tokenizer_of(
    corpus: Corpus, facts: CorpusFacts, section: DataSection, vocab_size: int, work: DataWork
) -> Path:
    """The directory of the tokenizer that the section names, or of the one trained for it."""
    if section.tokenizer == "auto":
        return _trained_tokenizer(corpus, facts, section, vocab_size, work)
    return Path(section.tokenizer)


def _told_repeats(facts: CorpusFacts) -> Note:
    share = facts.repeated_bytes / facts.text_bytes
    return Note(
        f"{facts.repeated_documents} of {facts.documents} documents are equal to an earlier one, "
        f"{share:.1%} of the text; --set data.duplicates=drop_exact leaves them out"
    )


def found_corpus(section: DataSection, work: DataWork) -> Corpus:
    """All that the section's sources name, brought here where it is elsewhere. Raises DataError."""
    fetching = Fetching(
        cache_directory(),
        section.text_field,
        TimedProgress("fetching", work.observe),
        work.check_stop,
    )
    return resolve_sources(
        section.specs,
        text_field=section.text_field,
        include=section.include,
        exclude=section.exclude,
        fetching=fetching,
    )


def cleaned_corpus(corpus: Corpus, section: DataSection, work: DataWork) -> Cleaned:
    """The corpus without what the section's rules leave out, of which everybody is told."""
    filters = filters_of(section.filters)
    if filters or section.duplicates != "keep":
        work.observe(Note("reading the text once, to decide what to leave out"))
    cleaned = clean(corpus, filters, section.duplicates, work.check_stop)
    for tally in cleaned.left_out:
        work.observe(Note(f"left out {tally.describe()}"))
    return cleaned


def _encode_with(
    directory: Path, tokenizer: Tokenizer, facts: CorpusFacts, work: DataWork
) -> Encode:
    """Processes of their own encode, or this one where starting them takes longer than that."""
    if work.workers == 1 or facts.text_bytes < _WORTH_PROCESSES_BYTES:
        return partial(encode_alone, tokenizer)
    return partial(encode_apart, directory, tokenizer.fingerprint, work.workers, work.check_stop)


class TimedProgress:
    """Tells an observer how far a work is, and when it will be done by how fast it went."""

    def __init__(self, phase: str, observe: Observer) -> None:
        self._phase = phase
        self._observe = observe
        self._begun: tuple[float, int] | None = None

    def __call__(self, done: int, total: int) -> None:
        """So much is done of so much."""
        now_s = time.monotonic()
        if self._begun is None:
            self._begun = (now_s, done)
        begun_s, begun_at = self._begun
        remaining_s = None
        if done > begun_at:
            remaining_s = (now_s - begun_s) / (done - begun_at) * (total - done)
        self._observe(Progress(self._phase, done, total, remaining_s))


def open_dataset(
    section: DataSection, vocab_size: int, key: str, tokenizer_directory: Path, work: DataWork
) -> Dataset:
    """The data that a run was begun with: cached shards, even if their sources have changed.

    Where the cache is gone the shards are made again, and have to come out the same.
    """
    tokenizer = load_tokenizer(tokenizer_directory, vocab_size)
    try:
        shards = open_prepared(entry_directory(cache_directory(), key))
    except DataError:
        work.observe(Note("the token shards are no longer in the cache; making them again"))
        again = section.model_copy(update={"tokenizer": str(tokenizer_directory)})
        dataset = prepare_dataset(again, vocab_size, work)
        if dataset.shards.index.key != key:
            raise DataError(
                f"the text of {', '.join(map(shown, section.specs))} is no longer what the run "
                "was begun with, and its token shards are not in the cache",
                hint="restore the text, or start a new run",
            ) from None
        return dataset
    if shards.index.encoder_fingerprint != tokenizer.fingerprint:
        shards.close()
        raise DataError(
            f"the token shards {key} were made with another tokenizer than {tokenizer_directory}",
            hint="start a new run with another --out",
        )
    return Dataset(tokenizer, tokenizer_directory, shards, [])


def with_recorded_mixture(
    dataset: Dataset, section: DataSection, ranges: Sequence[tuple[int, int]]
) -> Dataset:
    """The dataset with the tokens of each source where they were when the run was begun.

    Raises DataError where they are not those of the profile's sources.
    """
    weights = section.weights or ()
    if len(ranges) != len(weights):
        dataset.shards.close()
        raise DataError(
            f"run.yaml says where {len(ranges)} sources with weights lie, and the run has "
            f"{len(weights)}",
            hint="start a new run with another --out",
        )
    sources = zip(map(shown, section.specs), weights, ranges, strict=False)
    return replace(dataset, mixture=tuple(MixedSource(s, w, *place) for s, w, place in sources))


def load_tokenizer(path: Path, vocab_size: int) -> Tokenizer:
    """The tokenizer of a directory or a file of another's, where the model has rows for it.

    Raises DataError.
    """
    tokenizer = open_tokenizer(path)
    if tokenizer.vocab_size > vocab_size:
        raise DataError(
            f"tokenizer {path} has {tokenizer.vocab_size} pieces, the model "
            f"{vocab_size} embedding rows",
            hint=f"--set model.vocab_size={tokenizer.vocab_size}",
        )
    return tokenizer


def _trained_tokenizer(
    corpus: Corpus, facts: CorpusFacts, section: DataSection, vocab_size: int, work: DataWork
) -> Path:
    """A cached tokenizer of the corpus's training side, trained now if there is none."""
    key = _tokenizer_key(facts.fingerprint, section, vocab_size)
    directory = cache_directory() / "tokenizers" / key
    if any((directory / name).is_file() for name in NAMING_FILES):
        return directory
    work.observe(
        Note(f"training a tokenizer of {vocab_size} pieces on {format_bytes(facts.text_bytes)}")
    )
    directory.parent.mkdir(parents=True, exist_ok=True)  # it fails before the work, not after
    trained = train_tokenizer(
        _training_texts(corpus, facts, section, work),
        vocab_size=vocab_size,
        kind=section.tokenizer_kind,
        learn=partial(learn_apart, check_stop=work.check_stop),
    )
    pieces = trained.tokenizer.vocab_size
    if pieces < vocab_size:
        work.observe(
            Note(
                f"the text gives only {pieces} pieces of {vocab_size}; the rest of the embedding "
                f"stays unused (--set model.vocab_size={pieces})",
                is_warning=True,
            )
        )
    _save_atomically(trained.tokenizer, directory)
    made = {"at": now_utc(), "versions": versions()}
    write_record(directory, {"key": key, "made": made, "sources": corpus.describe()})
    return directory


def _training_texts(
    corpus: Corpus, facts: CorpusFacts, section: DataSection, work: DataWork
) -> Iterator[str]:
    split = plan_split(corpus, facts, section.validation_fraction)
    for piece in split.assign(corpus.documents()):
        work.check_stop()
        if piece.side == "train":
            yield piece.document.text


def _tokenizer_key(fingerprint: str, section: DataSection, vocab_size: int) -> str:
    recipe = [_TOKENIZER_RECIPE, fingerprint, section.validation_fraction, vocab_size]
    if section.tokenizer_kind != "bpe":
        recipe.append(section.tokenizer_kind)
    return hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:32]


def _save_atomically(tokenizer: Tokenizer, directory: Path) -> None:
    temporary = Path(tempfile.mkdtemp(dir=directory.parent, prefix=".building-"))
    try:
        tokenizer.save(temporary)
        if not directory.exists():
            temporary.replace(directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
