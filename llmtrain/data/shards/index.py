"""`index.json`: the description of a directory of token shards, with strict validation."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import ConfigDict, NonNegativeInt
from pydantic.dataclasses import dataclass

from llmtrain.data.formats.streams import readable
from llmtrain.errors import DataError
from llmtrain.files import write_text_atomically
from llmtrain.untrusted import JSON_BYTES, parse_model, read_bytes

FORMAT_VERSION: Literal[1] = 1
INDEX_NAME = "index.json"
_SHARD_NAME = re.compile(r"(train|validation)-\d{5}\.bin", re.ASCII)
_BUILD_AGAIN = "prepare the data again; a damaged entry of the cache is replaced"
STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, slots=True, config=STRICT)
class ShardFacts:
    """One file of token ids. `name` is within the directory of the index."""

    name: str
    size_bytes: NonNegativeInt
    sha256: str


@dataclass(frozen=True, slots=True, config=STRICT)
class SplitFacts:
    """One side of the split.

    `text_bytes` is the text as UTF-8, without separators; `documents` counts what a separator
    begins, so a document that is cut into blocks counts once for each piece.
    """

    tokens: NonNegativeInt
    text_bytes: NonNegativeInt
    documents: NonNegativeInt
    shards: tuple[ShardFacts, ...]


@dataclass(frozen=True, slots=True, config=STRICT)
class ShardIndex:
    """The description of built shards: their source, their settings and their files.

    `unigram_cross_entropy_nats` is nats per validation token under the token frequencies of train,
    with one added to each count: the loss of a model that ignores all context.
    """

    format_version: Literal[1]
    key: str
    dtype: str
    vocab_size: NonNegativeInt
    separator_id: NonNegativeInt
    encoder_fingerprint: str
    corpus_fingerprint: str
    validation_fraction: float
    split_by: str
    unigram_cross_entropy_nats: float
    train: SplitFacts
    validation: SplitFacts


def token_dtype(vocab_size: int) -> np.dtype[np.unsignedinteger]:
    """Return the smallest little-endian type that holds every id below `vocab_size`."""
    return np.dtype("<u2") if vocab_size <= 2**16 else np.dtype("<u4")


def write_index(directory: Path, index: ShardIndex) -> None:
    """Write the index to `directory`."""
    write_text_atomically(directory / INDEX_NAME, json.dumps(asdict(index), indent=2) + "\n")


def read_index(directory: Path) -> ShardIndex:
    """Read the index in `directory`, and check that its shards have the sizes it names.

    Raises DataError that names the file. Contents of shards are not read.
    """
    path = directory / INDEX_NAME
    with readable(str(path)):
        data = read_bytes(path, JSON_BYTES, follow_links=True)
    try:
        index = parse_model(ShardIndex, data)
        _require_consistent(index)
    except ValueError as error:
        raise DataError(f"{path} is damaged: {error}", hint=_BUILD_AGAIN) from error
    for shard in (*index.train.shards, *index.validation.shards):
        _require_size(directory / shard.name, shard.size_bytes, index.dtype)
    return index


def _require_consistent(index: ShardIndex) -> None:
    if index.dtype != token_dtype(index.vocab_size).name:
        raise ValueError(f"dtype is {index.dtype[:80]} for a vocabulary of {index.vocab_size}")
    if index.separator_id >= index.vocab_size:
        raise ValueError(f"separator_id {index.separator_id} is outside the vocabulary")
    for side, split in (("train", index.train), ("validation", index.validation)):
        _require_consistent_split(side, split, np.dtype(index.dtype).itemsize)


def _require_consistent_split(side: str, split: SplitFacts, token_bytes: int) -> None:
    for shard in split.shards:
        match = _SHARD_NAME.fullmatch(shard.name)
        if match is None or match[1] != side:
            raise ValueError(f"{shard.name[:80]!r} is not the name of a {side} shard")
        if shard.size_bytes == 0:
            raise ValueError(f"{shard.name} is empty")
    size_bytes = sum(shard.size_bytes for shard in split.shards)
    if split.tokens == 0 or size_bytes != split.tokens * token_bytes:
        raise ValueError(f"{side} has {split.tokens} tokens in {size_bytes} bytes")


def _require_size(path: Path, size_bytes: int, dtype: str) -> None:
    with readable(str(path)):
        found = path.stat().st_size
    if found % np.dtype(dtype).itemsize:
        message = f"{path} has {found} bytes, which is not a whole number of {dtype} tokens"
        raise DataError(message, hint=_BUILD_AGAIN)
    if found != size_bytes:
        message = f"{path} has {found} bytes, and the index says {size_bytes}"
        raise DataError(message, hint=_BUILD_AGAIN)


def require_sha256(path: Path, expected: str, found: str) -> None:
    """Raise DataError if a shard is not what was written."""
    if found != expected:
        message = (
            f"{path} is damaged: its sha256 is {found[:12]}…, and the index says {expected[:12]}…"
        )
        raise DataError(message, hint=_BUILD_AGAIN)
