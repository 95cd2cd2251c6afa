"""Evaluation on pairs of answers: the loss of DPO, its margins, and how often it prefers right."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from llmtrain.data.batches.conversations import END
from llmtrain.data.batches.preferences import PreferenceWindows
from llmtrain.eval.evaluate import LossSum
from llmtrain.model.decoder import Decoder
from llmtrain.model.preferences import answer_sums, pair_losses, references_of
from llmtrain.ops.eager import eagerly


@dataclass(frozen=True, slots=True)
class PreferenceLoss(LossSum):
    """The loss summed over pairs, which are what `tokens` counts."""

    margins: float  # summed
    correct: int  # pairs whose chosen answer has the larger reward
    chosen_nats: float  # of the chosen answers, as the model predicts them
    chosen_tokens: int

    @property
    def margin(self) -> float:
        """The mean margin of the rewards."""
        return self.margins / self.tokens

    @property
    def accuracy(self) -> float:
        """The share of pairs that are preferred as in the data."""
        return self.correct / self.tokens


@dataclass(frozen=True, slots=True)
class AnswerNats:
    """−log π of answers, a chosen one and a rejected one by turns, with their numbers of tokens."""

    nats: NDArray[np.float64]
    tokens: NDArray[np.int64]
    references: NDArray[np.float64]


def answer_nats(
    model: Decoder,
    windows: Iterable[PreferenceWindows],
    *,
    autocast: Callable[[], AbstractContextManager[object]],
    check_stop: Callable[[], None],
) -> Iterator[AnswerNats]:
    """Yield the losses of the answers in each batch of windows, computed eagerly."""
    device = model.head_weight.device
    for inputs, targets, references in windows:
        check_stop()
        with eagerly(), autocast():
            losses = model.token_losses(
                torch.from_numpy(inputs).to(device), torch.from_numpy(targets).to(device)
            )
        flat = targets.ravel()
        counted = (flat >= 0).astype(np.float64)
        yield AnswerNats(
            answer_sums(flat, losses.flatten().double().cpu().numpy(), END),
            answer_sums(flat, counted, END).astype(np.int64),
            references_of(flat, references.ravel(), END),
        )


def sum_preferences(
    model: Decoder,
    windows: Iterable[PreferenceWindows],
    *,
    autocast: Callable[[], AbstractContextManager[object]],
    check_stop: Callable[[], None],
    is_time_over: Callable[[], bool] = lambda: False,
) -> PreferenceLoss:
    """Return the loss summed over all pairs of `windows`, computed eagerly.

    Ends early once `is_time_over`, after at least one batch.
    """
    found = PreferenceLoss(0.0, 0, 0.0, 0, 0.0, 0)
    for answers in answer_nats(model, windows, autocast=autocast, check_stop=check_stop):
        pairs = pair_losses(answers.nats, answers.references, model.preference_beta)
        found = PreferenceLoss(
            found.nats + float(pairs.losses.sum()),
            found.tokens + len(pairs.losses),
            found.margins + float(pairs.margins.sum()),
            found.correct + int((pairs.margins > 0).sum()),
            found.chosen_nats + float(answers.nats[0::2].sum()),
            found.chosen_tokens + int(answers.tokens[0::2].sum()),
        )
        if is_time_over():
            break
    return found
