"""Draw the next token from a model's logits."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmtrain.errors import UsageError

_LOWEST_SEED, _HIGHEST_SEED = -(2**63), 2**64 - 1  # of torch's generators
_HIGHEST_PENALTY = 1e6
_HIGHEST_ADDED_PENALTY = 2.0  # as OpenAI's interface has it
_NUCLEUS_TOKENS = 512  # the likeliest, which nearly always hold the nucleus: sorting all takes long


@dataclass(frozen=True, slots=True)
class Sampling:
    """The options of sampling the next token. Temperature 0 is greedy."""

    temperature: float = 0.8
    top_k: int | None = None
    top_p: float | None = None  # Holtzman et al. 2020
    repetition_penalty: float = 1.0  # Keskar et al. 2019, equation 1
    seed: int = 0
    presence_penalty: float = 0.0  # taken from the logit of each id that was sampled before
    frequency_penalty: float = 0.0  # the same, times how often it was

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
        for name in ("presence_penalty", "frequency_penalty"):
            if not abs(getattr(self, name)) <= _HIGHEST_ADDED_PENALTY:
                raise UsageError(
                    f"{name} {getattr(self, name)} is not between -{_HIGHEST_ADDED_PENALTY:g} and "
                    f"{_HIGHEST_ADDED_PENALTY:g}",
                    hint=f"{name} 0.5",
                )


def restrict(logits_v: Tensor, allowed: list[int]) -> Tensor:
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
    logits_v: Tensor,
    prompt: Sequence[int],
    sampled: Sequence[int],
    sampling: Sampling,
    generator: torch.Generator,
) -> int:
    """Return one token id drawn from the logits after `prompt` and what was `sampled` since.

    Repetitions of the prompt are penalised too; presence and frequency count what was sampled.
    """
    logits_v = logits_v.double()
    if sampling.repetition_penalty != 1.0:
        logits_v = _penalize(logits_v, {*prompt, *sampled}, sampling.repetition_penalty)
    if sampling.presence_penalty or sampling.frequency_penalty:
        logits_v = _subtract_penalties(logits_v, sampled, sampling)
    if sampling.temperature == 0:
        return int(logits_v.argmax())
    # In double precision and with the highest at 0, so that no temperature overflows.
    logits_v = (logits_v - logits_v.max()) / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < len(logits_v):
        threshold = logits_v.topk(sampling.top_k).values[-1]
        logits_v = logits_v.masked_fill(logits_v < threshold, -torch.inf)
    probabilities = logits_v.softmax(-1)
    if sampling.top_p is not None and sampling.top_p < 1:
        probabilities = nucleus(probabilities, sampling.top_p)
    return int(torch.multinomial(probabilities, 1, generator=generator))


def nucleus(probabilities_v: Tensor, top_p: float) -> Tensor:
    """Keep the likeliest tokens until their probabilities reach `top_p`; set the rest to 0."""
    count = min(_NUCLEUS_TOKENS, len(probabilities_v))
    likeliest, order = probabilities_v.topk(count)
    if count < len(probabilities_v) and likeliest.sum() < top_p:
        likeliest, order = probabilities_v.sort(descending=True)
    cumulative_before = likeliest.cumsum(-1) - likeliest
    dropped = cumulative_before >= top_p
    dropped[0] = False
    kept = likeliest.masked_fill(dropped, 0.0)
    return torch.zeros_like(probabilities_v).scatter(0, order, kept)


def _penalize(logits_v: Tensor, previous: set[int], penalty: float) -> Tensor:
    seen = torch.tensor(sorted(i for i in previous if i < len(logits_v)), dtype=torch.long)
    values = logits_v[seen]
    penalized = torch.where(values > 0, values / penalty, values * penalty)
    return logits_v.scatter(0, seen, penalized)


def _subtract_penalties(logits_v: Tensor, sampled: Sequence[int], sampling: Sampling) -> Tensor:
    counts = Counter(sampled)
    ids = torch.tensor(list(counts), dtype=torch.long)
    times = torch.tensor(list(counts.values()), dtype=logits_v.dtype)
    taken = sampling.presence_penalty + sampling.frequency_penalty * times
    return logits_v.index_add(0, ids, -taken)


@dataclass(frozen=True, slots=True)
class Token:
    """A sampled id; with its log-probability, and the likeliest ids with theirs, if asked for.

    They are the model's own, in nats, before temperature, penalties and limits of sampling.
    """

    id: int
    logprob: float | None = None
    likeliest: tuple[tuple[int, float], ...] = ()


def with_logprobs(token: int, logits_v: Tensor, likeliest: int) -> Token:
    """Return the token with its log-probability, and those of the `likeliest` ids."""
    logprobs_v = logits_v.double().log_softmax(-1)
    best = logprobs_v.topk(min(likeliest, len(logprobs_v)))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return Token(token, float(logprobs_v[token]), tuple(pairs))
