"""Direct preference optimization: the loss of pairs of answers, from the losses of their tokens.

Rafailov et al. 2023, "Direct Preference Optimization", equation 7, for a pair of answers c and r:

    −log σ(β · (log π(c) − log π₀(c) − log π(r) + log π₀(r)))

π₀ is the model that training began with. β times the two differences are called rewards, and the
argument of σ their margin. An answer is preferred if its reward is the larger one.

Arrays hold pairs one after the other: the chosen answer, then the rejected one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PairLosses:
    """The loss and the margin of every pair, and what the tokens of every answer weigh."""

    losses: Array
    margins: Array
    weights: Array  # of answers: d loss / d (−log π) of each


def pair_losses(answer_nats: Array, references: Array, beta: float) -> PairLosses:
    """Return the losses of pairs.

    `answer_nats`: −log π of every answer; `references`: log π₀ of every answer.
    """
    rewards = beta * (-answer_nats - references)
    margins = rewards[0::2] - rewards[1::2]
    share = beta / (1.0 + np.exp(np.minimum(margins, 700.0)))  # β · σ(−margin)
    weights = np.stack([share, -share], axis=1).ravel()
    return PairLosses(np.logaddexp(0.0, -margins), margins, weights)


def answer_sums(targets_n: NDArray[np.int64], values_n: Array, end: int) -> Array:
    """Return the sum of each answer's values; `end` is the target of its last token.

    Values after the last answer of a window are 0.
    """
    sums: Array = np.add.reduceat(values_n, _starts(targets_n, end))
    return sums


def references_of(targets_n: NDArray[np.int64], references_n: Array, end: int) -> Array:
    """Return each answer's reference, which is at its last token."""
    found: Array = references_n[targets_n == end]
    return found


def token_weights(targets_n: NDArray[np.int64], weights: Array, end: int) -> Array:
    """Return for every token the weight of its answer; 0 for one that carries no loss."""
    lengths = np.diff(np.append(_starts(targets_n, end), len(targets_n)))
    return np.where(targets_n >= 0, np.repeat(weights, lengths), 0.0)


def _starts(targets_n: NDArray[np.int64], end: int) -> NDArray[np.int64]:
    """Return where each answer begins, the first one with what precedes it."""
    ends = np.flatnonzero(targets_n == end)
    return np.append(0, ends[:-1] + 1)


def preference_weights(
    losses_n: Tensor, targets_n: Tensor, references_n: Tensor, beta: float, end: int
) -> tuple[float, Tensor]:
    """Return the summed loss of a batch's pairs, and the weight of every token's own loss.

    The sums are computed on the CPU: there they are the same in every run.
    """
    targets = targets_n.cpu().numpy()
    nats = answer_sums(targets, losses_n.double().cpu().numpy(), end)
    found = pair_losses(nats, references_of(targets, references_n.cpu().numpy(), end), beta)
    weights = torch.from_numpy(token_weights(targets, found.weights, end))
    return float(found.losses.sum()), weights.to(losses_n.device, losses_n.dtype)
