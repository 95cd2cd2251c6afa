"""Learning rates are the profile's, or follow the rules."""

from __future__ import annotations

import pytest

from llmtrain.profile.schema import OptimSection
from llmtrain.train.rates import ADAMW_RATE, MUON_RATE, Role, peak_learning_rates

ROLES: tuple[Role, ...] = ("matrix", "gain", "embedding", "head")


def test_what_is_named_is_taken() -> None:
    section = OptimSection(
        name="muon", learning_rate=0.5, embedding_learning_rate=0.25, head_learning_rate=0.125
    )
    found = peak_learning_rates(section, 384)
    assert found == {"matrix": 0.5, "gain": 0.25, "embedding": 0.25, "head": 0.125}


def test_under_adamw_one_rate_is_everybodys() -> None:
    found = peak_learning_rates(OptimSection(name="adamw", learning_rate=7e-3), 5000)
    assert found == dict.fromkeys(ROLES, 7e-3)


def test_muons_rate_is_not_that_of_what_adamw_steps() -> None:
    section = OptimSection(name="muon", learning_rate=7e-2)
    assert peak_learning_rates(section, 100) == {
        "matrix": 7e-2,
        "gain": ADAMW_RATE,
        "embedding": ADAMW_RATE,
        "head": ADAMW_RATE,
    }


@pytest.mark.parametrize(("width", "factor"), [(64, 1.0), (384, 1.0), (1536, 0.5), (6144, 0.25)])
def test_only_adamws_rate_falls_with_the_width(width: int, factor: float) -> None:
    muon = peak_learning_rates(OptimSection(name="muon"), width)
    adamw = peak_learning_rates(OptimSection(name="adamw"), width)
    assert muon["matrix"] == MUON_RATE
    assert muon["embedding"] == pytest.approx(factor * ADAMW_RATE)
    assert set(adamw.values()) == {muon["embedding"]}
