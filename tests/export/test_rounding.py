"""What the rounding of a reader does to a model's products."""

from __future__ import annotations

import pytest
import torch

from llmtrain.export.encoding import Encoding
from llmtrain.export.rounding import rounded_inputs
from tests.export.conftest import model_of

IDS = torch.arange(24)[None]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("encoding", ["f16", "bf16", "q8_0", "q4_0"])
def test_coarser_numbers_change_more_and_only_inside(encoding: Encoding, tied: bool) -> None:
    model = model_of(512, tie_embeddings=tied)
    with torch.inference_mode():
        before = model.logits(IDS)
        with rounded_inputs(model, encoding):
            rounded = model.logits(IDS)
        after = model.logits(IDS)
        with rounded_inputs(model, "f16"):
            finest = model.logits(IDS)

    assert torch.equal(before, after)
    assert 0 < (finest - before).abs().mean() <= (rounded - before).abs().mean()


def test_fp32_is_not_rounded() -> None:
    model = model_of(512)
    with torch.inference_mode(), rounded_inputs(model, "f32"):
        rounded = model.logits(IDS)
    with torch.inference_mode():
        assert torch.equal(rounded, model.logits(IDS))


def test_eight_bits_are_those_of_ggml() -> None:
    gguf = pytest.importorskip("gguf")
    kind = gguf.GGMLQuantizationType.Q8_0
    model = model_of(512)
    linear = model.model.layers[0].mlp.down_proj
    values = torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
    seen: list[torch.Tensor] = []
    with torch.inference_mode(), rounded_inputs(model, "q8_0"):
        linear.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        linear(values)

    expected = torch.from_numpy(gguf.dequantize(gguf.quantize(values.numpy(), kind), kind))
    is_equal = (seen[0] - expected).abs() < 1e-6
    assert is_equal.float().mean() > 0.99  # the scale's own rounding moves a few by a step
