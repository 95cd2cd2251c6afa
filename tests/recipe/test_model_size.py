"""Rule 1 has exact numbers, and prefers larger models for longer times."""

from __future__ import annotations

import pytest

from llmtrain.profile.load import load_profile
from llmtrain.profile.shape import ModelShape, shape_of
from llmtrain.recipe.model_size import best_for_time, expected_loss


def shape(name: str) -> ModelShape:
    return shape_of(load_profile(name, environment={}).profile.model)


@pytest.mark.parametrize(
    ("parameters", "tokens", "expected"),
    [(10**7, 1e7, 1.008), (3 * 10**6, 3e6, 1.31167), (27 * 10**6, 5e7, 0.76555)],
)
def test_the_loss_has_the_fitted_numbers(parameters: int, tokens: float, expected: float) -> None:
    assert expected_loss(parameters, tokens) == pytest.approx(expected, abs=1e-5)


SHAPES = {name: shape(name) for name in ("cpu-tiny", "cpu-mini", "cpu-small", "cpu-medium")}


class Rates:
    """Rates of a machine of `flops_per_s`, which remembers the names that it was asked for."""

    def __init__(self, flops_per_s: float, largest: str = "cpu-medium") -> None:
        self.flops_per_s, self.largest = flops_per_s, largest
        self.asked: list[str] = []

    def __call__(self, name: str) -> float | None:
        self.asked.append(name)
        if SHAPES[name].parameters > SHAPES[self.largest].parameters:
            return None
        return self.flops_per_s / SHAPES[name].training_flops_per_token


def test_a_longer_time_gets_a_larger_model() -> None:
    times_s = (60, 3600, 48 * 3600, 30 * 86400)
    chosen = [best_for_time(SHAPES, time_s, Rates(0.55e11)) for time_s in times_s]
    sizes = [SHAPES[choice.value].parameters for choice in chosen]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]
    assert chosen[0].reason.startswith("lowest expected loss: 3.44M parameters on about 147k")


def test_who_has_little_time_waits_for_no_measurement_of_large_models() -> None:
    rates = Rates(1e11)
    assert best_for_time(SHAPES, 60, rates).value == "cpu-tiny"
    assert rates.asked == ["cpu-tiny", "cpu-mini"]


def test_a_model_that_does_not_fit_is_not_chosen() -> None:
    assert best_for_time(SHAPES, 1e8, Rates(1e11)).value == "cpu-medium"
    assert best_for_time(SHAPES, 1e8, Rates(1e11, largest="cpu-mini")).value == "cpu-mini"
    none = {name: SHAPES[name] for name in ("cpu-small", "cpu-medium")}
    assert best_for_time(none, 1e8, Rates(1e11, largest="cpu-mini")).value == "cpu-small"
