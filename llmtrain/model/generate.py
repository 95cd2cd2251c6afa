"""Sample a continuation token by token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmtrain.model.decoder import Decoder


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is sampled. Temperature 0 is greedy."""

    temperature: float = 0.8
    top_k: int | None = None
    top_p: float | None = None  # Holtzman et al. 2020
    repetition_penalty: float = 1.0  # Keskar et al. 2019, equation 1
    seed: int = 0


@torch.inference_mode()
def generate_tokens(
    model: Decoder, prompt: Sequence[int], sampling: Sampling, num_ids: int, limit: int
) -> Iterator[int]:
    """Yield up to `limit` ids below `num_ids` that continue `prompt`.

    When the context is full, generation continues from its newer half.
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
        token = sample_token(last_v, ids, sampling, generator)
        ids.append(token)
        pending = [token]
        yield token


def sample_token(
    logits_v: Tensor, previous: Sequence[int], sampling: Sampling, generator: torch.Generator
) -> int:
    """Return one token id sampled from the logits."""
    logits_v = _penalize(logits_v, previous, sampling.repetition_penalty)
    if sampling.temperature == 0:
        return int(logits_v.argmax())
    logits_v = logits_v / sampling.temperature
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
    return logits_v.scatter(0, seen, torch.where(values > 0, values / penalty, values * penalty))
