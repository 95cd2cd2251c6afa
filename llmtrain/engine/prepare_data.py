"""Preparing the data of a profile ahead of its training."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from llmtrain.data.shards.index import ShardIndex
from llmtrain.engine.request import TrainRequest, choose
from llmtrain.plan.decisions import workers as decide_workers
from llmtrain.prepare.context import PrepareContext
from llmtrain.prepare.dataset import prepare_dataset
from llmtrain.train.events import Observer


@dataclass(frozen=True, slots=True)
class PreparedAhead:
    """Where the shards are that a training of the same request finds, and what they hold."""

    directory: Path
    tokenizer: Path
    index: ShardIndex
    seconds: float
    sources: list[dict[str, object]]  # with what was skipped of each
    left_out: list[dict[str, object]]  # by the profile's rules

    @property
    def tokens(self) -> int:
        """Of both sides, separators included."""
        return self.index.train.tokens + self.index.validation.tokens

    @property
    def text_bytes(self) -> int:
        """Of both sides, as UTF-8."""
        return self.index.train.text_bytes + self.index.validation.text_bytes


def prepare_ahead(
    request: TrainRequest, observe: Observer, check_stop: Callable[[], None]
) -> PreparedAhead:
    """Put the request's text into the cache as verified shards. Raises DataError, UsageError."""
    begun_s = time.monotonic()
    name = request.profile if request.profile is not None else choose(request).profile.value
    profile = request.load(name).profile
    workers = decide_workers(request.facts(), profile.device).value
    work = PrepareContext(workers, observe, check_stop)
    dataset = prepare_dataset(profile.data, profile.model.vocab_size, work)
    with closing(dataset.shards) as shards:
        return PreparedAhead(
            directory=shards.directory,
            tokenizer=dataset.tokenizer_directory,
            index=shards.index,
            seconds=time.monotonic() - begun_s,
            sources=dataset.sources,
            left_out=[tally.document() for tally in dataset.left_out],
        )
