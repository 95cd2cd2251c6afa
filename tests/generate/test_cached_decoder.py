"""Logits with cached keys and values are those of the decoder without."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from llmtrain.generate.cached_decoder import CachedDecoder
from llmtrain.model.decoder import Decoder
from llmtrain.model.lora import adapted_decoder
from llmtrain.ops.precision import autocast_as
from llmtrain.profile.lora_shape import TARGETS, LoraShape
from llmtrain.profile.shape import ModelShape

MakeModel = Callable[[ModelShape], Decoder]


def draw_ids(shape: ModelShape, length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(shape.vocab_size, (length,), generator=generator).tolist()


@torch.no_grad()
def expected_logits(model: Decoder, ids: list[int]) -> Tensor:
    return model.logits(torch.tensor([ids]))[0]


@pytest.mark.parametrize("read_at_once", [1, 7, 20])
def test_cached_keys_and_values_change_nothing(
    shape: ModelShape, make_model: MakeModel, read_at_once: int
) -> None:
    model, ids = make_model(shape), draw_ids(shape, shape.context)
    decoder = CachedDecoder(model, torch.float32, slots=2)
    expected = expected_logits(model, ids)
    found = decoder.extend(1, ids[:read_at_once])
    assert (found - expected[read_at_once - 1]).abs().max() <= 1e-5
    for position in range(read_at_once, shape.context):
        found = decoder.step([1], [ids[position]])[0]
        assert (found - expected[position]).abs().max() <= 1e-5


def test_a_prompt_may_be_read_in_parts(shape: ModelShape, make_model: MakeModel) -> None:
    model, ids = make_model(shape), draw_ids(shape, shape.context)
    decoder, expected = CachedDecoder(model, torch.float32), expected_logits(model, ids)
    for start, end in ((0, 5), (5, 6), (6, 30), (30, shape.context)):
        found = decoder.extend(0, ids[start:end])
        assert (found - expected[end - 1]).abs().max() <= 1e-5
        assert decoder.length(0) == end


@pytest.mark.parametrize("slots", [[0, 1, 2], [2, 0], [1, 2], [3, 0, 2, 1]])
def test_sequences_of_different_lengths_do_not_see_each_other(
    shape: ModelShape, make_model: MakeModel, slots: list[int]
) -> None:
    model, decoder = (made := make_model(shape)), CachedDecoder(made, torch.float32, slots=4)
    texts = [draw_ids(shape, 3 + 9 * slot, seed=slot) for slot in range(4)]
    for slot, ids in enumerate(texts):
        decoder.extend(slot, ids)
    for step in range(4):
        tokens = [(31 * slot + step) % shape.vocab_size for slot in slots]
        found = decoder.step(slots, tokens)
        for row, (slot, token) in enumerate(zip(slots, tokens, strict=True)):
            texts[slot].append(token)
            expected = expected_logits(model, texts[slot])[-1]
            assert (found[row] - expected).abs().max() <= 1e-5


def test_a_copied_beginning_is_as_if_it_had_been_read(
    small_shape: ModelShape, make_model: MakeModel
) -> None:
    model = make_model(small_shape)
    decoder = CachedDecoder(model, torch.float32, slots=2)
    first, second = draw_ids(small_shape, 30), draw_ids(small_shape, 9, seed=1)
    decoder.extend(0, first)
    decoder.extend(1, second * 3)
    decoder.copy(0, 1, 20)
    found = decoder.extend(1, second)
    expected = expected_logits(model, first[:20] + second)[-1]
    assert (found - expected).abs().max() <= 1e-5
    decoder.truncate(0, 11)
    expected = expected_logits(model, [*first[:11], 7])[-1]
    assert (decoder.step([0], [7])[0] - expected).abs().max() <= 1e-5


def test_more_tokens_than_the_context_are_refused(
    small_shape: ModelShape, make_model: MakeModel
) -> None:
    decoder = CachedDecoder(make_model(small_shape), torch.float32)
    decoder.extend(0, [1] * small_shape.context)
    for call in (lambda: decoder.extend(0, [1]), lambda: decoder.step([0], [1])):
        with pytest.raises(AssertionError, match="context"):
            call()


@torch.no_grad()
def test_half_precision_rounds_as_training_does(shape: ModelShape, make_model: MakeModel) -> None:
    model, ids = make_model(shape), draw_ids(shape, 40)
    with autocast_as("bf16", torch.device("cpu")):
        expected = expected_logits(model, ids).float()
    decoder, exact = CachedDecoder(model, torch.bfloat16), expected_logits(model, ids)
    decoder.extend(0, ids[:20])
    found = torch.stack([decoder.step([0], [token])[0] for token in ids[20:]])
    errors = (found - exact[20:]).square().mean(), (expected - exact)[20:].square().mean()
    assert 0 < errors[0] <= 1.5 * errors[1]
    assert found.dtype == torch.float32


def test_the_weights_are_those_of_the_time_of_making_or_the_models_own(
    small_shape: ModelShape, make_model: MakeModel
) -> None:
    model = make_model(small_shape)
    weight = next(model.model.blocks()).mlp.down_proj.weight
    shared = CachedDecoder(model, torch.float32)._weights.layers[0].down
    copied = CachedDecoder(model, torch.bfloat16)._weights.layers[0].down
    assert shared.data_ptr() == weight.data_ptr()
    assert copied.dtype == torch.bfloat16
    assert not shared.requires_grad


def test_adapters_are_added_to_the_weights_beside_them(
    small_shape: ModelShape, make_model: MakeModel
) -> None:
    lora = LoraShape(rank=3, alpha=6.0, targets=tuple(TARGETS))
    ids, found = draw_ids(small_shape, 20), []
    for dtype in (torch.float32, torch.bfloat16):
        weights = make_model(small_shape).state_dict().items()
        model = adapted_decoder(small_shape, weights, lora, dtype)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if ".lora_" in name:
                    parameter.normal_(0, 0.1, generator=generator)
        found.append(CachedDecoder(model, torch.float32).extend(0, ids))
        if dtype == torch.float32:
            assert (found[0] - expected_logits(model, ids)[-1]).abs().max() <= 1e-4
    assert (found[1] - found[0]).square().mean() < 1e-3  # the rounding of the weights
