"""The step that is faster here computes."""

from collections.abc import Callable

import pytest
import torch

from llmtrain.generate import step_choice
from llmtrain.generate.cached_decoder import CachedDecoder
from llmtrain.generate.step_choice import choose_step
from llmtrain.model.decoder import Decoder
from llmtrain.profile.shape import ModelShape

MakeModel = Callable[[ModelShape], Decoder]


@pytest.mark.parametrize(("native_s", "is_native"), [(0.001, True), (0.003, False)])
def test_the_faster_one_is_used(
    small_shape: ModelShape,
    make_model: MakeModel,
    monkeypatch: pytest.MonkeyPatch,
    native_s: float,
    is_native: bool,
) -> None:
    times = iter((0.002, native_s))
    monkeypatch.setattr(step_choice, "_fastest_step_s", lambda decoder: next(times))
    decoder = CachedDecoder(make_model(small_shape), torch.bfloat16)
    chosen = choose_step(decoder)
    assert chosen.value == is_native == (decoder._native_weights is not None)
    assert f"{1e3 * native_s:.1f} ms a token against torch's 2.0" in chosen.reason


def test_timing_leaves_the_cache_empty(small_shape: ModelShape, make_model: MakeModel) -> None:
    decoder = CachedDecoder(make_model(small_shape), torch.bfloat16)
    assert step_choice._fastest_step_s(decoder) > 0
    assert decoder.length(0) == 0
