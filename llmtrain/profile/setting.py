"""A setting: a value, and the origin that says which layer of settings it is from."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

CHOSEN = "chosen: "  # with why the origin of what the profile left open
INIT_FROM = "model.init_from "  # with the model's name the origin of what it determines
# How origins begin that the call itself set, or the model that it continues.
_DELIBERATE = ("--", "argument ", INIT_FROM)


@dataclass(frozen=True, slots=True)
class Setting:
    """A value and its origin."""

    value: Any
    origin: str


Layer = Mapping[str, Setting]


def layer_of(origin: str) -> int:
    """Return the number of the layer that an origin names; higher layers win."""
    if origin.startswith(_DELIBERATE):
        return 3
    if origin.startswith("environment "):
        return 2
    return 0 if origin == "default" else 1


def as_written(path: str, value: str, origin: str) -> str:
    """Return the setting in the syntax of its origin: flag, environment variable or YAML."""
    if origin.startswith("--set "):
        return f"--set {shlex.quote(f'{path}={value}')}"
    if origin.startswith("environment "):
        return f"{origin.removeprefix('environment ')}={shlex.quote(value)}"
    return f"{path.rpartition('.')[2]}: {value}"
