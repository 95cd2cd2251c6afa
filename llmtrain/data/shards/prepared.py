"""Token shards in the cache: built once for a text, a tokenizer and the settings, then opened.

    <cache>/shards/<key>/
      train-00000.bin …         token ids, uint16 or uint32, little-endian
      validation-00000.bin …
      manifest.json             their origin, for people
      index.json                written last

Each document is a separator and its tokens, and each side ends with one more separator. An entry
is built in a directory of `cache_entry`, and an interrupted preparation continues there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from llmtrain.data.corpus import Corpus
from llmtrain.data.corpus_stats import CorpusStats
from llmtrain.data.reading import readable
from llmtrain.data.shards.build import BuildOptions, ShardSpec, build
from llmtrain.data.shards.cache_entry import (
    building_directory,
    locked_entry,
    map_write_errors,
    remove_leftover,
    replace_entry,
    require_readable,
)
from llmtrain.data.shards.encode import Encode, TextEncoder, encode_here, require_in_vocabulary
from llmtrain.data.shards.index import ShardIndex, read_index, require_sha256, token_dtype
from llmtrain.data.shards.token_stream import TokenStream
from llmtrain.errors import DataError
from llmtrain.files import sha256_file

SHARD_BYTES = 256 * 2**20
# Ids as Python lists take about 25 times the text: 2 MiB cost 50 MB, 8 MiB 250 MB and no less time.
# A longer document is cut here, which can move a token border: change it with FORMAT_VERSION.
BATCH_BYTES = 2 * 2**20
# Of text between two journals: a killed preparation repeats at most this and its current batches.
JOURNAL_BYTES = 32 * 2**20


@dataclass(frozen=True, slots=True)
class PreparedData:
    """Open token shards. `index.key` names them in the cache."""

    directory: Path
    index: ShardIndex
    train: TokenStream
    validation: TokenStream

    def verify(self) -> None:
        """Check every byte of every shard. Raises DataError that names the damaged file."""
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


def _nothing() -> None:
    """Do nothing."""


def prepare(
    corpus: Corpus,
    encoder: TextEncoder,
    *,
    validation_fraction: float,
    threads: int,
    cache_directory: Path,
    on_progress: Callable[[int, int], None],
    check_stop: Callable[[], None],
    stats: CorpusStats | None = None,
    encode: Encode | None = None,
    on_wait: Callable[[], None] = _nothing,
    made_from: Mapping[str, object] | None = None,
    shard_bytes: int = SHARD_BYTES,
    batch_bytes: int = BATCH_BYTES,
    journal_bytes: int = JOURNAL_BYTES,
) -> PreparedData:
    """Return the corpus as intact shards: verified ones from the cache, or new ones.

    `stats` are the corpus's, if it is measured already. `encode` must return the ids of `encoder`,
    which otherwise encodes in this process with `threads` threads. `on_progress` is called with the
    bytes of text done and in all, `on_wait` once if another process prepares the same. `made_from`
    is written into the manifest. An exception from `check_stop` ends the work; after the first
    `journal_bytes` of text, the next call continues where this one stopped, for any reason. Raises
    DataError for text or tokens that cannot be used.
    """
    measured = stats or corpus.measure(check_stop)
    spec = ShardSpec(corpus, measured, encoder, validation_fraction)
    directory = entry_directory(cache_directory, spec.key)
    found = _open_intact(directory)
    if found is not None:
        remove_leftover(directory.parent, spec.key)
        return found
    separator = np.array([encoder.separator_id], dtype=np.int64)
    require_in_vocabulary(separator, encoder.vocab_size, "the separator")
    options = BuildOptions(
        encode=encode or encode_here(encoder, threads),
        on_progress=on_progress,
        check_stop=check_stop,
        shard_bytes=shard_bytes,
        batch_bytes=batch_bytes,
        journal_bytes=journal_bytes,
    )
    with (
        map_write_errors(directory.parent),
        locked_entry(cache_directory, spec.key, check_stop, on_wait),
    ):
        found = _open_intact(directory)
        if found is not None:  # the process we waited for has built it
            return found
        with building_directory(directory.parent, spec.key) as scratch:
            build(spec, options, scratch, made_from or {})
            replace_entry(scratch, directory)
    return open_prepared(directory)


def entry_directory(cache_directory: Path, key: str) -> Path:
    """Return the cache directory of the shards named `key`, which may not exist."""
    return cache_directory / "shards" / key


def open_prepared(directory: Path) -> PreparedData:
    """Open the shards in `directory`; check the index and sizes. Raises DataError.

    Reads only the index, and does not need the text. `verify` reads every shard.
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
    """Open and verify the shards in `directory`; None if there are none or they are damaged.

    Raises DataError if this user may not read them.
    """
    require_readable(directory)
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
