"""Looking at a model while it trains: its loss on held-out text, and what it writes."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import replace

import torch

from llmtrain.data.batches.windows import BatchReader
from llmtrain.data.shards.prepared import PreparedData
from llmtrain.eval.evaluate import LossSum, sum_loss
from llmtrain.model.generate import Sampling, generate_tokens
from llmtrain.profile.schema import Profile
from llmtrain.tokenizer import Tokenizer
from llmtrain.train.distributed.signals import StopRequest
from llmtrain.train.loop import Run

_SAMPLING = Sampling(temperature=0.8)


class Evaluator:
    """Always asks the same questions: the same windows of validation text, the same prompts."""

    def __init__(
        self,
        run: Run,
        profile: Profile,
        data: PreparedData,
        tokenizer: Tokenizer,
        stop: StopRequest,
    ) -> None:
        """Raises DataError where the validation text is shorter than one context."""
        self._run = run
        self._reader = BatchReader(data.validation, run.context, seed=0)
        self._asked = max(1, profile.eval.tokens // run.context)
        self._sample_tokens = profile.eval.sample_tokens
        self._tokenizer = tokenizer
        self._stop = stop
        self.time_is_over_s = math.inf  # by the monotonic clock; what is then looked at ends

    @property
    def windows(self) -> int:
        """How many are looked at."""
        return min(self._asked, self._reader.num_windows)

    @property
    def tokens(self) -> int:
        """How many they have."""
        return self.windows * self._run.context

    def validation_loss(self, windows: int | None = None) -> LossSum:
        """The loss over the same windows every time, or the first of them, shared by the ranks."""
        world = self._run.world
        windows = min(windows or self.windows, self.windows)
        own = range(world.rank, windows, world.size)
        if world.size > windows:
            own = range(min(world.rank, windows - 1), windows)  # too few to share: some twice
        read = (self._reader.read(i, 1) for i in own)
        found = sum_loss(
            self._run.model,
            ((inputs[0], targets[0]) for inputs, targets in read),
            micro_batch=self._run.plan.micro_batch.value,
            autocast=self._run.autocast,
            check_stop=self._check_stop,
            is_time_over=self._is_time_over,
        )
        if world.size == 1:
            return found
        nats, tokens = world.sum_values([found.nats, found.tokens], self._run.device)
        return LossSum(nats, int(tokens))

    def sample(self, prompt: str, seed: int, limit: int | None = None) -> str:
        """Text that the model as it is continues `prompt` with."""
        ids = [self._tokenizer.separator_id, *self._tokenizer.encode(prompt)]
        return self._tokenizer.decode(list(self._drawn(ids, seed, limit or self._sample_tokens)))

    def _drawn(self, prompt: list[int], seed: int, limit: int) -> Iterator[int]:
        pieces = self._tokenizer.vocab_size
        sampling = replace(_SAMPLING, seed=seed)
        with self._run.autocast(), torch.compiler.set_stance("force_eager"):
            for token in generate_tokens(self._run.model, prompt, sampling, pieces, limit):
                self._check_stop()
                if token == self._tokenizer.separator_id:
                    return
                yield token
                if self._is_time_over():
                    return

    def _is_time_over(self) -> bool:
        return time.monotonic() > self.time_is_over_s

    def _check_stop(self) -> None:
        """InterruptedRunError where alone; several ranks have to stop together, after a step."""
        if self._run.world.size == 1:
            self._stop.check()
