"""The processes that train together: one alone, or the ranks that torchrun started."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

# Tokenizing a large corpus happens on rank 0 alone, and the others wait for it.
_PREPARATION_LIMIT = datetime.timedelta(days=7)
_COLLECTIVE_LIMIT = datetime.timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class World:
    """This process's place among all."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def connect(self, backend: str) -> None:
        """Ranks can talk to each other. Alone there is nothing to do."""
        if self.size > 1 and not dist.is_initialized():
            dist.init_process_group(backend, timeout=_COLLECTIVE_LIMIT)

    def disconnect(self) -> None:
        """What `connect` opened is closed."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def from_main(self, key: str, produce: Callable[[], str]) -> str:
        """What `produce` returns on rank 0, on every rank; the others wait without a collective."""
        if self.size == 1:
            return produce()
        store = dist.distributed_c10d._get_default_store()  # noqa: SLF001 - no public accessor
        if self.is_main:
            store.set(f"llmtrain/{key}", produce())
        store.wait([f"llmtrain/{key}"], _PREPARATION_LIMIT)
        return store.get(f"llmtrain/{key}").decode()

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor


def world_from_environment(environment: Mapping[str, str] | None = None) -> World:
    """The place that torchrun's variables give this process, or a world of one."""
    values = os.environ if environment is None else environment
    if "RANK" not in values or "WORLD_SIZE" not in values:
        return World()
    return World(
        rank=int(values["RANK"]),
        size=int(values["WORLD_SIZE"]),
        local_rank=int(values.get("LOCAL_RANK", "0")),
        local_size=int(values.get("LOCAL_WORLD_SIZE", values["WORLD_SIZE"])),
    )


def device_of(kind: str, world: World) -> torch.device:
    """The device that this rank computes on."""
    return torch.device("cuda", world.local_rank) if kind == "cuda" else torch.device(kind)
