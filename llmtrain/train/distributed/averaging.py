"""Means of tensors over ranks, weighted by the tokens that each rank has read, also in a thread."""

from __future__ import annotations

import datetime
import threading
import time
from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from llmtrain.train.distributed.world import World

_BUCKET_ELEMENTS = 16 << 20  # exchanged at once; a larger tensor is by itself


def buckets(tensors: Mapping[str, Tensor]) -> Iterator[list[str]]:
    """Yield the names of tensors that are exchanged at once."""
    bucket: list[str] = []
    elements = 0
    for name, tensor in tensors.items():
        if bucket and elements + tensor.numel() > _BUCKET_ELEMENTS:
            yield bucket
            bucket, elements = [], 0
        bucket.append(name)
        elements += tensor.numel()
    if bucket:
        yield bucket


def weighted_mean(
    own: Tensor, tokens: Sequence[float], world: World, group: dist.ProcessGroup | None = None
) -> Tensor:
    """Return the mean of every rank's tensor, weighted by tokens, in fp32; the same on all ranks.

    Each rank adds up one part of all tensors in fp32, in the order of ranks, and sends the mean to
    the others: what travels is in the type of `own`, and as much as in an all-reduce.
    """
    if world.size == 1:
        return own.float()
    part = -(-own.numel() // world.size)
    sent = own.new_zeros(world.size * part)
    sent[: own.numel()] = own
    received = torch.empty_like(sent)
    # As bytes: not every backend knows every type.
    dist.all_to_all_single(received.view(torch.uint8), sent.view(torch.uint8), group=group)
    weights = torch.tensor(tokens, dtype=torch.float32, device=own.device) / sum(tokens)
    mean = torch.zeros(part, dtype=torch.float32, device=own.device)
    for weight, of_rank in zip(weights, received.view(world.size, part), strict=True):
        mean.add_(of_rank.float() * weight)
    sent = mean.to(own.dtype).repeat(world.size)
    dist.all_to_all_single(received.view(torch.uint8), sent.view(torch.uint8), group=group)
    return received[: own.numel()].float()


def background_group(world: World, timeout_s: float) -> dist.ProcessGroup | None:
    """Return a group of all ranks for what travels beside other messages; None for one rank.

    Every rank has to call it. It is gloo's on every device: it is for networks that are slow.
    """
    if world.size == 1:
        return None
    limit = datetime.timedelta(seconds=timeout_s)
    group: dist.ProcessGroup = dist.new_group(backend="gloo", timeout=limit)
    return group


class Averaging:
    """Means that are computed in a thread while this one trains."""

    def __init__(
        self,
        own: list[Tensor],
        tokens: Sequence[float],
        world: World,
        group: dist.ProcessGroup | None,
    ) -> None:
        """Begin with `own`, tensors in main memory that are not used elsewhere any more."""
        self._tensors, self._tokens, self._world, self._group = own, tokens, world, group
        self._error: RuntimeError | None = None
        self.seconds = 0.0  # that it took, once it is over
        self._thread = threading.Thread(target=self._run, daemon=True)  # a peer may never answer
        self._thread.start()

    def wait(self) -> list[Tensor]:
        """Return the means. Raises torch's error where another rank was lost."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._tensors

    def _run(self) -> None:
        started_s = time.monotonic()
        try:
            for index, own in enumerate(self._tensors):
                self._tensors[index] = weighted_mean(own, self._tokens, self._world, self._group)
        except RuntimeError as error:
            self._error = error
        self.seconds = time.monotonic() - started_s
