"""Bits per byte of simple predictors and of compressors on the same text, for comparison."""

from __future__ import annotations

import bz2
import lzma
import math
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

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
    """Return the baselines of a text of `tokens` tokens and `text_bytes` bytes.

    `texts` are its parts, one in memory at a time. Compressors get at most its first 16 MiB.
    """
    return Baselines(
        uniform_bpb=bits_per_byte(math.log(pieces), tokens, text_bytes),
        unigram_bpb=None
        if unigram_nats_per_token is None
        else bits_per_byte(unigram_nats_per_token, tokens, text_bytes),
        **_compressed_bpb(_sample(texts)),
    )


class _Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


def _compressed_bpb(parts: Iterable[bytes]) -> dict[str, float]:
    """Return bits per byte of the parts, compressed as one, by the field of Baselines."""
    compressors: dict[str, _Compressor] = {
        "gzip_bpb": zlib.compressobj(9),
        "bzip2_bpb": bz2.BZ2Compressor(9),
        "xz_bpb": lzma.LZMACompressor(preset=6),
    }
    sizes_bytes = dict.fromkeys(compressors, 0)
    text_bytes = 0
    for data in parts:
        text_bytes += len(data)
        for name, compressor in compressors.items():
            sizes_bytes[name] += len(compressor.compress(data))
    for name, compressor in compressors.items():
        sizes_bytes[name] += len(compressor.flush())
    return {name: 8 * size / max(1, text_bytes) for name, size in sizes_bytes.items()}


def _sample(texts: Iterable[str]) -> Iterator[bytes]:
    room_bytes = _LARGEST_SAMPLE_BYTES
    for text in texts:
        data = text.encode()[:room_bytes]
        room_bytes -= len(data)
        yield data
        if not room_bytes:
            return
