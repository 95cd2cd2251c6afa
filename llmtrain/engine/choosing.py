"""Which shipped profile a machine should train, where none is named.

On a CPU with a time, the one whose expected loss at its end is lowest:

    tokens = 0.6 · FLOP/s of the measured products · time / FLOPs a token
    loss   = 1.69 + 406.4 / N^0.34 + 410.7 / D^0.28

of N parameters and D tokens (Hoffmann et al. 2022, "Training Compute-Optimal Large Language
Models", approach 3). Fitted on larger models and other text, it is asked only which is less.
"""

from __future__ import annotations

from llmtrain.device.choice import Choice
from llmtrain.device.decisions import choose_device
from llmtrain.device.decisions import threads as decide_threads
from llmtrain.device.facts import Facts
from llmtrain.engine.measuring import measured_products
from llmtrain.profile.load import load_profile
from llmtrain.profile.schema import DeviceSection
from llmtrain.profile.shape import ModelShape, shape_of
from llmtrain.units import format_count, format_duration

_CPU_PROFILES = ("cpu-tiny", "cpu-small", "cpu-medium")
_UTILISATION = 0.6  # of the products' rate, over a whole run with its compiling and evaluation


def choose_profile(facts: Facts, wishes: DeviceSection, time_s: float | None) -> Choice[str]:
    """The profile for the device that will train, and the time there is. Raises UsageError."""
    device = choose_device(facts, wishes).value
    if device == "cuda":
        return Choice("gpu-small", "a CUDA GPU is here")
    if device == "mps":
        return Choice("mps-small", "an Apple GPU is here")
    if time_s is None:
        return Choice("cpu-tiny", "a CPU: done in minutes")
    shapes = {
        name: shape_of(load_profile(name, environment={}).profile.model) for name in _CPU_PROFILES
    }
    threads = decide_threads(facts, wishes, 1).value
    flops_per_s = measured_products(facts, shapes["cpu-tiny"], threads).fastest_flops_per_s
    return best_for_time(shapes, time_s, flops_per_s)


def best_for_time(shapes: dict[str, ModelShape], time_s: float, flops_per_s: float) -> Choice[str]:
    """The shape with the lowest expected loss after `time_s` on a CPU of that rate."""
    tokens = {
        name: _UTILISATION * flops_per_s * time_s / shape.training_flops_per_token
        for name, shape in shapes.items()
    }
    losses = {name: expected_loss(shapes[name].parameters, tokens[name]) for name in shapes}
    best = min(losses, key=losses.__getitem__)
    return Choice(
        best,
        f"the least loss is expected of it: {format_count(shapes[best].parameters)} parameters on "
        f"about {format_count(round(tokens[best]))} tokens in {format_duration(time_s)}",
    )


def expected_loss(parameters: int, tokens: float) -> float:
    """Nats a token, by the fit that the module names."""
    by_size: float = 406.4 / parameters**0.34
    by_tokens: float = 410.7 / max(1.0, tokens) ** 0.28
    return 1.69 + by_size + by_tokens
