"""What share of training's time reading windows takes, where a step is as fast as this.

    python -m tests.benchmarks.loading --tokens-per-s 200000 [--tokens 256M] [--cold]

Windows of random tokens are read and made tensors as the training loop does it, one micro-batch at
a time, and a consumer that does nothing takes as long over each as its tokens need at that rate.
With --cold the system forgets the shards before, and windows come from the disk: of a text that is
long enough, for the system reads what is near them too.
With --alone nothing is read ahead: so it would be without the thread that does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from llmtrain.data.batches.prefetch import Prefetch
from llmtrain.data.batches.windows import BatchReader
from llmtrain.data.shards.index import token_dtype
from llmtrain.data.shards.token_stream import TokenStream
from llmtrain.data.shards.writer import SplitWriter
from llmtrain.files import forget_cached
from llmtrain.units import parse_count
from tests.programs import program_parser

_VOCABULARY = 50_000
_SHARD_BYTES = 256 * 2**20
_DRAWN_AT_ONCE = 1 << 22


@dataclass(frozen=True, slots=True)
class Consumer:
    """How tokens are asked for."""

    context: int
    micro_batch: int
    tokens_per_step: int
    tokens_per_s: float
    steps: int
    cold: bool
    alone: bool

    @property
    def windows_per_step(self) -> int:
        """Whole micro-batches of them."""
        at_once = self.micro_batch * self.context
        return max(1, self.tokens_per_step // at_once) * self.micro_batch


def main(arguments: Sequence[str]) -> int:
    """The share of the time that was waited for data, as a line of JSON."""
    values = _parser().parse_args(arguments)
    consumer = Consumer(
        context=values.context,
        micro_batch=values.micro_batch,
        tokens_per_step=values.tokens_per_step,
        tokens_per_s=values.tokens_per_s,
        steps=values.steps,
        cold=values.cold,
        alone=values.alone,
    )
    with tempfile.TemporaryDirectory(prefix="llmtrain-loading-", dir=values.directory) as scratch:
        shards = write_shards(Path(scratch), values.tokens)
        waited_s = consume(shards, consumer)
    step_s = consumer.windows_per_step * consumer.context / consumer.tokens_per_s
    document = {
        "tokens_per_s": consumer.tokens_per_s,
        "step_s": round(step_s, 4),
        "waited_s_median": round(statistics.median(waited_s), 6),
        "waited_s_longest": round(max(waited_s), 6),
        "waited_share": round(sum(waited_s) / (sum(waited_s) + len(waited_s) * step_s), 6),
        "cold": consumer.cold,
        "alone": consumer.alone,
    }
    sys.stdout.write(json.dumps(document) + "\n")
    return 0


def write_shards(directory: Path, tokens: int) -> list[Path]:
    """So many random tokens, on the disk."""
    draw = np.random.default_rng(0)
    with SplitWriter(directory, "train", _VOCABULARY, _SHARD_BYTES) as writer:
        for start in range(0, tokens, _DRAWN_AT_ONCE):
            count = min(_DRAWN_AT_ONCE, tokens - start)
            writer.append(draw.integers(_VOCABULARY, size=count, dtype=np.int64))
        return [directory / shard.name for shard in writer.finish().shards]


def consume(shards: Sequence[Path], consumer: Consumer) -> list[float]:
    """Seconds waited for data in each step but the first, whose beginning nobody foresees."""
    dtype, waited = token_dtype(_VOCABULARY), []
    for shard in shards if consumer.cold else ():
        forget_cached(shard)
    with closing(TokenStream(shards, dtype, _VOCABULARY)) as stream:
        reader = BatchReader(stream, consumer.context, seed=0)
        with Prefetch(reader.read) as prefetch:
            for number in range(consumer.steps + 1):
                waited.append(_step(reader, prefetch, number, consumer))
    return waited[1:]


def _step(reader: BatchReader, prefetch: Prefetch, number: int, consumer: Consumer) -> float:
    at_once, begin, waited_s = consumer.micro_batch, number * consumer.windows_per_step, 0.0
    for first in range(begin, begin + consumer.windows_per_step, at_once):
        begun_s = time.perf_counter()
        arrays = (
            reader.read(first, at_once)
            if consumer.alone
            else prefetch.read(first, at_once, first + at_once)
        )
        for array in arrays:
            torch.as_tensor(array)
        waited_s += time.perf_counter() - begun_s
        time.sleep(consumer.micro_batch * consumer.context / consumer.tokens_per_s)
    return waited_s


def _parser() -> argparse.ArgumentParser:
    parser = program_parser(__file__, __doc__)
    parser.add_argument("--tokens-per-s", type=float, default=200_000, help="the consumer's rate")
    parser.add_argument("--tokens", type=parse_count, default=64_000_000, help="of the text")
    parser.add_argument("--context", type=int, default=1024, help="tokens of a window")
    parser.add_argument("--micro-batch", type=int, default=8, help="windows that are read at once")
    parser.add_argument("--tokens-per-step", type=int, default=65_536, help="of a step")
    parser.add_argument("--steps", type=int, default=30, help="that are timed")
    parser.add_argument("--cold", action="store_true", help="nothing is in the system's cache")
    parser.add_argument("--alone", action="store_true", help="nothing is read ahead")
    parser.add_argument("--directory", help="where the text is written for the while")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
