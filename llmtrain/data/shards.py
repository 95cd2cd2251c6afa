"""Token shards in the cache: built once for a text, a tokenizer and the settings, and opened after.

    <cache>/shards/<key>/
      train-00000.bin …         token ids, uint16 or uint32, little-endian
      validation-00000.bin …
      index.json                written last

Each document is a separator and its tokens, and each side ends with one more separator.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from llmtrain.data.encoding import TextEncoder, encode_pieces, require_in_vocabulary
from llmtrain.data.index import (
    FORMAT_VERSION,
    ShardIndex,
    read_index,
    require_sha256,
    token_dtype,
    write_index,
)
from llmtrain.data.reading import Document, readable
from llmtrain.data.sources import Corpus, CorpusFacts, FingerprintBuilder
from llmtrain.data.split import DocumentSplit, Split, plan_split
from llmtrain.data.stream import TokenArray, TokenStream
from llmtrain.data.writer import SplitWriter
from llmtrain.errors import DataError, LlmtrainError
from llmtrain.files import sha256_file, sync_directory

SHARD_BYTES = 256 * 2**20
# Ids as Python lists take about 25 times the text: 2 MiB cost 50 MB, 8 MiB 250 MB and no less time.
# A longer document is cut here, which can move a token border: change it with FORMAT_VERSION.
BATCH_BYTES = 2 * 2**20
_BUILDING = ".building-"
_ABANDONED_AFTER_S = 24 * 3600


@dataclass(frozen=True, slots=True)
class PreparedData:
    """Open token shards. `index.key` names them in the cache."""

    directory: Path
    index: ShardIndex
    train: TokenStream
    validation: TokenStream

    def verify(self) -> None:
        """Every byte is the one that was written. Raises DataError that names the damaged file."""
        for shard in (*self.index.train.shards, *self.index.validation.shards):
            path = self.directory / shard.name
            with readable(str(path)):
                found = sha256_file(path)
            require_sha256(path, shard.sha256, found)

    def close(self) -> None:
        self.train.close()
        self.validation.close()

    def __enter__(self) -> PreparedData:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class _Recipe:
    """Everything that decides what the shards hold."""

    corpus: Corpus
    facts: CorpusFacts
    encoder: TextEncoder
    validation_fraction: float

    @property
    def key(self) -> str:
        parts = {
            "format_version": FORMAT_VERSION,
            "corpus": self.facts.fingerprint,
            "encoder": self.encoder.fingerprint,
            "vocab_size": self.encoder.vocab_size,
            "separator_id": self.encoder.separator_id,
            "validation_fraction": float(self.validation_fraction),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class _Effort:
    """How the work is done, as against what comes out of it."""

    threads: int
    on_progress: Callable[[int, int], None]
    check_stop: Callable[[], None]
    shard_bytes: int
    batch_bytes: int


def prepare(
    corpus: Corpus,
    encoder: TextEncoder,
    *,
    validation_fraction: float,
    threads: int,
    cache_directory: Path,
    on_progress: Callable[[int, int], None],
    check_stop: Callable[[], None],
    shard_bytes: int = SHARD_BYTES,
    batch_bytes: int = BATCH_BYTES,
) -> PreparedData:
    """The corpus as intact shards: verified ones from the cache, or new ones.

    `on_progress` is told bytes of text done and in all. Whatever `check_stop` raises ends the work
    and leaves the cache as it was. Raises DataError for text or tokens that cannot be used.
    """
    recipe = _Recipe(corpus, corpus.measure(check_stop), encoder, validation_fraction)
    directory = entry_directory(cache_directory, recipe.key)
    found = _open_intact(directory)
    if found is not None:
        return found
    separator = np.array([encoder.separator_id], dtype=np.int64)
    require_in_vocabulary(separator, encoder.vocab_size, "the separator")
    effort = _Effort(threads, on_progress, check_stop, shard_bytes, batch_bytes)
    with _writing_to(directory.parent) as scratch:
        (scratch / "new").mkdir()
        _build(recipe, effort, scratch / "new")
        _publish(directory, scratch)
    return open_prepared(directory)


def entry_directory(cache_directory: Path, key: str) -> Path:
    """Where the cache keeps the shards that `key` names, there or not."""
    return cache_directory / "shards" / key


def open_prepared(directory: Path) -> PreparedData:
    """The shards in `directory`, whose index and sizes are right. Raises DataError.

    Reads the index only: the text need not exist any more. `verify` reads all of it.
    """
    index = read_index(directory)
    dtype = token_dtype(index.vocab_size)
    with ExitStack() as opened, readable(str(directory)):
        train, validation = (
            opened.enter_context(
                TokenStream([directory / s.name for s in split.shards], dtype, index.vocab_size)
            )
            for split in (index.train, index.validation)
        )
        prepared = PreparedData(directory, index, train, validation)
        opened.pop_all()
    return prepared


def _open_intact(directory: Path) -> PreparedData | None:
    """The shards in `directory`, verified; None if there are none or they are damaged."""
    try:
        prepared = open_prepared(directory)
    except DataError:
        return None
    try:
        prepared.verify()
    except DataError:
        prepared.close()
        return None
    return prepared


@contextmanager
def _writing_to(shards: Path) -> Iterator[Path]:
    """A scratch directory beside the entries, gone afterwards whatever happens."""
    try:
        shards.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(shards)
        with tempfile.TemporaryDirectory(
            dir=shards, prefix=_BUILDING, ignore_cleanup_errors=True
        ) as scratch:
            yield Path(scratch)
    except OSError as error:
        message = f"cannot write token shards to {shards}: {error.strerror or error}"
        hint = "make room there, or choose another place with LLMTRAIN_CACHE_DIR"
        raise LlmtrainError(message, hint=hint) from error


def _remove_abandoned(shards: Path) -> None:
    """What a killed process left behind, and nobody wrote to for a day, is gone."""
    for scratch in shards.glob(_BUILDING + "*"):
        with suppress(OSError):  # its owner may be alive, and removing files meanwhile
            times = [path.stat().st_mtime for path in (scratch, *scratch.rglob("*"))]
            if time.time() - max(times) > _ABANDONED_AFTER_S:
                shutil.rmtree(scratch)


def _publish(directory: Path, scratch: Path) -> None:
    """`directory` is the new entry, or an intact one that another process finished first."""
    try:
        (scratch / "new").rename(directory)
    except OSError:
        other = _open_intact(directory)
        if other is not None:
            other.close()
            return
        directory.rename(scratch / "damaged")
        (scratch / "new").rename(directory)
    sync_directory(directory.parent)


def _build(recipe: _Recipe, effort: _Effort, directory: Path) -> None:
    """`directory` holds every shard and the index, all on disk."""
    encoder = recipe.encoder
    split = plan_split(recipe.corpus, recipe.facts, recipe.validation_fraction)
    with (
        SplitWriter(directory, "train", encoder.vocab_size, effort.shard_bytes) as train,
        SplitWriter(directory, "validation", encoder.vocab_size, effort.shard_bytes) as validation,
    ):
        _encode_corpus(recipe, effort, split, (train, validation))
        write_index(directory, _finished_index(recipe, split, train, validation))


def _encode_corpus(
    recipe: _Recipe, effort: _Effort, split: Split, writers: tuple[SplitWriter, SplitWriter]
) -> None:
    """Both sides are written. Raises DataError if the text is not the text that was measured."""
    builder = FingerprintBuilder()
    batches = encode_pieces(
        split.assign(_fingerprinted(recipe.corpus.documents(), builder)),
        recipe.encoder,
        threads=effort.threads,
        batch_bytes=effort.batch_bytes,
        check_stop=effort.check_stop,
    )
    done_bytes = 0
    for batch in batches:
        for writer in writers:
            writer.append_batch(batch)
        done_bytes += sum(encoded.part.text_bytes for encoded in batch)
        effort.on_progress(done_bytes, recipe.facts.text_bytes)
    if builder.hexdigest() != recipe.facts.fingerprint:
        raise DataError("the text changed while it was being read", hint="run the command again")
    for writer in writers:
        writer.append(np.array([recipe.encoder.separator_id], dtype=np.int64))


def _fingerprinted(
    documents: Iterator[Document], builder: FingerprintBuilder
) -> Iterator[Document]:
    for document in documents:
        builder.add(document)
        yield document


def _finished_index(
    recipe: _Recipe, split: Split, train: SplitWriter, validation: SplitWriter
) -> ShardIndex:
    return ShardIndex(
        format_version=FORMAT_VERSION,
        key=recipe.key,
        dtype=token_dtype(recipe.encoder.vocab_size).name,
        vocab_size=recipe.encoder.vocab_size,
        separator_id=recipe.encoder.separator_id,
        encoder_fingerprint=recipe.encoder.fingerprint,
        corpus_fingerprint=recipe.facts.fingerprint,
        validation_fraction=float(recipe.validation_fraction),
        split_by="documents" if isinstance(split, DocumentSplit) else "blocks",
        unigram_cross_entropy_nats=unigram_cross_entropy_nats(train.counts, validation.counts),
        train=train.finish(),
        validation=validation.finish(),
    )


def unigram_cross_entropy_nats(train_counts: TokenArray, validation_counts: TokenArray) -> float:
    """Nats per validation token under the add-one-smoothed frequencies of train."""
    total = int(train_counts.sum()) + len(train_counts)
    log_counts = np.log(train_counts + 1.0)
    mean_log_count = float(validation_counts @ log_counts) / int(validation_counts.sum())
    return math.log(total) - mean_log_count
