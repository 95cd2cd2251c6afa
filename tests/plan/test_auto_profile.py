"""The profile for a machine and a time."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from llmtrain.machine.facts import Facts
from llmtrain.plan import auto_profile
from llmtrain.plan.auto_profile import choose_profile, choose_tokens_per_step
from llmtrain.profile.load import load_profile
from llmtrain.profile.schema import DeviceSection
from llmtrain.profile.shape import shape_of
from llmtrain.recipe.model_size import best_for_time, expected_loss
from tests.machines import CPU, CUDA

SHAPES = {
    name: shape_of(load_profile(name, environment={}).profile.model)
    for name in ("cpu-tiny", "cpu-mini", "cpu-small", "cpu-medium")
}
# Model FLOP/s of whole steps.
TWO_CORES, SIXTEEN_CORES = 240e9, 3000e9


def rates_of(flops_per_s: float) -> Callable[[str], float]:
    return lambda name: flops_per_s / SHAPES[name].training_flops_per_token


def timed_at(flops_per_s: float) -> Callable[..., float]:
    """In place of timing the parts of a step."""
    return lambda _facts, _options, work, _announce: (
        flops_per_s / work.shape.training_flops_per_token
    )


@pytest.mark.parametrize(
    ("rate", "hours", "expected"),
    [
        (TWO_CORES, 0.05, "cpu-tiny"),
        (TWO_CORES, 1, "cpu-tiny"),
        (TWO_CORES, 12, "cpu-mini"),
        (TWO_CORES, 24 * 7, "cpu-small"),
        (SIXTEEN_CORES, 0.1, "cpu-tiny"),
        (SIXTEEN_CORES, 2, "cpu-mini"),
        (SIXTEEN_CORES, 24, "cpu-small"),
        (SIXTEEN_CORES, 24 * 60, "cpu-medium"),
    ],
)
def test_more_work_is_for_a_larger_model(rate: float, hours: float, expected: str) -> None:
    choice = best_for_time(SHAPES, 3600 * hours, rates_of(rate))
    assert choice.value == expected
    assert "expected" in choice.reason


def test_time_and_rate_count_alike() -> None:
    for factor in (10, 1000, 10**5):
        slow, fast = (
            best_for_time(SHAPES, 60 * factor, rates_of(1e11)),
            best_for_time(SHAPES, 60, rates_of(1e11 * factor)),
        )
        assert slow.value == fast.value


@pytest.mark.parametrize(
    ("parameters", "tokens", "measured"),
    [
        (3_443_904, 4_194_304, 1.207),
        (12_455_744, 6_291_456, 1.056),
        (20_454_784, 8_388_608, 0.987),
        (20_454_784, 50_003_968, 0.785),
        (26_162_560, 6_291_456, 1.030),
    ],
)
def test_the_fit_meets_what_it_was_fitted_to(parameters: int, tokens: int, measured: float) -> None:
    assert expected_loss(parameters, tokens) == pytest.approx(measured, rel=0.03)


def test_without_a_time_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto_profile, "eager_tokens_per_s", pytest.fail)
    assert choose_profile(CPU, DeviceSection(), None).value == "cpu-tiny"
    assert choose_profile(CUDA, DeviceSection(), 60.0).value == "gpu-small"
    assert choose_profile(CUDA, DeviceSection(force_cpu=True), None).value == "cpu-tiny"


def test_a_cpu_is_measured_for_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto_profile, "eager_tokens_per_s", timed_at(TWO_CORES))
    assert choose_profile(CPU, DeviceSection(), 60.0).value == "cpu-tiny"
    assert choose_profile(CPU, DeviceSection(), 86400.0).value == "cpu-mini"


@pytest.mark.parametrize(
    ("settings", "facts", "expected"),
    [
        (["train.tokens_per_step=12288"], CPU, 12288),
        (["train.tokens=1M"], CPU, 4096),
        (["train.tokens=34M"], CPU, 16384),
        (["train.tokens=34M"], CUDA, 16384),  # the same function everywhere
        (["train.steps=100"], CPU, 4096),
        (["train.steps=100"], CUDA, 65536),
    ],
)
def test_tokens_a_step_follow_from_the_tokens_in_all(
    settings: list[str], facts: Facts, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto_profile, "eager_tokens_per_s", pytest.fail)
    profile = load_profile("cpu-tiny", environment={}, assignments=settings).profile
    assert choose_tokens_per_step(profile, facts).value == expected


def test_under_a_time_they_follow_from_what_the_cpu_will_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(auto_profile, "eager_tokens_per_s", timed_at(TWO_CORES))

    def chosen(time: str, **more: bool) -> int:
        profile = load_profile("cpu-tiny", environment={}, assignments=[f"train.time={time}"])
        return choose_tokens_per_step(profile.profile, CPU, **more).value

    assert chosen("2m") == 4096
    assert chosen("8h") == 65536
    assert chosen("8h", measure=False) == 4096  # the facts of another machine


def test_a_model_that_does_not_fit_gets_the_rule_for_an_unknown_length(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Planning it refuses it, with what would fit instead."""
    monkeypatch.setattr(auto_profile, "eager_tokens_per_s", lambda *_: None)
    profile = load_profile("cpu-tiny", environment={}, assignments=["train.time=8h"]).profile
    assert choose_tokens_per_step(profile, CPU).value == 4096
    assert choose_profile(CPU, DeviceSection(), 3600.0).value == "cpu-tiny"
