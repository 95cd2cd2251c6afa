"""The tokenizer and the shards of a run: from the cache, or made now."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from llmtrain.data.addresses import shown
from llmtrain.data.mixture import MixedSource, locate_sources
from llmtrain.data.remote import Fetching
from llmtrain.data.shards import PreparedData, entry_directory, open_prepared, prepare
from llmtrain.data.sources import Corpus, CorpusFacts, resolve_sources
from llmtrain.data.split import plan_split
from llmtrain.errors import DataError
from llmtrain.files import cache_directory
from llmtrain.profile.schema import DataSection
from llmtrain.tokenizer import Tokenizer, train_tokenizer
from llmtrain.tokenizer.learner import learn_apart
from llmtrain.train.events import Note, Observer, Progress
from llmtrain.units import format_bytes

_TOKENIZER_RECIPE = 1  # raised when training a tokenizer from the same text gives another


@dataclass(frozen=True, slots=True)
class Dataset:
    """What a run reads. `directory` is the cache entry that every rank opens."""

    tokenizer: Tokenizer
    tokenizer_directory: Path
    shards: PreparedData
    sources: list[dict[str, object]]
    mixture: tuple[MixedSource, ...] = ()  # where sources have weights


@dataclass(frozen=True, slots=True)
class DataWork:
    """How data is prepared, and who is told."""

    threads: int
    observe: Observer
    check_stop: Callable[[], None]


def prepare_dataset(section: DataSection, vocab_size: int, work: DataWork) -> Dataset:
    """Token shards of the profile's sources, and their tokenizer. Raises DataError."""
    fetching = Fetching(
        cache_directory(),
        section.text_field,
        lambda done, total: work.observe(Progress("fetching", done, total)),
        work.check_stop,
    )
    corpus = resolve_sources(section.specs, text_field=section.text_field, fetching=fetching)
    facts = corpus.measure(work.check_stop)
    for reason, count in Counter(skipped.reason for skipped in corpus.skipped).items():
        work.observe(Note(f"skipped {count} files: {reason}"))
    if section.tokenizer == "auto":
        directory = _trained_tokenizer(corpus, facts, section, vocab_size, work)
    else:
        directory = Path(section.tokenizer)
    tokenizer = load_tokenizer(directory, vocab_size)
    shards = prepare(
        corpus,
        tokenizer,
        validation_fraction=section.validation_fraction,
        threads=work.threads,
        cache_directory=cache_directory(),
        on_progress=lambda done, total: work.observe(Progress("tokenizing", done, total)),
        check_stop=work.check_stop,
    )
    dataset = Dataset(tokenizer, directory, shards, corpus.describe())
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


def load_tokenizer(directory: Path, vocab_size: int) -> Tokenizer:
    """The tokenizer in `directory`. Raises DataError where the model has too few rows for it."""
    tokenizer = Tokenizer.load(directory)
    if tokenizer.vocab_size > vocab_size:
        raise DataError(
            f"tokenizer {directory} has {tokenizer.vocab_size} pieces, the model "
            f"{vocab_size} embedding rows",
            hint=f"--set model.vocab_size={tokenizer.vocab_size}",
        )
    return tokenizer


def _trained_tokenizer(
    corpus: Corpus, facts: CorpusFacts, section: DataSection, vocab_size: int, work: DataWork
) -> Path:
    """A cached tokenizer of the corpus's training side, trained now if there is none."""
    key = _tokenizer_key(facts.fingerprint, section.validation_fraction, vocab_size)
    directory = cache_directory() / "tokenizers" / key
    if (directory / "tokenizer.model").is_file():
        return directory
    work.observe(
        Note(f"training a tokenizer of {vocab_size} pieces on {format_bytes(facts.text_bytes)}")
    )
    directory.parent.mkdir(parents=True, exist_ok=True)  # it fails before the work, not after
    trained = train_tokenizer(
        _training_texts(corpus, facts, section, work),
        vocab_size=vocab_size,
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
    return directory


def _training_texts(
    corpus: Corpus, facts: CorpusFacts, section: DataSection, work: DataWork
) -> Iterator[str]:
    split = plan_split(corpus, facts, section.validation_fraction)
    for piece in split.assign(corpus.documents()):
        work.check_stop()
        if piece.side == "train":
            yield piece.document.text


def _tokenizer_key(fingerprint: str, validation_fraction: float, vocab_size: int) -> str:
    recipe = [_TOKENIZER_RECIPE, fingerprint, validation_fraction, vocab_size]
    return hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:32]


def _save_atomically(tokenizer: Tokenizer, directory: Path) -> None:
    temporary = Path(tempfile.mkdtemp(dir=directory.parent, prefix=".building-"))
    try:
        tokenizer.save(temporary)
        if not directory.exists():
            temporary.replace(directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
