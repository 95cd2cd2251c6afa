"""The compiled step computes what torch does, as accurately, for every shape."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch

from llmtrain.generate.cached_decoder import CachedDecoder
from llmtrain.generate.native.library import load_decode_step
from llmtrain.generate.weights import NativeWeights, round_to_int8
from llmtrain.machine.probe import read_facts
from llmtrain.model.decoder import Decoder
from llmtrain.profile.shape import ModelShape

MakeModel = Callable[[ModelShape], Decoder]
pytestmark = pytest.mark.usefixtures("decode_step")


@pytest.fixture(scope="module")
def decode_step() -> None:
    """Compile the step once; skip where this machine has none."""
    loaded = load_decode_step(read_facts(tries_gpus=False))
    if not loaded.value:
        pytest.skip(loaded.reason)


def decoders(model: Decoder, slots: int) -> dict[str, CachedDecoder]:
    """In fp32, in bf16 by torch, and by the compiled step."""
    found = {
        "exact": CachedDecoder(model, torch.float32, slots),
        "torch": CachedDecoder(model, torch.bfloat16, slots),
        "native": CachedDecoder(model, torch.bfloat16, slots),
    }
    found["native"].compute_natively(True)
    return found


@pytest.mark.parametrize("threads", [1, 3])
def test_it_is_as_accurate_as_torch(shape: ModelShape, make_model: MakeModel, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        require_accurate(shape, make_model(shape), [0, 3, 1, 5, 2, 4])
    finally:
        torch.set_num_threads(before)


def require_accurate(shape: ModelShape, model: Decoder, slots: list[int]) -> None:
    by = decoders(model, slots=6)
    for slot in range(6):
        ids = [(7 * slot + 3 * i) % shape.vocab_size for i in range(1 + 6 * slot)]
        for decoder in by.values():
            decoder.extend(slot, ids)
    errors = {"torch": 0.0, "native": 0.0}
    for step in range(5):
        chosen = slots[: 6 - step]
        tokens = [(11 * step + slot) % shape.vocab_size for slot in chosen]
        logits = {name: decoder.step(chosen, tokens) for name, decoder in by.items()}
        for name in errors:
            errors[name] += float((logits[name] - logits["exact"]).square().mean())
    assert 0 < errors["native"] <= 1.5 * errors["torch"]


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": 40, "intermediate_size": 100},  # no multiples of a register
        {"hidden_size": 33, "intermediate_size": 17},
        {"vocab_size": 333},
        {"num_heads": 6, "num_kv_heads": 3, "head_dim": 34},
        {"context": 41},
    ],
)
def test_no_width_has_to_be_a_multiple(
    small_shape: ModelShape, make_model: MakeModel, change: dict[str, int]
) -> None:
    shape = dataclasses.replace(small_shape, **change)
    require_accurate(shape, make_model(shape), [5, 0, 3])


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"hidden_size": 40, "intermediate_size": 100, "vocab_size": 333},
        {"hidden_size": 132, "intermediate_size": 70, "num_heads": 6, "num_kv_heads": 3},
    ],
)
def test_in_int8_it_computes_the_rounded_model(
    small_shape: ModelShape, make_model: MakeModel, change: dict[str, int], threads: int
) -> None:
    """To the accuracy of bf16, of which activations are; the rounding itself is in both."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        model = make_model(dataclasses.replace(small_shape, **change))
        round_to_int8(model)
        by = decoders(model, slots=6)
        by["int8"] = CachedDecoder(model, torch.bfloat16, slots=6)
        by["int8"].compute_in_int8(model)
        errors = {"torch": 0.0, "int8": 0.0}
        for slot in range(6):
            for decoder in by.values():
                decoder.extend(slot, [1 + slot, 2, 3])
        for step in range(6):
            chosen = [5, 3, 1, 0, 2, 4][: 6 - step]
            logits = {name: each.step(chosen, [7] * len(chosen)) for name, each in by.items()}
            for name in errors:
                errors[name] += float((logits[name] - logits["exact"]).square().mean())
        assert 0 < errors["int8"] <= 1.5 * errors["torch"]
    finally:
        torch.set_num_threads(before)


def test_in_int8_nan_stays_nan(small_shape: ModelShape, make_model: MakeModel) -> None:
    for part in ("down_proj", "up_proj"):
        model = make_model(small_shape)
        with torch.no_grad():
            getattr(next(model.model.blocks()).mlp, part).weight[0, 0] = torch.nan
        decoder = CachedDecoder(model, torch.bfloat16)
        decoder.compute_in_int8(model)
        assert decoder.step([0], [1]).isnan().all()


def test_a_full_context_is_the_last_that_is_computed(
    small_shape: ModelShape, make_model: MakeModel
) -> None:
    by = decoders(make_model(small_shape), slots=1)
    for decoder in by.values():
        decoder.extend(0, [1] * (small_shape.context - 1))
        logits = decoder.step([0], [2])
        assert logits.isfinite().all()
        with pytest.raises(AssertionError, match="context"):
            decoder.step([0], [2])


def test_it_is_bitwise_repeatable(small_shape: ModelShape, make_model: MakeModel) -> None:
    model, found = make_model(small_shape), []
    for _ in range(2):
        decoder = decoders(model, slots=3)["native"]
        for slot in range(3):
            decoder.extend(slot, [1, 2, 3])
        found.append(torch.stack([decoder.step([2, 0], [4, 5]) for _ in range(9)]))
    assert torch.equal(*found)


def test_nan_stays_nan(small_shape: ModelShape, make_model: MakeModel) -> None:
    model = make_model(small_shape)
    with torch.no_grad():
        next(model.model.blocks()).mlp.down_proj.weight.fill_(torch.nan)
    decoder = decoders(model, slots=1)["native"]
    assert decoder.step([0], [1]).isnan().all()


def test_what_does_not_fit_together_is_an_error(
    small_shape: ModelShape, make_model: MakeModel
) -> None:
    decoder = decoders(make_model(small_shape), slots=2)["native"]
    weights = decoder._native_weights
    assert weights is not None
    for slot in (-1, 2):
        with pytest.raises(IndexError):
            decoder._native_step(weights, torch.tensor([slot]), torch.tensor([0]), [1])
    wrong = NativeWeights([torch.zeros(3), *weights.tensors[1:]], [])
    with pytest.raises(RuntimeError, match="expected"):
        decoder._native_step(wrong, torch.tensor([0]), torch.tensor([0]), [1])
    too_few = NativeWeights(weights.tensors, [torch.zeros(1)])
    with pytest.raises(RuntimeError, match="scales"):
        decoder._native_step(too_few, torch.tensor([0]), torch.tensor([0]), [1])


def test_a_machine_without_its_instructions_says_so() -> None:
    facts = read_facts(tries_gpus=False)
    other = dataclasses.replace(facts, cpu=dataclasses.replace(facts.cpu, isa=()))
    assert "AVX512_BF16" in load_decode_step(other).reason
