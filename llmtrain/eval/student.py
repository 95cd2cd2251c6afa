"""Student's t quantile at 97.5%, for 95% intervals of means of few values."""

from __future__ import annotations

# Of 1 to 4 degrees of freedom, where the expansion is too low by more than 1%.
_FEW = (12.7062, 4.3027, 3.1824, 2.7764)
_NORMAL = 1.959964


def student_quantile(degrees: float) -> float:
    """Return the quantile, by an expansion from the normal one (Abramowitz and Stegun 26.7.5)."""
    if degrees < len(_FEW) + 1:
        return _FEW[max(1, int(degrees)) - 1]
    z = _NORMAL
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return z + first / degrees + second / degrees**2
