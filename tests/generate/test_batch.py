"""Sequences that are continued together get the tokens that each gets alone."""

import dataclasses
import math
from collections.abc import Callable
from itertools import islice

import pytest
import torch

from llmtrain.errors import LlmtrainError
from llmtrain.generate import batch as batch_module
from llmtrain.generate.batch import Batch, Continuation, common_length
from llmtrain.generate.cached_decoder import CachedDecoder
from llmtrain.generate.sampling import Sampling
from llmtrain.model.decoder import Decoder
from llmtrain.profile.shape import ModelShape
from tests.sampled import sampled_ids

MakeModel = Callable[[ModelShape], Decoder]


@pytest.mark.parametrize("seed", [-(2**63), -1, 2**63, 2**64 - 1])
def test_every_seed_of_64_bits_samples(
    seed: int, small_shape: ModelShape, make_model: MakeModel
) -> None:
    assert list(sampled_ids(make_model(small_shape), [1], Sampling(seed=seed), 512, 1))


def test_weights_of_nan_are_an_error(small_shape: ModelShape, make_model: MakeModel) -> None:
    model = make_model(small_shape)
    with torch.no_grad():
        next(model.parameters()).fill_(math.nan)
    for temperature in (0.0, 1.0):
        with pytest.raises(LlmtrainError, match="NaN"):
            next(sampled_ids(model, [1], Sampling(temperature), 512, 1))


def test_only_allowed_ids_are_sampled(small_shape: ModelShape, make_model: MakeModel) -> None:
    steps = [[3, 5], [7]]
    sampled = sampled_ids(
        make_model(small_shape),
        [1],
        Sampling(temperature=5.0),
        512,
        20,
        allowed=lambda sampled: steps[len(sampled)] if len(sampled) < 2 else None,
    )
    first, second, *rest = sampled
    assert first in (3, 5)  # both or, if they are less likely than chance, the first
    assert second == 7
    assert set(rest) - {3, 5, 7}


def test_a_seed_is_a_text(small_shape: ModelShape, make_model: MakeModel) -> None:
    model = make_model(small_shape)

    def text(seed: int) -> list[int]:
        return list(sampled_ids(model, [1, 2], Sampling(1.0, seed=seed), 512, 20))

    first = text(3)
    torch.manual_seed(99)
    assert text(3) == first
    assert text(4) != first
    assert len(first) == 20


def test_only_ids_that_have_a_piece_are_drawn(
    small_shape: ModelShape, make_model: MakeModel
) -> None:
    drawn = sampled_ids(make_model(small_shape), [1], Sampling(temperature=5.0), 10, 200)
    assert set(drawn) == set(range(10))


def greedy_by_rereading(model: Decoder, prompt: list[int], limit: int) -> list[int]:
    """As `sampled_ids` says it, with no cache: reads a window of the text anew each time."""
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
    found = list(sampled_ids(model, prompt, Sampling(temperature=0), 512, 50))
    assert found == greedy_by_rereading(model, prompt, 50)


def test_tokens_come_as_they_are_drawn(small_shape: ModelShape, make_model: MakeModel) -> None:
    endless = sampled_ids(make_model(small_shape), [1], Sampling(), 512, limit=10**12)
    assert len(list(islice(endless, 5))) == 5
    assert list(sampled_ids(make_model(small_shape), [1], Sampling(), 512, limit=0)) == []


def test_drawing_leaves_the_model_trainable(small_shape: ModelShape, make_model: MakeModel) -> None:
    model = make_model(small_shape)
    state = torch.get_rng_state()
    next(sampled_ids(model, [1], Sampling(), 512, 5))
    assert torch.equal(torch.get_rng_state(), state)  # training's own draws are not disturbed
    tokens = torch.ones(1, 4, dtype=torch.long)
    model(tokens, tokens).backward()
    assert all(p.grad is not None for p in model.parameters())


def drive(batch: Batch, waiting: list[tuple[Continuation, int]]) -> None:
    """Continue each sequence by its number of tokens, as many together as there are slots."""
    waiting, counts = list(reversed(waiting)), dict(waiting)
    while waiting or batch.running:
        while waiting and batch.free:
            batch.add(waiting.pop()[0])
        for each, _ in batch.step():
            if len(each.sampled) == counts[each]:
                batch.remove(each)


def test_together_each_gets_the_tokens_that_it_gets_alone(
    small_shape: ModelShape, make_model: MakeModel
) -> None:
    model = make_model(small_shape)
    prompts = [[1], [5, 6, 7], list(range(40)), list(range(40)), [9] * 100, [3] * 20]
    samplings = [Sampling(0.0), Sampling(1.0, top_k=9, seed=3), Sampling(1.5, top_p=0.8, seed=4)]
    sequences = [
        Continuation(tuple(prompt), samplings[i % 3]) for i, prompt in enumerate(prompts * 2)
    ]
    batch = Batch(CachedDecoder(model, torch.float32, slots=3), 512)
    drive(batch, [(each, 5 + 7 * (i % 5)) for i, each in enumerate(sequences)])
    for each in sequences:
        alone = sampled_ids(model, each.prompt, each.sampling, 512, len(each.sampled))
        assert each.sampled == list(alone)


def test_a_long_prompt_is_read_in_parts_while_others_go_on(
    small_shape: ModelShape, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_module, "PROMPT_TOKENS", 8)
    model = make_model(small_shape)
    batch = Batch(CachedDecoder(model, torch.float32, slots=3), 512)
    short, long, other = (
        Continuation(tuple(prompt), Sampling(0.0)) for prompt in ([1], range(30), range(20, 50))
    )
    batch.add(short)
    batch.step()
    batch.add(long)
    batch.add(other)
    steps = [[each for each, _ in batch.step()] for _ in range(8)]
    assert all(short in step for step in steps)
    assert [step.index(long) for step in steps if long in step] == [1] * 5
    assert other in steps[-1]
    for each in (long, other):
        alone = sampled_ids(model, each.prompt, each.sampling, 512, len(each.sampled))
        assert each.sampled == list(alone)


def test_the_beginning_that_a_cache_has_is_not_read_again(
    small_shape: ModelShape, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, read = make_model(small_shape), []
    decoder = CachedDecoder(model, torch.float32, slots=2)
    extend = decoder.extend

    def spied(slot: int, tokens: list[int]) -> torch.Tensor:
        read.append((slot, len(tokens)))
        return extend(slot, tokens)

    monkeypatch.setattr(decoder, "extend", spied)
    batch = Batch(decoder, 512)
    first = Continuation(tuple(range(30)), Sampling(0.0))
    drive(batch, [(first, 3)])
    assert read == [(0, 30)]

    turn = (*range(30), *first.sampled, 8, 9)  # what was answered, and the next question
    second, same = (Continuation(turn, Sampling(0.0)) for _ in range(2))
    batch.add(second)
    batch.add(same)
    batch.step()
    # The last sampled token was never read; the other slot gets a copy of what is cached.
    assert read[1:] == [(0, 3), (1, 3)]
    assert second.sampled == same.sampled == list(sampled_ids(model, turn, Sampling(0.0), 512, 1))


def test_an_ended_sequence_frees_its_slot_at_once(
    small_shape: ModelShape, make_model: MakeModel
) -> None:
    batch = Batch(CachedDecoder(make_model(small_shape), torch.float32, slots=1), 512)
    first, second = (Continuation((1, 2), Sampling(seed=seed)) for seed in (1, 2))
    batch.add(first)
    assert (batch.free, batch.running) == (0, 1)
    batch.remove(first)
    assert batch.step() == []
    batch.add(second)
    assert [each for each, _ in batch.step()] == [second]
    assert first.sampled == []


def test_log_probabilities_are_reported_if_asked_for(
    small_shape: ModelShape, make_model: MakeModel
) -> None:
    model = make_model(small_shape)
    batch = Batch(CachedDecoder(model, torch.float32), 500)
    batch.add(Continuation((1, 2), Sampling(5.0), likeliest=3))
    ((_, token),) = batch.step()
    with torch.no_grad():
        expected = model.logits(torch.tensor([[1, 2]]))[0, -1, :500].log_softmax(-1)
    assert token.logprob == pytest.approx(float(expected[token.id]), abs=1e-5)
    assert [i for i, _ in token.likeliest] == expected.topk(3).indices.tolist()


@pytest.mark.parametrize(
    ("first", "second", "length"), [([], [1], 0), ([1, 2], [1, 2, 3], 2), ([1, 2, 3], [1, 4, 3], 1)]
)
def test_common_beginnings(first: list[int], second: list[int], length: int) -> None:
    assert common_length(first, second) == length
