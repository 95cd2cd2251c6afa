"""Rule 1: the model with the lowest expected loss after a given time on a CPU.

1.1 A CPU trains on

        D = rate · time

    tokens, where the rate is computed from the parts of a step, each timed on this machine.
1.2 A model of N parameters that was trained on D tokens is expected to reach

        loss = 0.30 + 0.189 · (N / 10M)^-0.34 + 0.519 · (D / 10M)^-0.28    bits per byte.

    The exponents are those of Hoffmann et al. 2022 ("Training Compute-Optimal Large Language
    Models", approach 3). The rest is fitted to 24 trainings of 3M to 27M parameters on 3M to 50M
    tokens of Python (`tests/benchmarks/sweeps`), with an error of 1.3% (root mean square).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from llmtrain.choice import Choice
from llmtrain.profile.shape import ModelShape
from llmtrain.units import format_count, format_duration

TokensPerS = Callable[[str], float | None]


def best_for_time(
    shapes: Mapping[str, ModelShape], time_s: float, tokens_per_s: TokensPerS
) -> Choice[str]:
    """Return the name of the shape with the lowest expected loss after `time_s`.

    `shapes` are in the order of their size. `tokens_per_s` returns the rate of the one named, and
    None if it does not fit the memory; larger ones than the first that is no better are not asked
    for, because asking may take seconds. The first is the choice if none fits.
    """
    best = next(iter(shapes))
    best_tokens, best_loss = 0.0, float("inf")
    for name, shape in shapes.items():
        rate = tokens_per_s(name)
        if rate is None:
            break
        tokens = rate * time_s
        loss = expected_loss(shape.parameters, tokens)
        if loss >= best_loss:
            break
        best, best_tokens, best_loss = name, tokens, loss
    parameters = format_count(shapes[best].parameters)
    if not best_tokens:
        return Choice(best, f"the smallest: {parameters} parameters")
    return Choice(
        best,
        f"lowest expected loss: {parameters} parameters on about "
        f"{format_count(round(best_tokens))} tokens in {format_duration(time_s)}",
    )


def expected_loss(parameters: int, tokens: float) -> float:
    """Return the loss in bits per byte by rule 1.2."""
    by_size: float = 0.189 * (parameters / 1e7) ** -0.34
    by_tokens: float = 0.519 * (max(1.0, tokens) / 1e7) ** -0.28
    return 0.30 + by_size + by_tokens
