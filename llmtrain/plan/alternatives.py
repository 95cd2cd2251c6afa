"""Suggest changes that make a run fit into memory, the cheapest first.

Each change is tried by planning the changed profile and predicting its memory: nothing is trained.
First come settings that train the same model, then the optimizer, a shorter context, fewer layers,
and last another profile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from llmtrain.errors import Alternative, DoesNotFitError, UsageError
from llmtrain.profile.load import load_profile, profile_from_values, shipped_profiles
from llmtrain.profile.schema import Profile
from llmtrain.profile.shape import shape_of
from llmtrain.units import format_bytes, format_count

_MOST = 3
_SHORTEST_CONTEXT, _FEWEST_LAYERS = 64, 2

PredictedBytes = Callable[[Profile], int]  # raises DoesNotFitError, and UsageError


@dataclass(frozen=True, slots=True)
class _Change:
    """Other values of a profile, and what they cost."""

    values: dict[str, Any]
    cost: str


def alternatives(profile: Profile, predicted_bytes: PredictedBytes) -> list[Alternative]:
    """Return at most three changes that fit, each with the memory that it needs."""
    found: list[Alternative] = []
    for attempts in _changes(profile):
        alternative = _first_that_fits(profile, attempts, predicted_bytes)
        if alternative is not None:
            found.append(alternative)
        if len(found) == _MOST:
            return found
    if profile.model.init_from is not None:
        return found  # whose shape no profile changes
    return [*found, *_smaller_profile(profile, predicted_bytes)]


def _changes(profile: Profile) -> Iterator[list[_Change]]:
    """Yield kinds of changes, the cheapest first; of each kind the smallest first."""
    if profile.train.micro_batch != "auto":
        same = "the same training in smaller parts"
        yield [_Change({"train.micro_batch": "auto"}, same)]
    if profile.device.activation_checkpointing != "auto":
        recompute = "activations that do not fit are recomputed"
        yield [_Change({"device.activation_checkpointing": "auto"}, recompute)]
    if profile.device.sharding == "replicate" and profile.device.processes != 1:
        yield [_Change({"device.sharding": "auto"}, "each process has a part of the model")]
    if profile.device.sharding == "hybrid":
        yield [_Change({"device.sharding": "auto"}, "one replica over all machines")]
    if profile.device.processes not in ("auto", 1):
        yield [_Change({"device.processes": 1}, "one process instead of several")]
    if profile.device.precision == "fp32":
        yield [_Change({"device.precision": "auto"}, "the fastest precision of this machine")]
    if profile.optim.name == "adamw":
        yield [_Change({"optim.name": "muon"}, "less optimizer state")]
    model = profile.model
    lengths = _halves(model.context, _SHORTEST_CONTEXT)
    yield [_Change({"model.context": n}, f"{n} tokens of context") for n in lengths]
    if model.init_from is not None:
        return
    layers = _halves(model.num_layers, _FEWEST_LAYERS)
    yield [_Change({"model.num_layers": n}, f"{n} layers: a smaller model") for n in layers]


def _halves(value: int, least: int) -> Iterator[int]:
    while value // 2 >= least:
        value //= 2
        yield value


def _first_that_fits(
    profile: Profile, attempts: list[_Change], predicted_bytes: PredictedBytes
) -> Alternative | None:
    for change in attempts:
        try:
            needed = predicted_bytes(_changed(profile, change.values))
        except (DoesNotFitError, UsageError):
            continue
        options = [f"--set={name}={value}" for name, value in change.values.items()]
        return Alternative(tuple(options), f"{format_bytes(needed)}: {change.cost}", needed)
    return None


def _changed(profile: Profile, values: dict[str, Any]) -> Profile:
    document = profile.model_dump(mode="json")
    for path, value in values.items():
        section, _, name = path.partition(".")
        document[section][name] = value
    return profile_from_values(document, "a change")


def _smaller_profile(profile: Profile, predicted_bytes: PredictedBytes) -> Iterator[Alternative]:
    """Yield the largest smaller shipped profile that fits, of the same family if one does."""
    wanted, family = shape_of(profile.model).parameters, profile.name.partition("-")[0]
    sizes = {}
    for name in shipped_profiles():
        other = load_profile(name, environment={}).profile
        if other.data.rows != profile.data.rows:
            continue  # for fine-tuning, with the shape of another model
        sizes[name] = (name.startswith(family), shape_of(other.model).parameters, other)
    smaller = [entry for entry in sizes.items() if entry[1][1] < wanted]
    for name, (_, parameters, other) in sorted(smaller, key=lambda e: e[1][:2], reverse=True):
        try:
            needed = predicted_bytes(other.model_copy(update={"device": profile.device}))
        except (DoesNotFitError, UsageError):
            continue
        yield Alternative(
            (f"--profile={name}",),
            f"{format_bytes(needed)}: {format_count(parameters)} parameters",
            needed,
            in_place_of=frozenset(("--profile", "-p", "--set")),
        )
        return
