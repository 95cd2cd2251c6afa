"""Write a corpus as shards in a directory, continuing where an earlier process stopped."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from llmtrain.data.corpus import Corpus
from llmtrain.data.corpus_stats import CorpusStats, FingerprintBuilder
from llmtrain.data.document import Document
from llmtrain.data.shards.cache_entry import remove_journal, start_over
from llmtrain.data.shards.encode import Encode, TextEncoder, cut_into_parts, encode_parts
from llmtrain.data.shards.index import FORMAT_VERSION, ShardIndex, token_dtype, write_index
from llmtrain.data.shards.journal import (
    Journal,
    PartsRead,
    StaleJournalError,
    read_journal,
    write_journal,
)
from llmtrain.data.shards.manifest import write_manifest
from llmtrain.data.shards.token_stream import TokenArray
from llmtrain.data.shards.writer import SplitWriter
from llmtrain.data.split import BlockSplit, Split, plan_split
from llmtrain.errors import DataError
from llmtrain.files import json_key

SHARD_BYTES = 256 * 2**20
# Ids as Python lists take about 25 times the text: 2 MiB cost 50 MB, 8 MiB 250 MB and no less time.
# A longer document is cut here, which can move a token border: change it with FORMAT_VERSION.
BATCH_BYTES = 2 * 2**20
# Of text between two journals: a killed preparation repeats at most this and its current batches.
JOURNAL_BYTES = 32 * 2**20


@dataclass(frozen=True, slots=True)
class ShardSpec:
    """The settings that determine the content of the shards."""

    corpus: Corpus
    stats: CorpusStats
    encoder: TextEncoder
    validation_fraction: float

    @property
    def key(self) -> str:
        """The name of the shards in the cache."""
        return json_key(
            {
                "format_version": FORMAT_VERSION,
                "corpus": self.stats.fingerprint,
                "encoder": self.encoder.fingerprint,
                "vocab_size": self.encoder.vocab_size,
                "separator_id": self.encoder.separator_id,
                "validation_fraction": float(self.validation_fraction),
            }
        )


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """Options of the work that do not affect its result. `encode` gives the ids of the encoder."""

    encode: Encode
    on_progress: Callable[[int, int], None]  # called with bytes of text done and in all
    check_stop: Callable[[], None]  # an exception from it ends the work
    on_wait: Callable[[], None] = lambda: None  # called once if another process prepares the same
    made_from: Mapping[str, object] = field(default_factory=dict)  # for the manifest
    shard_bytes: int = SHARD_BYTES
    batch_bytes: int = BATCH_BYTES
    journal_bytes: int = JOURNAL_BYTES


def build(spec: ShardSpec, options: BuildOptions, scratch: Path) -> None:
    """Write every shard, the manifest and the index to `new` in `scratch`.

    Continues from the journal that an earlier process left in `scratch`. Raises DataError.
    """
    begun_s = time.monotonic()
    split = plan_split(spec.corpus, spec.stats, spec.validation_fraction)
    journal = read_journal(
        scratch, batch_bytes=options.batch_bytes, shard_bytes=options.shard_bytes
    )
    try:
        index = _write_shards(spec, options, split, scratch, journal)
    except StaleJournalError:
        start_over(scratch)
        index = _write_shards(spec, options, split, scratch, None)
    seconds = time.monotonic() - begun_s
    write_manifest(scratch / "new", index, spec.corpus, spec.stats, seconds, options.made_from)
    write_index(scratch / "new", index)


def _write_shards(
    spec: ShardSpec, options: BuildOptions, split: Split, scratch: Path, journal: Journal | None
) -> ShardIndex:
    """Write every shard. Raises StaleJournalError if the journal does not match the files."""
    sides = (journal.train, journal.validation) if journal is not None else (None, None)
    vocab_size, new = spec.encoder.vocab_size, scratch / "new"
    with (
        SplitWriter(new, "train", vocab_size, options.shard_bytes, sides[0]) as train,
        SplitWriter(new, "validation", vocab_size, options.shard_bytes, sides[1]) as validation,
    ):
        _encode_corpus(spec, options, split, scratch, (train, validation), journal)
        return _finished_index(spec, split, train, validation)


def _encode_corpus(
    spec: ShardSpec,
    options: BuildOptions,
    split: Split,
    scratch: Path,
    writers: tuple[SplitWriter, SplitWriter],
    journal: Journal | None,
) -> None:
    """Write both sides. Raises DataError if the text changed since it was measured."""
    builder, read = FingerprintBuilder(), PartsRead()
    documents = _fingerprinted(spec.corpus.documents(), builder, options.check_stop)
    parts = cut_into_parts(split.assign(documents), options.batch_bytes)
    if journal is not None:
        read.add(islice(parts, journal.parts))
        read.require(journal)
        options.on_progress(read.text_bytes, spec.stats.text_bytes)
    journaled_bytes = read.text_bytes
    encoded = encode_parts(parts, options.encode, spec.encoder, options.batch_bytes)
    with closing(encoded) as batches:
        for batch in batches:
            options.check_stop()
            for writer in writers:
                writer.append_batch(batch)
            read.add(batch.parts)
            if read.text_bytes - journaled_bytes >= options.journal_bytes:
                write_journal(scratch, _journal_of(read, options, writers))
                journaled_bytes = read.text_bytes
            options.on_progress(read.text_bytes, spec.stats.text_bytes)
    if builder.hexdigest() != spec.stats.fingerprint:
        remove_journal(scratch)
        raise DataError("the text changed while it was being read", hint="run the command again")
    for writer in writers:
        writer.append(np.array([spec.encoder.separator_id], dtype=np.int64))


def _journal_of(
    read: PartsRead, options: BuildOptions, writers: tuple[SplitWriter, SplitWriter]
) -> Journal:
    train, validation = (writer.written() for writer in writers)
    return Journal(
        parts=read.count,
        text_sha256=read.hexdigest(),
        batch_bytes=options.batch_bytes,
        shard_bytes=options.shard_bytes,
        train=train,
        validation=validation,
    )


def _fingerprinted(
    documents: Iterator[Document], builder: FingerprintBuilder, check_stop: Callable[[], None]
) -> Iterator[Document]:
    for document in documents:
        check_stop()
        builder.add(document)
        yield document


def _finished_index(
    spec: ShardSpec, split: Split, train: SplitWriter, validation: SplitWriter
) -> ShardIndex:
    """Finish both sides; return the index. Raises DataError if bytes of text are missing."""
    sides = train.finish(), validation.finish()
    encoded_bytes = sum(side.text_bytes for side in sides)
    if encoded_bytes != spec.stats.text_bytes:
        counted = f"{encoded_bytes} bytes of text were encoded, and {spec.stats.text_bytes} read"
        raise DataError(counted, hint="run the command again, and report it if this comes again")
    return ShardIndex(
        format_version=FORMAT_VERSION,
        key=spec.key,
        dtype=token_dtype(spec.encoder.vocab_size).name,
        vocab_size=spec.encoder.vocab_size,
        separator_id=spec.encoder.separator_id,
        encoder_fingerprint=spec.encoder.fingerprint,
        corpus_fingerprint=spec.stats.fingerprint,
        validation_fraction=float(spec.validation_fraction),
        split_by="blocks" if isinstance(split, BlockSplit) else "documents",
        unigram_cross_entropy_nats=unigram_cross_entropy_nats(train.counts, validation.counts),
        train=sides[0],
        validation=sides[1],
    )


def unigram_cross_entropy_nats(train_counts: TokenArray, validation_counts: TokenArray) -> float:
    """Return nats per validation token under the add-one-smoothed frequencies of train.

    The sum is exact: NumPy's depends on the CPU in its last digits.
    """
    train: list[int] = train_counts.tolist()
    validation: list[int] = validation_counts.tolist()
    log_counts = (n * math.log(count + 1) for n, count in zip(validation, train, strict=True))
    return math.log(sum(train) + len(train)) - math.fsum(log_counts) / sum(validation)
