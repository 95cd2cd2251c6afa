"""Learning rates are the profile's, or follow the rules."""

from __future__ import annotations

import pytest

from llmtrain.profile.schema import OptimSection
from llmtrain.recipe.learning_rate import Role, adamw_rate, muon_rate, peak_learning_rates

ROLES: tuple[Role, ...] = ("matrix", "gain", "embedding", "head")


def test_what_is_named_is_taken() -> None:
    section = OptimSection(
        name="muon", learning_rate=0.5, embedding_learning_rate=0.25, head_learning_rate=0.125
    )
    found = peak_learning_rates(section, 384, 8192)
    assert found == {"matrix": 0.5, "gain": 0.25, "embedding": 0.25, "head": 0.125}


def test_under_adamw_one_rate_is_everybodys() -> None:
    section = OptimSection(name="adamw", learning_rate=7e-3)
    assert peak_learning_rates(section, 5000, 8192) == dict.fromkeys(ROLES, 7e-3)
    auto = peak_learning_rates(OptimSection(name="adamw"), 384, 8192)
    assert auto == dict.fromkeys(ROLES, adamw_rate(8192, 384))


def test_muons_rate_is_not_that_of_what_adamw_steps() -> None:
    section = OptimSection(name="muon", learning_rate=7e-2)
    others = adamw_rate(4096, 100)
    assert peak_learning_rates(section, 100, 4096) == {
        "matrix": 7e-2,
        "gain": others,
        "embedding": others,
        "head": others,
    }


@pytest.mark.parametrize(
    ("tokens_per_step", "expected"),
    [(2048, 0.0057), (4096, 0.0087), (8192, 0.0132), (16384, 0.02), (65536, 0.03), (2**20, 0.03)],
)
def test_muons_rate_rises_with_the_step(tokens_per_step: int, expected: float) -> None:
    assert muon_rate(tokens_per_step) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
    ("tokens_per_step", "width", "expected"),
    [
        (8192, 384, 4e-3),
        (2048, 384, 1.74e-3),
        (8192, 768, 2.64e-3),
        (2**19, 384, 6e-3),
        (8192, 64, 8e-3),
    ],
)
def test_adamws_rate_falls_with_the_width(
    tokens_per_step: int, width: int, expected: float
) -> None:
    assert adamw_rate(tokens_per_step, width) == pytest.approx(expected, rel=0.01)
