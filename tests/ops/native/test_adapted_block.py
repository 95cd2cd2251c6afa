"""A block with adapters by native kernels: torch's function and gradients, and repeatable."""

from __future__ import annotations

from statistics import fmean

import pytest
import torch

from llmtrain.model.decoder import Decoder
from llmtrain.model.lora import add_adapters
from llmtrain.ops.precision import WeightCasts, autocast_as
from llmtrain.profile.lora_shape import TARGETS, LoraShape
from llmtrain.profile.schema import ModelSection
from tests.ops.native.test_block import (
    LARGEST_ERROR,
    OF_TORCH,
    SECTIONS,
    error,
    gradients,
    made,
    text,
)

pytestmark = pytest.mark.usefixtures("native_kernels")

EVERY = LoraShape(5, 2.0, tuple(TARGETS))
OF_ONE_TENSOR = 1.5  # times torch's error: an adapter has few numbers, whose mean varies
SOME = LoraShape(16, 16.0, ("k_proj", "gate_proj", "down_proj"))


def adapted(
    section: ModelSection, lora: LoraShape, matrices: torch.dtype, others: torch.dtype
) -> Decoder:
    """Return a model with adapters that matter, whose own matrices are those of bf16."""
    model = made(section)
    model.requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data = parameter.data.to(torch.bfloat16)
    generator = torch.Generator().manual_seed(2)
    for block in model.model.blocks():
        add_adapters(block, lora)
    for parameter in model.parameters():
        if parameter.requires_grad:
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.data = (drawn / parameter.shape[-1] ** 0.5).to(torch.bfloat16)
        is_matrix = parameter.dim() == 2 and not parameter.requires_grad
        parameter.data = parameter.data.to(matrices if is_matrix else others)
    return model


def native(section: ModelSection, lora: LoraShape, **how: object) -> Decoder:
    model = adapted(section, lora, torch.bfloat16, torch.float32)
    model.compute_with(attention="native", block_kernels="native", **how)  # type: ignore[arg-type]
    return model


@pytest.mark.parametrize("lora", [EVERY, SOME])
@pytest.mark.parametrize("section", SECTIONS)
@pytest.mark.parametrize("separator", [None, 7])
def test_gradients_are_as_accurate_as_those_of_torchs_kernels(
    section: ModelSection, lora: LoraShape, separator: int | None
) -> None:
    models = (
        adapted(section, lora, torch.float64, torch.float64),
        adapted(section, lora, torch.bfloat16, torch.float32),
        native(section, lora),
    )
    for model in models:
        model.separator_id = separator
    exact = gradients(models[0], section, "fp64")
    by_torch, found = (gradients(model, section, "bf16") for model in models[1:])
    assert found.keys() == exact.keys()
    assert any("lora_A" in name for name in exact)
    for name in exact:
        largest = max(LARGEST_ERROR, error(by_torch, exact, name))
        assert error(found, exact, name) <= OF_ONE_TENSOR * largest, name
    ours, torchs = (fmean(error(each, exact, name) for name in exact) for each in (found, by_torch))
    assert ours <= OF_TORCH * torchs


def test_a_step_is_bitwise_repeatable_however_it_is_kept() -> None:
    section = SECTIONS[0]
    first = gradients(native(section, EVERY), section, "bf16")
    for how in ({}, {"casts": WeightCasts(torch.bfloat16)}, {"checkpointing": "full"}):
        again = gradients(native(section, EVERY, **how), section, "bf16")
        assert all(torch.equal(first[name], again[name]) for name in first), how


def test_an_evaluation_computes_the_training_loss() -> None:
    section = SECTIONS[0]
    model = native(section, EVERY, casts=WeightCasts(torch.bfloat16))
    trained = gradients(model, section, "bf16")["loss"]
    with torch.no_grad(), autocast_as("bf16", torch.device("cpu")):
        tokens, targets = text(section)
        evaluated = model(tokens, targets) / targets.numel()
    torch.testing.assert_close(evaluated, trained, rtol=1e-5, atol=0)
