"""Load the tokenizer that a run's profile names, or train one on its text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from llmtrain.data.corpus import Corpus
from llmtrain.data.corpus_stats import CorpusStats
from llmtrain.data.shards.cache_entry import (
    building_directory,
    locked_entry,
    map_write_errors,
    replace_entry,
    require_readable,
)
from llmtrain.data.shards.manifest import now_utc, versions, write_record
from llmtrain.data.split import plan_split
from llmtrain.errors import DataError
from llmtrain.files import cache_directory, json_key, path_of
from llmtrain.prepare.context import PrepareContext
from llmtrain.profile.schema import DataSection
from llmtrain.progress import Note
from llmtrain.tokenizer import Tokenizer, TrainedTokenizer, open_tokenizer, train_tokenizer
from llmtrain.tokenizer.of_model import with_reserved_pieces
from llmtrain.tokenizer.train_process import train_in_process
from llmtrain.units import format_bytes

_TOKENIZER_RECIPE = 2  # raised when training a tokenizer from the same text gives another one


def ensure_tokenizer(
    corpus: Corpus,
    stats: CorpusStats,
    section: DataSection,
    vocab_size: int,
    prepare: PrepareContext,
) -> Path:
    """Return the directory of the tokenizer that the section names, or train one.

    `data.tokenizer_reserve` control pieces are added to one that is named.
    """
    if section.tokenizer == "auto":
        return _trained_tokenizer(corpus, stats, section, vocab_size, prepare)
    path = path_of(section.tokenizer)
    if not section.tokenizer_reserve:
        return path
    extended = with_reserved_pieces(open_tokenizer(path), section.tokenizer_reserve)
    return cached_tokenizer(extended, {"extended": str(path)})


def cached_tokenizer(tokenizer: Tokenizer, record: Mapping[str, object]) -> Path:
    """Return the directory of the cache in which the tokenizer is; write it where it is not."""
    key = json_key(["imported", tokenizer.fingerprint])
    directory = cache_directory() / "tokenizers" / key
    if not _is_intact(directory):
        with map_write_errors(directory.parent, "a tokenizer"):
            _publish(tokenizer, directory, {"key": key, **record})
    return directory


def load_tokenizer(path: Path, vocab_size: int) -> Tokenizer:
    """Load a tokenizer for a model with `vocab_size` embedding rows.

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
    corpus: Corpus,
    stats: CorpusStats,
    section: DataSection,
    vocab_size: int,
    prepare: PrepareContext,
) -> Path:
    """Return the cached tokenizer of the corpus's training side; train it if there is none."""
    key = _tokenizer_key(stats.fingerprint, section, vocab_size)
    directory = cache_directory() / "tokenizers" / key
    if _is_intact(directory):
        return directory
    with (
        map_write_errors(directory.parent, "a tokenizer"),
        locked_entry(cache_directory(), key, prepare.check_stop, prepare.announce_waiting),
    ):
        if not _is_intact(directory):  # the process we waited for may have built it
            trained = _learnt(corpus, stats, section, vocab_size, prepare)
            _publish(trained.tokenizer, directory, {"key": key, "sources": corpus.describe()})
    return directory


def _is_intact(directory: Path) -> bool:
    """Return whether the tokenizer loads. Raises DataError if this user may not read it."""
    require_readable(directory)
    try:
        Tokenizer.load(directory)
    except DataError:
        return False
    return True


def _learnt(
    corpus: Corpus,
    stats: CorpusStats,
    section: DataSection,
    vocab_size: int,
    prepare: PrepareContext,
) -> TrainedTokenizer:
    prepare.observe(
        Note(f"training a tokenizer of {vocab_size} pieces on {format_bytes(stats.text_bytes)}")
    )
    trained = train_tokenizer(
        _training_texts(corpus, stats, section, prepare),
        vocab_size=vocab_size,
        kind=section.tokenizer_kind,
        reserved=section.tokenizer_reserve,
        learn=partial(train_in_process, check_stop=prepare.check_stop),
    )
    pieces = trained.tokenizer.vocab_size
    if pieces < vocab_size:
        prepare.observe(
            Note(
                f"the text gives only {pieces} pieces of {vocab_size}; the rest of the embedding "
                f"stays unused (--set model.vocab_size={pieces})",
                is_warning=True,
            )
        )
    return trained


def _training_texts(
    corpus: Corpus, stats: CorpusStats, section: DataSection, prepare: PrepareContext
) -> Iterator[str]:
    split = plan_split(corpus, stats, section.validation_fraction)
    pieces = split.assign(prepare.with_progress("sampling text", corpus).documents())
    return prepare.training_texts(piece.document for piece in pieces if piece.side == "train")


def _tokenizer_key(fingerprint: str, section: DataSection, vocab_size: int) -> str:
    recipe = [_TOKENIZER_RECIPE, fingerprint, section.validation_fraction, vocab_size]
    if section.tokenizer_kind != "bpe":
        recipe.append(section.tokenizer_kind)
    if section.tokenizer_reserve:
        recipe.append(section.tokenizer_reserve)
    return json_key(recipe)


def _publish(tokenizer: Tokenizer, directory: Path, record: Mapping[str, object]) -> None:
    """Write the tokenizer and its record to `directory`, replacing any earlier ones."""
    with building_directory(directory.parent, directory.name) as scratch:
        tokenizer.save(scratch / "new")
        made = {"at": now_utc(), "versions": versions()}
        write_record(scratch / "new", {**record, "made": made})
        replace_entry(scratch, directory)
