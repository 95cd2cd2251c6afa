"""Token ids sampled one after the other, as `generate` samples them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from llmtrain.generate.batch import Batch, Continuation
from llmtrain.generate.cached_decoder import CachedDecoder
from llmtrain.generate.sampling import Sampling
from llmtrain.model.decoder import Decoder


def sampled_ids(
    model: Decoder,
    prompt: Sequence[int],
    sampling: Sampling,
    num_ids: int,
    limit: int,
    allowed: Callable[[Sequence[int]], Sequence[int] | None] = lambda sampled: None,
) -> Iterator[int]:
    """Yield up to `limit` ids below `num_ids` that continue `prompt`, computed in fp32."""
    batch = Batch(CachedDecoder(model, torch.float32), num_ids)
    batch.add(Continuation(tuple(prompt), sampling, allowed))
    sampled = 0
    while sampled < limit:  # a long prompt takes several steps
        for _, token in batch.step():
            yield token.id
            sampled += 1
