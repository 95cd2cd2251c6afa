"""Bits per byte of simple predictors and of compressors on the same text, for comparison."""

from __future__ import annotations

import bz2
import lzma
import math
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

from llmtrain.eval.evaluate import bits_per_byte

_LARGEST_SAMPLE_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Baselines:
    """Bits per byte of the same text without a language model."""

    uniform_bpb: float  # all pieces equally likely
    unigram_bpb: float | None  # pieces by their frequency in the training text
    gzip_bpb: float
    bzip2_bpb: float
    xz_bpb: float


def measure_baselines(
    texts: Iterable[str],
    *,
    pieces: int,
    tokens: int,
    text_bytes: int,
    unigram_nats_per_token: float | None,
) -> Baselines:
    """Return the baselines of a text; the compressors read at most its first 16 MiB."""
    sample = _sample(texts)
    compressed = {
        "gzip_bpb": zlib.compress(sample, 9),
        "bzip2_bpb": bz2.compress(sample, 9),
        "xz_bpb": lzma.compress(sample, preset=6),
    }
    return Baselines(
        uniform_bpb=bits_per_byte(math.log(pieces), tokens, text_bytes),
        unigram_bpb=None
        if unigram_nats_per_token is None
        else bits_per_byte(unigram_nats_per_token, tokens, text_bytes),
        **{name: 8 * len(data) / max(1, len(sample)) for name, data in compressed.items()},
    )


def _sample(texts: Iterable[str]) -> bytes:
    parts, size = [], 0
    for text in texts:
        parts.append(text.encode("utf-8"))
        size += len(parts[-1])
        if size >= _LARGEST_SAMPLE_BYTES:
            break
    return b"".join(parts)[:_LARGEST_SAMPLE_BYTES]
