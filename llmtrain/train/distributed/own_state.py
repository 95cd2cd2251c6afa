"""The names of what each rank has for itself, in a checkpoint of rounds of local steps."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

OWN = "own"  # its weights, where they are not those that all agreed on
_RANK = "rank"


def own_name(rank: int, name: str) -> str:
    """Return the name under which a rank's own state of an optimizer is saved."""
    return f"{_RANK}{rank}.{name}"


def own_state(saved: Mapping[str, Tensor], rank: int, ranks: int) -> dict[str, Tensor]:
    """Return the optimizer's state of a rank from what all saved, under ordinary names.

    At the number of ranks that saved it is the rank's own; at another the mean over those.
    """
    by_rank: dict[int, dict[str, Tensor]] = {}
    for key, tensor in saved.items():
        prefix, _, name = key.partition(".")
        number = prefix.removeprefix(_RANK)
        if number != prefix and number.isdecimal() and not name.startswith(f"{OWN}."):
            by_rank.setdefault(int(number), {})[name] = tensor
    if len(by_rank) == ranks and rank in by_rank:
        return by_rank[rank]
    names = set[str]().union(*by_rank.values())
    return {
        name: torch.stack([state[name] for state in by_rank.values() if name in state]).mean(0)
        for name in sorted(names)
    }
