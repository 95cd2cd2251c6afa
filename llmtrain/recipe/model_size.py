"""Rule 1: the model with the lowest expected loss after a given time on a CPU.

1.1 A CPU trains on

        D = 0.55 · FLOP/s · time / FLOPs per token

    tokens, where FLOP/s is the measured rate of the model's matrix products. 0.55 is their share
    of a whole run, which also compiles, evaluates and saves.
1.2 A model of N parameters that was trained on D tokens is expected to reach

        loss = 0.30 + 0.189 · (N / 10M)^-0.34 + 0.519 · (D / 10M)^-0.28    bits per byte.

    The exponents are those of Hoffmann et al. 2022 ("Training Compute-Optimal Large Language
    Models", approach 3). The rest is fitted to 24 trainings of 3M to 27M parameters on 3M to 50M
    tokens of Python (`tests/benchmarks/sweeps`), with an error of 1.3% (root mean square).
"""

from __future__ import annotations

from llmtrain.choice import Choice
from llmtrain.profile.shape import ModelShape
from llmtrain.units import format_count, format_duration

UTILISATION = 0.55  # of the products' rate, over a whole run


def best_for_time(shapes: dict[str, ModelShape], time_s: float, flops_per_s: float) -> Choice[str]:
    """Return the name of the shape with the lowest expected loss after `time_s`."""
    tokens = {name: expected_tokens(shape, time_s, flops_per_s) for name, shape in shapes.items()}
    losses = {name: expected_loss(shapes[name].parameters, tokens[name]) for name in shapes}
    best = min(losses, key=losses.__getitem__)
    return Choice(
        best,
        f"lowest expected loss: {format_count(shapes[best].parameters)} parameters on about "
        f"{format_count(round(tokens[best]))} tokens in {format_duration(time_s)}",
    )


def expected_tokens(shape: ModelShape, time_s: float, flops_per_s: float) -> float:
    """Return D by rule 1.1."""
    return UTILISATION * flops_per_s * time_s / shape.training_flops_per_token


def expected_loss(parameters: int, tokens: float) -> float:
    """Return the loss in bits per byte by rule 1.2."""
    by_size: float = 0.189 * (parameters / 1e7) ** -0.34
    by_tokens: float = 0.519 * (max(1.0, tokens) / 1e7) ** -0.28
    return 0.30 + by_size + by_tokens
