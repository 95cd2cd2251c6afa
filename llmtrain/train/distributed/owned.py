"""Bring whole tensors of a sharded model to their owners, so that each rank can save its part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest

import torch
from torch import Tensor

from llmtrain.train.distributed.exchange import Round, balanced_owners
from llmtrain.train.distributed.replica import Replica

_ROUND_BYTES = 64 << 20  # of whole tensors that a rank receives at once


def owned_tensors(
    tensors: Mapping[str, Tensor], sharded: Mapping[str, torch.Size], replica: Replica
) -> dict[str, Tensor]:
    """Return the tensors that this rank owns, whole and on the CPU. Every rank of the replica has
    to call it.

    `tensors` are this rank's parts of those in `sharded`, by name with the whole shape, and whole
    ones. The owners have about the same number of bytes.
    """
    sizes = {
        name: float(tensor.itemsize * sharded.get(name, tensor.shape).numel())
        for name, tensor in tensors.items()
    }
    owners = dict(zip(sizes, balanced_owners(list(sizes.values()), replica.size), strict=True))
    found = {
        name: tensor.detach().to("cpu", copy=True)
        for name, tensor in tensors.items()
        if owners[name] == replica.rank and name not in sharded
    }
    names = [
        [name for name in tensors if name in sharded and owners[name] == rank]
        for rank in range(replica.size)
    ]
    for together in zip_longest(*(_rounds(each, sizes) for each in names), fillvalue=()):
        exchange = Round(
            replica,
            tuple(tuple(sharded[name] for name in each) for each in together),
            torch.float32,
            next(tensors[name].device for each in together for name in each),
        )
        pieces = [[tensors[name].detach() for name in each] for each in together]
        whole = exchange.assembled(exchange.to_owners(pieces))
        for name, tensor in zip(together[replica.rank], whole, strict=True):
            found[name] = tensor.cpu()
    return found


def _rounds(names: Sequence[str], sizes: Mapping[str, float]) -> Iterator[tuple[str, ...]]:
    """Yield names of tensors that are together at most `_ROUND_BYTES`, or one that is larger."""
    together: list[str] = []
    for name in names:
        if together and sum(sizes[n] for n in (*together, name)) > _ROUND_BYTES:
            yield tuple(together)
            together = []
        together.append(name)
    if together:
        yield tuple(together)
