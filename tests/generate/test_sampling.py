"""What is drawn, and from what."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llmtrain.errors import UsageError
from llmtrain.generate.sampling import Sampling, nucleus, restrict, sample_token, with_logprobs
from llmtrain.model.decoder import Decoder
from llmtrain.profile.shape import ModelShape

MakeModel = Callable[[ModelShape], Decoder]

# Shares of 64 are exact in floating point, so that sums reach a limit exactly or not at all.
shares = st.lists(st.integers(0, 16), min_size=1, max_size=9).filter(any)


def distribution(counts: list[int]) -> Tensor:
    return torch.tensor(counts, dtype=torch.float64) / sum(counts)


def support(logits: Tensor, sampling: Sampling, draws: int = 300) -> set[int]:
    generator = torch.Generator().manual_seed(1)
    return {sample_token(logits, [], [], sampling, generator) for _ in range(draws)}


@given(st.lists(st.integers(-50, 50), min_size=1, max_size=20, unique=True), st.integers(1, 25))
@settings(deadline=None)
def test_greedy_is_the_likeliest(values: list[int], top_k: int) -> None:
    logits, generator = torch.tensor(values, dtype=torch.float64), torch.Generator()
    likeliest = values.index(max(values))
    for sampling in (
        Sampling(temperature=0),
        Sampling(temperature=0, top_k=top_k, top_p=0.1),
        Sampling(temperature=1.3, top_k=1),
        Sampling(temperature=1.3, top_p=1e-9),
        Sampling(temperature=1.3, top_p=0.0),
    ):
        assert sample_token(logits, [], [], sampling, generator) == likeliest


@given(shares, st.integers(1, 64))
@settings(deadline=None)
def test_the_nucleus_is_the_smallest_set_that_reaches_its_share(
    counts: list[int], sixty_fourths: int
) -> None:
    scaled = [c * 64 for c in counts]  # and the limit in the same unit: integers throughout
    limit = sixty_fourths * sum(counts)
    kept = nucleus(torch.tensor(scaled, dtype=torch.float64), limit)
    chosen = [c for c, k in zip(scaled, kept.tolist(), strict=True) if k > 0]
    left_out = [c for c, k in zip(scaled, kept.tolist(), strict=True) if k == 0 and c > 0]
    assert all(k in (0, c) for c, k in zip(scaled, kept.tolist(), strict=True))
    assert len(chosen) >= 1
    assert sum(chosen) >= min(limit, sum(scaled))
    assert sum(chosen) - min(chosen) < limit
    assert not left_out or max(left_out) <= min(chosen)


@pytest.mark.parametrize(
    ("size", "top_p", "kept"),
    [(1, 0.0, 1), (4, 0.0, 1), (4, 1e-30, 1), (4, 0.25, 1), (4, 0.26, 2), (4, 1.0, 4), (1, 1.0, 1)],
)
def test_the_nucleus_is_never_empty(size: int, top_p: float, kept: int) -> None:
    assert (nucleus(torch.full((size,), 1 / size), top_p) > 0).sum() == kept


def test_a_full_nucleus_keeps_rare_tokens() -> None:
    probabilities = torch.tensor([0.5, 0.25, 0.25 - 1e-4, 1e-4])
    assert torch.equal(nucleus(probabilities, 1.0), probabilities)


@given(st.permutations(range(8)), st.integers(1, 12))
@settings(deadline=None, max_examples=30)
def test_top_k_draws_from_the_k_likeliest(order: list[int], top_k: int) -> None:
    logits = torch.tensor(order) * 0.05
    likeliest = {i for i, rank in enumerate(order) if rank >= 8 - top_k}
    assert support(logits, Sampling(temperature=1.0, top_k=top_k)) == likeliest


def test_top_k_comes_before_top_p() -> None:
    """Of the two likeliest the first holds 5/8, which is enough; of all four it is not."""
    logits = distribution([5, 3, 1, 1]).log()
    assert support(logits, Sampling(temperature=1.0, top_p=0.6)) == {0, 1}
    assert support(logits, Sampling(temperature=1.0, top_k=2, top_p=0.6)) == {0}


def test_temperature_sharpens_and_flattens() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0])
    assert support(logits, Sampling(temperature=0.01)) == {0}
    generator = torch.Generator().manual_seed(0)
    for temperature in (0.5, 1.0, 50.0):
        drawn = [
            sample_token(logits, [], [], Sampling(temperature), generator) for _ in range(4000)
        ]
        frequencies = torch.bincount(torch.tensor(drawn), minlength=3) / 4000
        expected = (logits / temperature).softmax(0)
        assert (frequencies - expected).abs().max() < 0.04


def test_repetition_is_penalised_on_either_side_of_zero() -> None:
    sampling = Sampling(temperature=0, repetition_penalty=2.0)
    generator = torch.Generator()
    assert (
        sample_token(torch.tensor([3.0, 2.0]), [0, 0], [], sampling, generator) == 1
    )  # once, to 1.5
    assert sample_token(torch.tensor([3.0, 1.0]), [0, 0, 0, 0], [], sampling, generator) == 0
    assert sample_token(torch.tensor([-1.0, -1.5]), [0], [], sampling, generator) == 1  # to -2
    assert sample_token(torch.tensor([-1.0, -2.5]), [0], [], sampling, generator) == 0
    assert (
        sample_token(torch.tensor([3.0, 2.0]), [7], [], sampling, generator) == 0
    )  # not in the logits
    logits = torch.tensor([3.0, 2.0])
    sample_token(logits, [0], [], sampling, generator)
    assert logits.tolist() == [3.0, 2.0]


@pytest.mark.parametrize("temperature", [5e-324, 1e-45, 1e-39, 1e300])
@pytest.mark.parametrize("penalty", [1.0, 1e6])
def test_no_temperature_overflows(temperature: float, penalty: float) -> None:
    logits = torch.tensor([30.0, -4.0, 12.0])
    sampling = Sampling(temperature, top_p=0.9, repetition_penalty=penalty)
    token = sample_token(logits, [1], [], sampling, torch.Generator())
    assert token == 0 or temperature > 1


@pytest.mark.parametrize(
    "value",
    [
        {"seed": 2**64},
        {"seed": -(2**63) - 1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"temperature": -0.1},
        {"repetition_penalty": math.nan},
        {"repetition_penalty": 1e300},
        {"top_k": 0},
        {"top_p": 1.5},
        {"top_p": math.nan},
        {"presence_penalty": 2.5},
        {"frequency_penalty": math.nan},
    ],
)
def test_what_no_token_can_be_sampled_with_is_a_usage_error(value: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(value))):
        Sampling(**value)


def test_the_first_allowed_id_is_taken_where_all_are_less_likely_than_chance() -> None:
    logits = torch.tensor([0.0, -9.0, -8.0, 0.0])
    assert restrict(logits, [1, 2]).isfinite().tolist() == [False, True, False, False]
    assert restrict(logits, [1, 0, 3]).isfinite().tolist() == [True, True, False, True]


def test_presence_and_frequency_count_what_was_sampled_alone() -> None:
    generator = torch.Generator()
    logits = torch.tensor([3.0, 2.0, 1.2])

    def drawn(sampled: list[int], **penalties: float) -> int:
        return sample_token(logits, [0, 0], sampled, Sampling(0.0, **penalties), generator)

    assert drawn([], presence_penalty=2.0, frequency_penalty=2.0) == 0
    assert drawn([0], presence_penalty=1.5) == 1
    assert drawn([0] * 9, presence_penalty=0.9) == 0
    assert drawn([0], frequency_penalty=0.4) == 0
    assert drawn([0] * 3, frequency_penalty=0.4) == 1
    assert drawn([0] * 5 + [1] * 3, frequency_penalty=0.4) == 2
    assert drawn([2], presence_penalty=-2.0) == 2


def test_the_nucleus_of_a_large_vocabulary_is_that_of_all_tokens_sorted() -> None:
    generator = torch.Generator().manual_seed(0)
    for flatness in (0.1, 1.0, 4.0):
        drawn = torch.randn(3_000, generator=generator, dtype=torch.float64)
        probabilities = (drawn / flatness).softmax(0)
        ordered, order = probabilities.sort(descending=True)
        count = int((ordered.cumsum(0) - ordered < 0.9).sum())
        kept = nucleus(probabilities, 0.9)
        assert set(kept.nonzero().flatten().tolist()) == set(order[:count].tolist())


def test_log_probabilities_are_the_models_own() -> None:
    logits = torch.tensor([2.0, 0.0, 1.0])
    token = with_logprobs(1, logits, 2)
    expected = logits.double().log_softmax(0)
    assert token.logprob == float(expected[1])
    assert token.likeliest == ((0, float(expected[0])), (2, float(expected[2])))
    assert len(with_logprobs(0, logits, 20).likeliest) == 3
