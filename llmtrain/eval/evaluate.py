"""Loss on held-out text, and its units."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from llmtrain.model.decoder import Decoder
from llmtrain.ops.eager import eagerly

Window = tuple[NDArray[np.int64], NDArray[np.int64]]


@dataclass(frozen=True, slots=True)
class LossSum:
    """Negative log-likelihood summed over tokens."""

    nats: float
    tokens: int

    @property
    def nats_per_token(self) -> float:
        """The mean loss, in nats per token."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """exp of the mean loss; infinite if that overflows."""
        return math.exp(self.nats_per_token) if self.nats_per_token < 700 else math.inf


def bits_per_byte(nats_per_token: float, tokens: int, text_bytes: int) -> float:
    """Return bits per byte of a text that has `tokens` tokens and `text_bytes` bytes.

    Comparable between tokenizers, unlike the loss per token.
    """
    return nats_per_token / math.log(2) * tokens / text_bytes


@torch.no_grad()
def sum_loss(
    model: Decoder,
    windows: Iterable[Window],
    *,
    micro_batch: int,
    autocast: Callable[[], AbstractContextManager[object]],
    check_stop: Callable[[], None],
    is_time_over: Callable[[], bool] = lambda: False,
    forwards: int = 0,
) -> LossSum:
    """Return the loss summed over all targets of `windows`, computed eagerly.

    Ends early once `is_time_over`, after at least one batch. `forwards`: how often to call the
    model at least, because other ranks do; the last calls do not count.
    """
    nats, tokens = 0.0, 0
    device = model.head_weight.device
    with eagerly():
        for inputs, targets, counts in _repeated(_batched(windows, micro_batch), forwards):
            check_stop()
            with autocast():
                loss = model(inputs.to(device), targets.to(device))
            if counts:
                nats += loss.item()
                tokens += int((targets >= 0).sum())  # the others are padding, or of other roles
            if is_time_over():
                break
    return LossSum(nats, tokens)


def token_losses(
    model: Decoder,
    windows: Iterable[Window],
    *,
    micro_batch: int,
    autocast: Callable[[], AbstractContextManager[object]],
    check_stop: Callable[[], None],
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """Yield targets and the loss of each, in nats, in order of the text; computed eagerly."""
    device = model.head_weight.device
    for inputs, targets in _batched(windows, micro_batch):
        check_stop()
        with eagerly(), autocast():
            losses = model.token_losses(inputs.to(device), targets.to(device))
        yield targets.flatten().numpy(), losses.flatten().double().cpu().numpy()


def _repeated(
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]], least: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor, bool]]:
    """Yield the batches with True, then the last one with False until there were `least`."""
    given, last = 0, None
    for last in batches:
        yield *last, True
        given += 1
    if last is not None:
        for _ in range(given, least):
            yield *last, False


def _batched(
    windows: Iterable[Window], micro_batch: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield stacks of up to `micro_batch` consecutive windows of the same length."""
    for _, same_length in itertools.groupby(windows, key=lambda window: len(window[0])):
        iterator = iter(same_length)
        while rows := list(itertools.islice(iterator, micro_batch)):
            inputs, targets = zip(*rows, strict=True)
            yield torch.from_numpy(np.stack(inputs)), torch.from_numpy(np.stack(targets))
