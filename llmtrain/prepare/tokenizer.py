"""Load the tokenizer that a run's profile names, or train one on its text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path

from llmtrain.data.shards.cache_entry import (
    building_directory,
    locked_entry,
    map_write_errors,
    replace_entry,
    require_readable,
)
from llmtrain.data.shards.manifest import now_utc, versions, write_record
from llmtrain.errors import DataError
from llmtrain.files import cache_directory, json_key, path_of
from llmtrain.prepare.context import MeasuredText
from llmtrain.progress import Note
from llmtrain.tokenizer import Tokenizer, open_tokenizer, train_tokenizer
from llmtrain.tokenizer.of_model import with_reserved_pieces
from llmtrain.tokenizer.train_process import train_in_process
from llmtrain.units import format_bytes

_TOKENIZER_RECIPE = 3  # raised when training a tokenizer from the same text gives another one


def ensure_tokenizer(text: MeasuredText, vocab_size: int) -> Path:
    """Return the directory of the tokenizer that the section names, or of one trained on it.

    A trained one is of the training side, and is cached. `data.tokenizer_reserve` control pieces
    are added to one that is named.
    """
    if text.section.tokenizer != "auto":
        return _named_tokenizer(path_of(text.section.tokenizer), text.section.tokenizer_reserve)
    key, prepare = _tokenizer_key(text, vocab_size), text.prepare
    directory = cache_directory() / "tokenizers" / key
    if _is_intact(directory):
        return directory
    with (
        map_write_errors(directory.parent, "a tokenizer"),
        locked_entry(cache_directory(), key, prepare.check_stop, prepare.announce_waiting),
    ):
        if not _is_intact(directory):  # the process we waited for may have built it
            _publish(_learnt(text, vocab_size), directory, {"sources": text.corpus.describe()})
    return directory


def _named_tokenizer(path: Path, reserved: int) -> Path:
    if not reserved:
        return path
    extended = with_reserved_pieces(open_tokenizer(path), reserved)
    return cached_tokenizer(extended, {"extended": str(path)})


def cached_tokenizer(tokenizer: Tokenizer, record: Mapping[str, object]) -> Path:
    """Return the directory of the cache in which the tokenizer is; write it where it is not."""
    chat = [] if tokenizer.chat is None else [asdict(tokenizer.chat)]
    key = json_key(["imported", tokenizer.fingerprint, *chat])
    directory = cache_directory() / "tokenizers" / key
    if not _is_intact(directory):
        with map_write_errors(directory.parent, "a tokenizer"):
            _publish(tokenizer, directory, record)
    return directory


def load_tokenizer(path: Path, vocab_size: int) -> Tokenizer:
    """Load a tokenizer for a model with `vocab_size` embedding rows. Raises DataError."""
    tokenizer = open_tokenizer(path)
    if tokenizer.vocab_size > vocab_size:
        raise DataError(
            f"tokenizer {path} has {tokenizer.vocab_size} pieces, the model "
            f"{vocab_size} embedding rows",
            hint=f"--set model.vocab_size={tokenizer.vocab_size}",
        )
    return tokenizer


def _is_intact(directory: Path) -> bool:
    """Return whether the tokenizer loads. Raises DataError if this user may not read it."""
    require_readable(directory)
    try:
        Tokenizer.load(directory)
    except DataError:
        return False
    return True


def _learnt(text: MeasuredText, vocab_size: int) -> Tokenizer:
    prepare = text.prepare
    size = format_bytes(text.stats.text_bytes)
    prepare.observe(Note(f"training a tokenizer of {vocab_size} pieces on {size}"))
    parts = text.split().assign(prepare.with_progress("sampling text", text.corpus).documents())
    tokenizer = train_tokenizer(
        prepare.training_texts(part.document for part in parts if part.side == "train"),
        vocab_size=vocab_size,
        kind=text.section.tokenizer_kind,
        reserved=text.section.tokenizer_reserve,
        learn=partial(train_in_process, check_stop=prepare.check_stop),
    ).tokenizer
    pieces = tokenizer.vocab_size
    if pieces < vocab_size:
        said = (
            f"the text gives only {pieces} pieces of {vocab_size}; the rest of the embedding "
            f"stays unused (--set model.vocab_size={pieces})"
        )
        prepare.observe(Note(said, is_warning=True))
    return tokenizer


def _tokenizer_key(text: MeasuredText, vocab_size: int) -> str:
    section = text.section
    recipe = [_TOKENIZER_RECIPE, text.stats.fingerprint, section.validation_fraction, vocab_size]
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
        write_record(scratch / "new", {"key": directory.name, **record, "made": made})
        replace_entry(scratch, directory)
