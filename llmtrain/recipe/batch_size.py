"""How many tokens one optimizer step should have, where the profile says `auto`.

1. A run on T tokens learns best from about 1,024 steps: T / 1,024 tokens each up to T = 8.4M, and
   from there √T as many more. Measured at 3M and 20M parameters on 1M, 2M, 4M and 8M tokens
   (`tests/benchmarks/sweeps/batch*.yaml`): twice or half as many lose 1 to 3%. Beyond, the best
   length grows more slowly than the run (Bi et al. 2024, "DeepSeek LLM"); √T is a guess.
2. Muon's products are paid once a step whatever its length: as if a step had M more tokens. In a
   given time S steps of B tokens then cost about 12 / S of the loss for being few, by eye from
   those sweeps, and 0.3 · log(1 + M / B) for the tokens that Muon takes away. The sum is least
   where

       B · (B + M) = M · T / 40.

   Where T is not known, B = 4 · M: a fifth of the time is Muon's.
3. Fewer than 4,096 tokens at once do not keep the products of a few cores busy: of `cpu-tiny`
   `llmtrain device bench` gives 7.0k tokens/s with 2,048 and 8.4k with 4,096, without Muon.
4. The number is the power of two nearest to the largest of these, in whole contexts.
"""

from __future__ import annotations

import math

from llmtrain.profile.shape import ModelShape, muon_flops

_STEPS = 1024
_PROPORTIONAL_UP_TO_TOKENS = 8 * 1024**2
_TOKENS_FOR_MUON = 40  # 12 / 0.3
_MUON_SHARE = 4
_BUSY_TOKENS = 4096


def best_tokens_per_step(shape: ModelShape, tokens: float | None, *, uses_muon: bool) -> int:
    """For a run on so many tokens; for one of unknown length the shortest that costs little."""
    wanted: list[float] = [shape.context, _BUSY_TOKENS]
    if tokens is not None:
        wanted.append(_by_horizon(tokens))
    if uses_muon:
        wanted.append(_beside_muon(muon_tokens(shape), tokens))
    rounded: int = 2 ** round(math.log2(max(wanted)))
    return max(1, round(rounded / shape.context)) * shape.context


def _by_horizon(tokens: float) -> float:
    short = min(tokens, _PROPORTIONAL_UP_TO_TOKENS)
    longer: float = (tokens / short) ** 0.5
    return short / _STEPS * longer


def _beside_muon(muon: float, tokens: float | None) -> float:
    if tokens is None:
        return _MUON_SHARE * muon
    return math.sqrt(muon * tokens / _TOKENS_FOR_MUON + muon**2 / 4) - muon / 2


def muon_tokens(shape: ModelShape) -> float:
    """How many tokens could be trained with the operations of one step of Muon."""
    return muon_flops(shape) / shape.training_flops_per_token
