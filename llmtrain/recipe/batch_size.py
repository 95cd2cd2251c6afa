"""Rule 3: the number of tokens B in one optimizer step.

3.1 A run on D tokens learns best in about 1,024 steps, up to D = 8.4M; beyond that B grows with √D:

        B = D / 1,024    up to D = 8.4M,    then 8,192 · √(D / 8.4M).

    Measured at 3M and 20M parameters on 1M, 2M, 4M and 8M tokens
    (`tests/benchmarks/sweeps/batch*.yaml`): twice or half as many lose 1 to 3%. Beyond, the best B
    grows more slowly than D (Bi et al. 2024, "DeepSeek LLM"); √D is a guess.
3.2 Muon orthogonalises every hidden matrix once a step, whatever B is; that costs as much as M more
    tokens. In a given time, steps of B tokens cost about 12 · (B + M) / D of the loss for being
    few (by eye from those sweeps), and 0.3 · log(1 + M / B) for the tokens that Muon displaces. The
    sum is lowest for

        B · (B + M) = M · D / 40;    for unknown D, B = 4 · M: Muon takes a fifth of the time.
3.3 Fewer than 4,096 tokens do not keep a few cores busy: `llmtrain device bench` measures 7.0k
    tokens/s for `cpu-tiny` with 2,048 and 8.4k with 4,096, without Muon.
3.4 B is the power of two nearest to the largest of these, in whole contexts.
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
    """Return B by rule 3 for a run on `tokens` tokens (None: unknown)."""
    candidates: list[float] = [shape.context, _BUSY_TOKENS]
    if tokens is not None:
        candidates.append(_by_horizon(tokens))
    if uses_muon:
        candidates.append(_beside_muon(muon_tokens(shape), tokens))
    rounded: int = 2 ** round(math.log2(max(candidates)))
    return max(1, round(rounded / shape.context)) * shape.context


def _by_horizon(tokens: float) -> float:
    """Return B by rule 3.1."""
    proportional = min(tokens, _PROPORTIONAL_UP_TO_TOKENS)
    root: float = (tokens / proportional) ** 0.5
    return proportional / _STEPS * root


def _beside_muon(muon: float, tokens: float | None) -> float:
    """Return B by rule 3.2."""
    if tokens is None:
        return _MUON_SHARE * muon
    return math.sqrt(muon * tokens / _TOKENS_FOR_MUON + muon**2 / 4) - muon / 2


def muon_tokens(shape: ModelShape) -> float:
    """Return M: the tokens that could be trained with the FLOPs of one step of Muon."""
    return muon_flops(shape) / shape.training_flops_per_token
