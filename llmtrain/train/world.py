"""The processes that train together: one alone, or the ranks that torchrun started."""

from __future__ import annotations

import datetime
import gc
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from llmtrain.errors import LlmtrainError

# Tokenizing a large corpus happens on rank 0 alone, and the others wait for it.
_PREPARATION_LIMIT = datetime.timedelta(days=7)
_COLLECTIVE_LIMIT = datetime.timedelta(minutes=10)
_READY, _FAILED = "ready", "failed"  # how a message of rank 0 begins


@dataclass(frozen=True, slots=True)
class World:
    """This process's place among all. `store` is what ranks leave messages in."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    store: Store | None = None

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def open(self, backend: str) -> None:
        """Ranks can add up tensors. Alone there is nothing to do."""
        if self.store is not None:
            dist.init_process_group(
                backend,
                store=self.store,
                rank=self.rank,
                world_size=self.size,
                timeout=_COLLECTIVE_LIMIT,
            )

    def close(self) -> None:
        """What `open` opened is closed."""
        if self.store is not None and dist.is_initialized():
            dist.destroy_process_group()
            # DDP lies in reference cycles and holds the group; gloo's threads would outlive Python,
            # and free their last tensors in it: the process then aborts at its very end.
            gc.collect()

    def from_main(self, key: str, produce: Callable[[], str]) -> str:
        """What `produce` returns on rank 0, on every rank; the others wait without a collective.

        Where it raises, every rank fails: rank 0 with that error, the others with LlmtrainError.
        """
        if self.store is None:
            return produce()
        if self.is_main:
            self._publish(key, produce)
        self.store.wait([key], _PREPARATION_LIMIT)
        state, _, message = self.store.get(key).decode().partition(" ")
        if state != _READY:
            raise LlmtrainError("rank 0 failed, and says why", hint="see its messages")
        return message

    def _publish(self, key: str, produce: Callable[[], str]) -> None:
        assert self.store is not None
        try:
            self.store.set(key, f"{_READY} {produce()}")
        except BaseException:
            self.store.set(key, _FAILED)  # or the others would wait for the limit
            raise

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def sum_values(self, values: Sequence[float], device: torch.device) -> list[float]:
        """Each value's sum over all ranks; `device` is what the backend talks through."""
        if self.size == 1:
            return [float(value) for value in values]
        together = torch.tensor(values, dtype=torch.float64, device=device)
        summed: list[float] = self.sum(together).tolist()
        return summed


def world_from_environment() -> World:
    """The place that torchrun's variables give this process, or a world of one."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return World()
    store, rank, size = next(rendezvous("env://", timeout=_COLLECTIVE_LIMIT))
    return World(
        rank=rank,
        size=size,
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
        local_size=int(os.environ.get("LOCAL_WORLD_SIZE", str(size))),
        store=PrefixStore("llmtrain", store),
    )


def device_of(kind: str, world: World) -> torch.device:
    """The device that this rank computes on."""
    return torch.device("cuda", world.local_rank) if kind == "cuda" else torch.device(kind)
