"""What a run is where its profile leaves it open: which profile, and how long a step.

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

from dataclasses import replace

from llmtrain.device.choice import Choice
from llmtrain.device.decisions import choose_device
from llmtrain.device.decisions import threads as decide_threads
from llmtrain.device.facts import Facts
from llmtrain.engine.measuring import measured_products
from llmtrain.profile.load import LoadedProfile, load_profile
from llmtrain.profile.schema import DeviceSection, Profile
from llmtrain.profile.shape import ModelShape, shape_of
from llmtrain.train.step_length import best_tokens_per_step
from llmtrain.units import format_count, format_duration

_CPU_PROFILES = ("cpu-tiny", "cpu-mini", "cpu-small", "cpu-medium")
UTILISATION = 0.55  # of the products' rate, over a whole run with its compiling and evaluation
_ACCELERATOR_TOKENS_PER_STEP = 65_536  # what keeps a GPU busy; what it will do is not measured


def choose_profile(
    facts: Facts, wishes: DeviceSection, time_s: float | None, *, measure: bool = True
) -> Choice[str]:
    """The profile for the device that will train, and the time there is.

    `measure`: whether the facts are of this machine, and it may be timed. Raises UsageError.
    """
    device = choose_device(facts, wishes).value
    if device == "cuda":
        return Choice("gpu-small", "a CUDA GPU is here")
    if device == "mps":
        return Choice("mps-small", "an Apple GPU is here")
    if time_s is None:
        return Choice("cpu-tiny", "a CPU: done in minutes")
    if not measure:
        return Choice("cpu-tiny", "a CPU whose speed is not known: the smallest")
    shapes = {
        name: shape_of(load_profile(name, environment={}).profile.model) for name in _CPU_PROFILES
    }
    return best_for_time(shapes, time_s, _flops_per_s(facts, wishes, shapes["cpu-tiny"]))


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


def choose_tokens_per_step(profile: Profile, facts: Facts, *, measure: bool = True) -> Choice[int]:
    """The profile's number, or the rule's for as many tokens as the run is expected to have.

    `measure`: whether the facts are of this machine, and it may be timed. Raises UsageError.
    """
    train, shape = profile.train, shape_of(profile.model)
    if train.tokens_per_step != "auto":
        return Choice(train.tokens_per_step, "asked for")
    tokens: float | None = train.tokens
    if tokens is None and choose_device(facts, profile.device).value != "cpu":
        number = max(1, _ACCELERATOR_TOKENS_PER_STEP // shape.context) * shape.context
        return Choice(number, "keeps a GPU busy")
    if train.time is not None and measure:
        flops_per_s = _flops_per_s(facts, profile.device, shape)
        tokens = expected_tokens(shape, train.time, flops_per_s)
    number = best_tokens_per_step(shape, tokens, uses_muon=profile.optim.name == "muon")
    if tokens is None:
        return Choice(number, "long enough for the optimizer to cost little")
    return Choice(number, f"for about {format_count(round(tokens))} tokens in all")


def with_chosen_step(loaded: LoadedProfile, choice: Choice[int]) -> LoadedProfile:
    """The profile with a number of tokens a step, and where it comes from."""
    if loaded.profile.train.tokens_per_step != "auto":
        return loaded
    train = loaded.profile.train.model_copy(update={"tokens_per_step": choice.value})
    profile = loaded.profile.model_copy(update={"train": train})
    origins = {**loaded.origins, "train.tokens_per_step": f"chosen: {choice.reason}"}
    return replace(loaded, profile=profile, origins=origins)


def _flops_per_s(facts: Facts, wishes: DeviceSection, shape: ModelShape) -> float:
    threads = decide_threads(facts, wishes, 1).value
    return measured_products(facts, shape, threads).fastest_flops_per_s
