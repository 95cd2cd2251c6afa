"""Which model a time is best spent on.

Without a profile, on a CPU with a time, it is the shipped one whose expected loss at its end is
lowest:

    tokens = 0.55 · FLOP/s of the measured products · time / FLOPs a token
    loss   = 0.30 + 0.189 · (N / 10M)^-0.34 + 0.519 · (D / 10M)^-0.28    bits/byte

of N parameters and D tokens. The exponents are those of Hoffmann et al. 2022 ("Training
Compute-Optimal Large Language Models", approach 3); the rest is fitted to 24 trainings of 3M to
27M parameters on 3M to 50M tokens of Python (`tests/benchmarks/sweeps`), which it meets within
1.3%, root mean square.
"""

from __future__ import annotations

from llmtrain.choice import Choice
from llmtrain.profile.shape import ModelShape
from llmtrain.units import format_count, format_duration

UTILISATION = 0.55  # of the products' rate, over a whole run with its compiling and evaluation


def best_for_time(shapes: dict[str, ModelShape], time_s: float, flops_per_s: float) -> Choice[str]:
    """The shape with the lowest expected loss after `time_s` on a CPU of that rate."""
    tokens = {name: expected_tokens(shape, time_s, flops_per_s) for name, shape in shapes.items()}
    losses = {name: expected_loss(shapes[name].parameters, tokens[name]) for name in shapes}
    best = min(losses, key=losses.__getitem__)
    return Choice(
        best,
        f"the least loss is expected of it: {format_count(shapes[best].parameters)} parameters on "
        f"about {format_count(round(tokens[best]))} tokens in {format_duration(time_s)}",
    )


def expected_tokens(shape: ModelShape, time_s: float, flops_per_s: float) -> float:
    """How many tokens a CPU of that rate trains `shape` on."""
    return UTILISATION * flops_per_s * time_s / shape.training_flops_per_token


def expected_loss(parameters: int, tokens: float) -> float:
    """Bits a byte, by the fit that the module names."""
    by_size: float = 0.189 * (parameters / 1e7) ** -0.34
    by_tokens: float = 0.519 * (max(1.0, tokens) / 1e7) ** -0.28
    return 0.30 + by_size + by_tokens
