"""What is drawn, and from what."""

import dataclasses
import math
from collections.abc import Callable
from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llmtrain.errors import LlmtrainError, UsageError
from llmtrain.model.decoder import Decoder
from llmtrain.model.generate import Sampling, generate_tokens, nucleus, sample_token
from llmtrain.profile.shape import ModelShape

MakeModel = Callable[[ModelShape], Decoder]

# Shares of 64 are exact in floating point, so that sums reach a limit exactly or not at all.
shares = st.lists(st.integers(0, 16), min_size=1, max_size=9).filter(any)


def distribution(counts: list[int]) -> Tensor:
    return torch.tensor(counts, dtype=torch.float64) / sum(counts)


def support(logits: Tensor, sampling: Sampling, draws: int = 300) -> set[int]:
    generator = torch.Generator().manual_seed(1)
    return {sample_token(logits, [], sampling, generator) for _ in range(draws)}


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
        assert sample_token(logits, [], sampling, generator) == likeliest


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
        drawn = [sample_token(logits, [], Sampling(temperature), generator) for _ in range(4000)]
        frequencies = torch.bincount(torch.tensor(drawn), minlength=3) / 4000
        expected = (logits / temperature).softmax(0)
        assert (frequencies - expected).abs().max() < 0.04


def test_repetition_is_penalised_on_either_side_of_zero() -> None:
    sampling = Sampling(temperature=0, repetition_penalty=2.0)
    generator = torch.Generator()
    assert sample_token(torch.tensor([3.0, 2.0]), [0, 0], sampling, generator) == 1  # once, to 1.5
    assert sample_token(torch.tensor([3.0, 1.0]), [0, 0, 0, 0], sampling, generator) == 0
    assert sample_token(torch.tensor([-1.0, -1.5]), [0], sampling, generator) == 1  # to -2
    assert sample_token(torch.tensor([-1.0, -2.5]), [0], sampling, generator) == 0
    assert (
        sample_token(torch.tensor([3.0, 2.0]), [7], sampling, generator) == 0
    )  # not in the logits
    logits = torch.tensor([3.0, 2.0])
    sample_token(logits, [0], sampling, generator)
    assert logits.tolist() == [3.0, 2.0]


@pytest.mark.parametrize("temperature", [5e-324, 1e-45, 1e-39, 1e300])
@pytest.mark.parametrize("penalty", [1.0, 1e6])
def test_no_temperature_overflows(temperature: float, penalty: float) -> None:
    logits = torch.tensor([30.0, -4.0, 12.0])
    sampling = Sampling(temperature, top_p=0.9, repetition_penalty=penalty)
    token = sample_token(logits, [1], sampling, torch.Generator())
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
    ],
)
def test_what_no_token_can_be_sampled_with_is_a_usage_error(value: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(value))):
        Sampling(**value)


@pytest.mark.parametrize("seed", [-(2**63), -1, 2**63, 2**64 - 1])
def test_every_seed_of_64_bits_samples(
    seed: int, small_shape: ModelShape, make_model: MakeModel
) -> None:
    assert list(generate_tokens(make_model(small_shape), [1], Sampling(seed=seed), 512, 1))


def test_weights_of_nan_are_an_error(small_shape: ModelShape, make_model: MakeModel) -> None:
    model = make_model(small_shape)
    with torch.no_grad():
        next(model.parameters()).fill_(math.nan)
    for temperature in (0.0, 1.0):
        with pytest.raises(LlmtrainError, match="NaN"):
            next(generate_tokens(model, [1], Sampling(temperature), 512, 1))


def test_only_allowed_ids_are_sampled(small_shape: ModelShape, make_model: MakeModel) -> None:
    steps = [[3, 5], [7]]
    sampled = generate_tokens(
        make_model(small_shape),
        [1],
        Sampling(temperature=5.0),
        512,
        20,
        allowed=lambda sampled: steps[len(sampled)] if len(sampled) < 2 else None,
    )
    first, second, *rest = sampled
    assert first in (3, 5)
    assert second == 7
    assert set(rest) - {3, 5, 7}


def test_a_seed_is_a_text(small_shape: ModelShape, make_model: MakeModel) -> None:
    model = make_model(small_shape)

    def text(seed: int) -> list[int]:
        return list(generate_tokens(model, [1, 2], Sampling(1.0, seed=seed), 512, 20))

    first = text(3)
    torch.manual_seed(99)
    assert text(3) == first
    assert text(4) != first
    assert len(first) == 20


def test_only_ids_that_have_a_piece_are_drawn(
    small_shape: ModelShape, make_model: MakeModel
) -> None:
    drawn = generate_tokens(make_model(small_shape), [1], Sampling(temperature=5.0), 10, 200)
    assert set(drawn) == set(range(10))


def greedy_by_rereading(model: Decoder, prompt: list[int], limit: int) -> list[int]:
    """As `generate_tokens` says it, with no cache: reads a window of the text anew each time."""
    context, ids = model.shape.context, list(prompt)
    window = ids[-context:]
    with torch.no_grad():
        for _ in range(limit):
            if len(window) > context:
                window = ids[-(context // 2) :]
            chosen = int(model.logits(torch.tensor([window]))[0, -1].argmax())
            ids.append(chosen)
            window = [*window, chosen]
    return ids[len(prompt) :]


@pytest.mark.parametrize("prompt_length", [1, 7, 12, 13, 40])
def test_text_goes_on_past_the_context(
    small_shape: ModelShape, make_model: MakeModel, prompt_length: int
) -> None:
    model = make_model(dataclasses.replace(small_shape, context=12))
    prompt = [(7 * i) % 512 for i in range(prompt_length)]
    found = list(generate_tokens(model, prompt, Sampling(temperature=0), 512, 50))
    assert found == greedy_by_rereading(model, prompt, 50)


def test_tokens_come_as_they_are_drawn(small_shape: ModelShape, make_model: MakeModel) -> None:
    endless = generate_tokens(make_model(small_shape), [1], Sampling(), 512, limit=10**12)
    assert len(list(islice(endless, 5))) == 5
    assert list(generate_tokens(make_model(small_shape), [1], Sampling(), 512, limit=0)) == []


def test_drawing_leaves_the_model_trainable(small_shape: ModelShape, make_model: MakeModel) -> None:
    model = make_model(small_shape)
    state = torch.get_rng_state()
    next(generate_tokens(model, [1], Sampling(), 512, 5))
    assert torch.equal(torch.get_rng_state(), state)  # training's own draws are not disturbed
    tokens = torch.ones(1, 4, dtype=torch.long)
    model(tokens, tokens).backward()
    assert all(p.grad is not None for p in model.parameters())
