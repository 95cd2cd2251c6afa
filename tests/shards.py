"""Token shards of a corpus, prepared in this process with what tests do not care for filled in."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from llmtrain.data.corpus import Corpus
from llmtrain.data.corpus_stats import CorpusStats
from llmtrain.data.shards.build import BuildOptions, ShardSpec
from llmtrain.data.shards.encode import Encode, Encoded, TextEncoder
from llmtrain.data.shards.prepared import PreparedData, prepare


def encode_here(encoder: TextEncoder, threads: int = 1) -> Encode:
    """Return an `Encode` that works in this process."""

    def encode(batches: Iterable[Sequence[bytes]]) -> Generator[Encoded, None, None]:
        for batch in batches:
            lists = encoder.encode_batch([data.decode() for data in batch], threads)
            counts = np.array([len(ids) for ids in lists], dtype=np.int64)
            yield np.fromiter(chain.from_iterable(lists), np.int64, int(counts.sum())), counts

    return encode


def prepared_shards(
    corpus: Corpus,
    encoder: TextEncoder,
    cache: Path,
    *,
    validation_fraction: float = 0.1,
    stats: CorpusStats | None = None,
    encode: Encode | None = None,
    **options: Any,
) -> PreparedData:
    """Return the shards of `corpus`; `options` are those of `BuildOptions`."""
    filled: dict[str, Any] = {
        "on_progress": lambda done, total: None,
        "check_stop": lambda: None,
        **options,
    }
    measured = stats or corpus.measure(filled["check_stop"])
    spec = ShardSpec(corpus, measured, encoder, validation_fraction)
    return prepare(spec, BuildOptions(encode or encode_here(encoder), **filled), cache)
