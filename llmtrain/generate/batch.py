"""Sequences that are continued together: each step samples one token for every one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llmtrain.errors import LlmtrainError
from llmtrain.generate.cached_decoder import CachedDecoder
from llmtrain.generate.sampling import Sampling, Token, restrict, sample_token, with_logprobs

# Of prompts, in one step: so long do the other sequences wait for their next token.
PROMPT_TOKENS = 512
_SHORTEST_SHARED = 16  # tokens: reading fewer again takes less than attending with a mask


def _any_id(sampled: Sequence[int]) -> None:
    """Allow every id."""


@dataclass(slots=True, eq=False)
class Continuation:
    """A sequence of token ids, and how the next is sampled.

    `allowed` returns the ids that may follow the ones sampled so far, or None for all; the first of
    them is taken if the model gives all of them together a probability below chance. `likeliest` is
    the number of likeliest ids that each token is reported with; None: log-probabilities are not
    computed.
    """

    prompt: tuple[int, ...]
    sampling: Sampling
    allowed: Callable[[Sequence[int]], Sequence[int] | None] = _any_id
    likeliest: int | None = None
    sampled: list[int] = field(default_factory=list)
    generator: torch.Generator = field(default_factory=torch.Generator)

    def __post_init__(self) -> None:
        """Seed the generator. A sequence without a token has no next one."""
        assert self.prompt
        self.generator.manual_seed(self.sampling.seed)


@dataclass(slots=True)
class _Slot:
    """A sequence in the cache: the ids that are cached or next to be, none before `ids`."""

    cached: list[int] = field(default_factory=list)
    pending: list[int] = field(default_factory=list)
    continuation: Continuation | None = None


class Batch:
    """Up to `decoder.slots` sequences; they may begin and end between any two steps.

    A prompt of which the cache has the beginning, from a sequence that runs or has ended, is read
    from there on. When a sequence fills the context, it continues from its newer half.
    """

    def __init__(self, decoder: CachedDecoder, num_ids: int) -> None:
        """Sample ids below `num_ids` only."""
        self._decoder = decoder
        self._num_ids = num_ids
        self._slots = [_Slot() for _ in range(decoder.slots)]

    @property
    def free(self) -> int:
        """The number of sequences that can be added."""
        return sum(slot.continuation is None for slot in self._slots)

    @property
    def running(self) -> int:
        """The number of sequences that are being continued."""
        return len(self._slots) - self.free

    def add(self, continuation: Continuation) -> None:
        """Continue a sequence from the next step on. Of a long prompt only the end is read."""
        ids = [*continuation.prompt, *continuation.sampled][-self._decoder.shape.context :]
        target = self._best_slot(ids)
        known = self._share_prefix(target, ids[:-1])  # the last gives the logits
        self._decoder.truncate(target, known)
        slot = self._slots[target]
        slot.cached, slot.pending = ids[:known], ids[known:]
        slot.continuation = continuation

    def remove(self, continuation: Continuation) -> None:
        """End a sequence; its slot is free from the next step on."""
        for slot in self._slots:
            if slot.continuation is continuation:
                slot.continuation, slot.pending = None, []

    def step(self) -> list[tuple[Continuation, Token]]:
        """Sample the next token of every sequence whose prompt is read.

        Raises LlmtrainError if the model's output holds NaN.
        """
        return [
            (continuation, self._sample(slot, continuation, logits_v))
            for slot, logits_v in self._logits()
            if (continuation := slot.continuation) is not None
        ]

    def _logits(self) -> Iterator[tuple[_Slot, Tensor]]:
        """Compute what is pending; yield the logits after each sequence that has all of it."""
        running = [i for i, slot in enumerate(self._slots) if slot.continuation is not None]
        for index in running:
            self._slide(index)
        one = [index for index in running if len(self._slots[index].pending) == 1]
        if one:
            logits_bv = self._decoder.step(one, [self._slots[index].pending[0] for index in one])
            rows_bv = logits_bv[:, : self._num_ids].cpu()
            for index, logits_v in zip(one, rows_bv, strict=True):
                yield self._computed(index, 1), logits_v
        left = PROMPT_TOKENS
        for index in running:
            slot = self._slots[index]
            if index in one or not left:
                continue
            count = min(left, len(slot.pending))
            left -= count
            logits_v = self._decoder.extend(index, slot.pending[:count])
            self._computed(index, count)
            if not slot.pending:
                yield slot, logits_v[: self._num_ids].cpu()

    def _slide(self, index: int) -> None:
        """Keep the newer half of a sequence that has filled the context."""
        slot, context = self._slots[index], self._decoder.shape.context
        if len(slot.cached) + len(slot.pending) > context:
            ids = [*slot.cached, *slot.pending]
            slot.cached, slot.pending = [], ids[-max(1, context // 2) :]
            self._decoder.truncate(index, 0)

    def _computed(self, index: int, count: int) -> _Slot:
        slot = self._slots[index]
        slot.cached += slot.pending[:count]
        del slot.pending[:count]
        return slot

    def _sample(self, slot: _Slot, continuation: Continuation, logits_v: Tensor) -> Token:
        if logits_v.isnan().any():
            raise LlmtrainError(
                "the model computes NaN: its weights are not finite, or overflow in this precision",
                hint="use an earlier checkpoint: llmtrain generate RUN/checkpoints/STEP",
            )
        sampled, given_v = continuation.sampled, logits_v
        if (allowed := continuation.allowed(sampled)) is not None:
            logits_v = restrict(logits_v, list(allowed))
        token = sample_token(
            logits_v, continuation.prompt, sampled, continuation.sampling, continuation.generator
        )
        sampled.append(token)
        slot.pending = [token]
        if continuation.likeliest is None:
            return Token(token)
        return with_logprobs(token, given_v, continuation.likeliest)

    def _best_slot(self, ids: Sequence[int]) -> int:
        """Return the free slot that has most of the beginning of `ids`, else the shortest one."""
        free = [i for i, slot in enumerate(self._slots) if slot.continuation is None]
        assert free, "no slot is free"

        def worth(index: int) -> tuple[int, int, int]:
            cached = self._slots[index].cached
            return common_length(cached, ids), -len(cached), -index

        return max(free, key=worth)

    def _share_prefix(self, target: int, ids: Sequence[int]) -> int:
        """Bring the longest cached beginning of `ids` into a slot; return its length."""
        lengths = [common_length(slot.cached, ids) for slot in self._slots]
        source = max(range(len(lengths)), key=lengths.__getitem__)
        if lengths[source] < _SHORTEST_SHARED:
            return 0
        if lengths[source] > lengths[target]:
            self._decoder.copy(source, target, lengths[source])
        return lengths[source]


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Return the length of the longest common beginning."""
    for index, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return index
    return min(len(first), len(second))
