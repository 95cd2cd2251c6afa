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

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmtrain.data.formats.streams import readable
from llmtrain.data.shards.build import BuildOptions, ShardSpec, build
from llmtrain.data.shards.cache_entry import (
    building_directory,
    locked_entry,
    map_write_errors,
    remove_leftover,
    replace_entry,
    require_readable,
)
from llmtrain.data.shards.encode import require_in_vocabulary
from llmtrain.data.shards.index import ShardIndex, read_index, require_sha256, token_dtype
from llmtrain.data.shards.token_stream import TokenStream
from llmtrain.errors import DataError
from llmtrain.files import Closing, sha256_file


@dataclass(frozen=True, slots=True)
class PreparedData(Closing):
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


def prepare(spec: ShardSpec, options: BuildOptions, cache_directory: Path) -> PreparedData:
    """Return the corpus as intact shards: verified ones from the cache, or new ones.

    After the first `journal_bytes` of text, the next call continues where this one stopped, for any
    reason. Raises DataError for text or tokens that cannot be used.
    """
    directory = entry_directory(cache_directory, spec.key)
    found = _open_intact(directory)
    if found is not None:
        remove_leftover(directory.parent, spec.key)
        return found
    separator = np.array([spec.encoder.separator_id], dtype=np.int64)
    require_in_vocabulary(separator, spec.encoder.vocab_size, "the separator")
    with (
        map_write_errors(directory.parent),
        locked_entry(cache_directory, spec.key, options.check_stop, options.on_wait),
    ):
        found = _open_intact(directory)
        if found is not None:  # the process we waited for has built it
            return found
        with building_directory(directory.parent, spec.key) as scratch:
            build(spec, options, scratch)
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
