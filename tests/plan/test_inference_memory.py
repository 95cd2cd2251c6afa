"""Using a model takes its weights, and what a text needs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from llmtrain.generate.cached_decoder import CachedDecoder
from llmtrain.model.decoder import Decoder
from llmtrain.plan.inference_memory import predict_evaluation, predict_generation
from llmtrain.plan.memory import MemoryPrediction
from llmtrain.profile.schema import ModelSection
from llmtrain.profile.shape import ModelShape, shape_of

MIB = 2**20
Predict = Callable[..., MemoryPrediction]


def shape(context: int = 512) -> ModelShape:
    return shape_of(
        ModelSection(vocab_size=8192, hidden_size=384, num_layers=5, num_heads=3, context=context)
    )


def test_keys_and_values_are_those_of_the_models_own_caches() -> None:
    small = shape(context=64)
    decoder = CachedDecoder(Decoder(small), torch.float32)
    held = decoder._k_lsgtd.nbytes + decoder._v_lsgtd.nbytes
    assert predict_generation(small, "cpu", half_precision=False).caches_bytes == held


@pytest.mark.parametrize("predict", [predict_evaluation, predict_generation])
def test_weights_are_held_once_in_fp32_and_once_in_half_precision(predict: Predict) -> None:
    full, half = (predict(shape(), "cpu", half_precision=is_half) for is_half in (False, True))
    assert full.parameters_bytes == half.parameters_bytes == 4 * shape().parameters
    assert full.weight_casts_bytes == 0
    matrices = 2 * 5 * shape().block_matrix_parameters
    assert half.weight_casts_bytes >= matrices


def test_a_longer_context_takes_more_to_generate_in() -> None:
    short, long = (predict_generation(shape(n), "cpu", half_precision=True) for n in (512, 4096))
    assert long.caches_bytes == 8 * short.caches_bytes
    assert long.total_bytes > short.total_bytes


@pytest.mark.parametrize(
    ("predict", "measured_bytes"),
    [
        # 530 MiB on 40 kB of text; on a large one the compressor takes 75 more.
        (predict_evaluation, (530 + 75) * MIB),
        (predict_generation, 356 * MIB),
    ],
)
def test_cpu_mini_is_within_5_percent_of_what_was_measured(
    predict: Predict, measured_bytes: int
) -> None:
    """The peak resident size of `llmtrain eval` and `generate` on two cores with bf16."""
    predicted = predict(shape(), "cpu", half_precision=True).total_bytes
    assert predicted == pytest.approx(measured_bytes, rel=0.05)
