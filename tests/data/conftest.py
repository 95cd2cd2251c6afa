from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypedDict

import pytest
from typing_extensions import Unpack

from llmtrain.data.corpus_stats import CorpusStats
from llmtrain.data.shards.encode import Encode
from llmtrain.data.shards.prepared import PreparedData
from llmtrain.data.sources.resolve import resolve_sources
from tests.shards import prepared_shards


@dataclasses.dataclass
class ByteEncoder:
    """A token for each byte, shifted by `first_id`; counts the texts that it was given."""

    first_id: int = 0
    vocab_size: int = 257
    fingerprint: str = "bytes"
    calls: int = 0
    end_id: int | None = None

    @property
    def separator_id(self) -> int:
        return self.first_id + 256

    def encode_batch(self, texts: Sequence[str], threads: int) -> list[list[int]]:
        self.calls += 1
        return [[self.first_id + byte for byte in text.encode()] for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(token - self.first_id for token in ids).decode()


class PrepareOptions(TypedDict, total=False):
    """Further options of `prepare`."""

    encode: Encode | None
    stats: CorpusStats | None
    journal_bytes: int
    made_from: Mapping[str, object]
    on_wait: Callable[[], None]


class Prepare(Protocol):
    def __call__(
        self,
        data: Path,
        encoder: ByteEncoder | None = None,
        *,
        validation_fraction: float = 0.1,
        shard_bytes: int = 1 << 20,
        batch_bytes: int = 1 << 16,
        on_progress: Callable[[int, int], None] = ...,
        check_stop: Callable[[], None] = ...,
        **options: Unpack[PrepareOptions],
    ) -> PreparedData: ...


@pytest.fixture
def encoder() -> ByteEncoder:
    return ByteEncoder()


@pytest.fixture
def make_encoder() -> type[ByteEncoder]:
    return ByteEncoder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def entries(cache: Path) -> Callable[[], list[str]]:
    """Names of what is in the cache now; none if there is no cache yet."""
    shards = cache / "shards"
    return lambda: sorted(path.name for path in shards.iterdir()) if shards.exists() else []


@pytest.fixture
def book(tmp_path: Path) -> Path:
    """One document of 3000 lines."""
    path = tmp_path / "book.txt"
    path.write_bytes("".join(f"line {number} of é😀\r\n" for number in range(3000)).encode())
    return path


@pytest.fixture
def prepare_data(cache: Path) -> Prepare:
    """`prepare` of one spec, with everything else filled in."""

    def run(
        data: Path,
        encoder: ByteEncoder | None = None,
        *,
        validation_fraction: float = 0.1,
        shard_bytes: int = 1 << 20,
        batch_bytes: int = 1 << 16,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
        check_stop: Callable[[], None] = lambda: None,
        **options: Unpack[PrepareOptions],
    ) -> PreparedData:
        return prepared_shards(
            resolve_sources([str(data)]),
            encoder or ByteEncoder(),
            cache,
            validation_fraction=validation_fraction,
            on_progress=on_progress,
            check_stop=check_stop,
            shard_bytes=shard_bytes,
            batch_bytes=batch_bytes,
            **options,
        )

    return run
