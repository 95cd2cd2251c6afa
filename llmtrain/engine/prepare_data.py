"""Prepare the data of a profile ahead of its training."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from llmtrain.data.shards.cache_entry import require_usable_cache
from llmtrain.data.shards.index import ShardIndex
from llmtrain.engine.request import TrainRequest
from llmtrain.files import cache_directory
from llmtrain.plan.decisions import choose_workers
from llmtrain.prepare.context import PrepareContext
from llmtrain.prepare.dataset import prepare_dataset
from llmtrain.train.events import Observer


@dataclass(frozen=True, slots=True)
class PreparedAhead:
    """The cached shards that training the same request will read."""

    directory: Path
    tokenizer: Path
    index: ShardIndex
    seconds: float
    sources: list[dict[str, object]]  # with what was skipped of each
    left_out: list[dict[str, object]]  # by the profile's rules

    @property
    def tokens(self) -> int:
        """Tokens of training and validation text, with separators."""
        return self.index.train.tokens + self.index.validation.tokens

    @property
    def text_bytes(self) -> int:
        """Bytes of training and validation text in UTF-8."""
        return self.index.train.text_bytes + self.index.validation.text_bytes


def prepare_ahead(
    request: TrainRequest, observe: Observer, check_stop: Callable[[], None]
) -> PreparedAhead:
    """Tokenize the request's text into verified shards in the cache.

    Raises DataError, UsageError.
    """
    started_s = time.monotonic()
    require_usable_cache(cache_directory())
    if request.profile is None:
        chosen, facts = request.choose_profile()
        profile = request.load(chosen.value).profile
    else:
        profile = request.load(request.profile).profile
        facts = request.read_facts(profile.device)
    workers = choose_workers(facts, profile.device).value
    work = PrepareContext(workers, observe, check_stop)
    model = profile.model
    dataset = prepare_dataset(profile.data, model.vocab_size, work, context=model.context)
    with closing(dataset.shards) as shards:
        return PreparedAhead(
            directory=shards.directory,
            tokenizer=dataset.tokenizer_directory,
            index=shards.index,
            seconds=time.monotonic() - started_s,
            sources=dataset.sources,
            left_out=[tally.document() for tally in dataset.left_out],
        )
