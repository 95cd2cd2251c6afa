"""Sample a continuation token by token."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmtrain.errors import LlmtrainError, UsageError
from llmtrain.model.decoder import Decoder

_LOWEST_SEED, _HIGHEST_SEED = -(2**63), 2**64 - 1  # of torch's generators
_HIGHEST_PENALTY = 1e6


@dataclass(frozen=True, slots=True)
class Sampling:
    """The options of sampling the next token. Temperature 0 is greedy."""

    temperature: float = 0.8
    top_k: int | None = None
    top_p: float | None = None  # Holtzman et al. 2020
    repetition_penalty: float = 1.0  # Keskar et al. 2019, equation 1
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise UsageError for a value that no token can be sampled with."""
        if not _LOWEST_SEED <= self.seed <= _HIGHEST_SEED:
            raise UsageError(
                f"seed {self.seed} is not between {_LOWEST_SEED} and {_HIGHEST_SEED}",
                hint="--seed 0",
            )
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UsageError(
                f"temperature {self.temperature} is not a number from 0", hint="--temperature 0.8"
            )
        if not 1 / _HIGHEST_PENALTY <= self.repetition_penalty <= _HIGHEST_PENALTY:
            raise UsageError(
                f"repetition_penalty {self.repetition_penalty} is not between "
                f"{1 / _HIGHEST_PENALTY:g} and {_HIGHEST_PENALTY:g}",
                hint="--repetition-penalty 1.1",
            )
        if self.top_k is not None and self.top_k < 1:
            raise UsageError(f"top_k {self.top_k} leaves no token to sample", hint="--top-k 50")
        if self.top_p is not None and not 0 <= self.top_p <= 1:
            raise UsageError(f"top_p {self.top_p} is not between 0 and 1", hint="--top-p 0.95")


@torch.inference_mode()
def generate_tokens(
    model: Decoder,
    prompt: Sequence[int],
    sampling: Sampling,
    num_ids: int,
    limit: int,
    allowed: Callable[[Sequence[int]], Sequence[int] | None] = lambda sampled: None,
) -> Iterator[int]:
    """Yield up to `limit` ids below `num_ids` that continue `prompt`.

    `allowed` returns the ids that may follow the ones sampled so far, or None for all; the first of
    them is taken if the model gives all of them together a probability below chance. When the
    context is full, generation continues from its newer half. Raises LlmtrainError if the model's
    output holds NaN.
    """
    context, device = model.shape.context, model.head_weight.device
    generator = torch.Generator().manual_seed(sampling.seed)
    ids = list(prompt)
    caches, pending = model.new_caches(), ids[-context:]
    for _ in range(limit):
        if caches[0].length + len(pending) > context:
            caches, pending = model.new_caches(), ids[-(context // 2) :]
        tokens = torch.tensor([pending], device=device)
        last_v = model.logits(tokens, caches, of_last_only=True)[0, -1, :num_ids].float().cpu()
        if last_v.isnan().any():
            raise LlmtrainError(
                "the model computes NaN: its weights are not finite, or overflow in this precision",
                hint="use an earlier checkpoint: llmtrain generate RUN/checkpoints/STEP",
            )
        if (choice := allowed(ids[len(prompt) :])) is not None:
            last_v = _restrict(last_v, list(choice))
        token = sample_token(last_v, ids, sampling, generator)
        ids.append(token)
        pending = [token]
        yield token


def _restrict(logits_v: Tensor, allowed: list[int]) -> Tensor:
    """Return the logits with all but the allowed ids excluded.

    If the model was never trained on such a beginning, its probabilities are noise, and ids that
    occur in no text may be the likeliest: only the first is left.
    """
    if logits_v.softmax(-1)[allowed].sum() < len(allowed) / len(logits_v):
        allowed = allowed[:1]
    is_excluded = torch.ones_like(logits_v, dtype=torch.bool)
    is_excluded[allowed] = False
    return logits_v.masked_fill(is_excluded, -torch.inf)


def sample_token(
    logits_v: Tensor, previous: Sequence[int], sampling: Sampling, generator: torch.Generator
) -> int:
    """Return one token id sampled from the logits."""
    logits_v = _penalize(logits_v.double(), previous, sampling.repetition_penalty)
    if sampling.temperature == 0:
        return int(logits_v.argmax())
    # In double precision and with the highest at 0, so that no temperature overflows.
    logits_v = (logits_v - logits_v.max()) / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < len(logits_v):
        threshold = logits_v.topk(sampling.top_k).values[-1]
        logits_v = logits_v.masked_fill(logits_v < threshold, -torch.inf)
    probabilities = logits_v.softmax(-1)
    if sampling.top_p is not None:
        probabilities = nucleus(probabilities, sampling.top_p)
    return int(torch.multinomial(probabilities, 1, generator=generator))


def nucleus(probabilities_v: Tensor, top_p: float) -> Tensor:
    """Keep the likeliest tokens until their probabilities reach `top_p`; set the rest to 0."""
    ordered, order = probabilities_v.sort(descending=True)
    cumulative_before = ordered.cumsum(-1) - ordered
    dropped = cumulative_before >= top_p
    dropped[0] = False
    kept = ordered.masked_fill(dropped, 0.0)
    return torch.zeros_like(probabilities_v).scatter(0, order, kept)


def _penalize(logits_v: Tensor, previous: Sequence[int], penalty: float) -> Tensor:
    if penalty == 1.0 or not previous:
        return logits_v
    seen = torch.tensor(sorted({i for i in previous if i < len(logits_v)}), dtype=torch.long)
    values = logits_v[seen]
    penalized = torch.where(values > 0, values / penalty, values * penalty)
    return logits_v.scatter(0, seen, penalized)
