from __future__ import annotations

import pytest

from llmtrain.eval.student import student_quantile


@pytest.mark.parametrize(
    ("degrees", "expected"),  # tables of Student's t at 0.975
    [(1, 12.706), (2, 4.303), (4, 2.776), (5, 2.571), (10, 2.228), (30, 2.042), (1e9, 1.960)],
)
def test_quantiles_are_those_of_tables(degrees: float, expected: float) -> None:
    assert student_quantile(degrees) == pytest.approx(expected, rel=0.011)
