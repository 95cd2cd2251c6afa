"""The ranks that together have one replica of a sharded model: all, or those of one machine."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from llmtrain.choice import Sharding
from llmtrain.train.distributed.world import World

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


@dataclass(frozen=True, slots=True)
class Replica:
    """The ranks over which the parts of a model are spread, and this rank's place among them."""

    rank: int  # among those of the replica; of its part
    size: int
    number: int = 0  # of this replica; that of rank 0 is the first
    replicas: int = 1
    group: dist.ProcessGroup | None = None  # of its ranks; None: all there are
    peers: dist.ProcessGroup | None = None  # the ranks that have this part in each replica

    def mesh(self, kind: str) -> DeviceMesh:
        """Return the ranks as FSDP2 wants them: parts, or replicas by parts."""
        from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

        if self.group is None or self.peers is None:
            return init_device_mesh(kind, (self.size,))
        ranks = torch.arange(self.replicas * self.size).view(self.replicas, self.size)
        names = ("replica", "part")
        return DeviceMesh.from_group([self.peers, self.group], kind, ranks, mesh_dim_names=names)


def replica_of(world: World, sharding: Sharding, timeout_s: float) -> Replica:
    """Return the replica that this rank has a part of. Every rank has to call it.

    `timeout_s`: how long ranks wait for each other within a replica, and between them.
    """
    if sharding == "shard":
        return Replica(world.rank, world.size)
    size, replicas = world.local_size, world.size // world.local_size
    number, rank = divmod(world.rank, size)
    ranks = torch.arange(world.size).view(replicas, size)
    group = _groups(ranks, timeout_s)[number]
    peers = _groups(ranks.T, timeout_s)[rank]
    return Replica(rank, size, number, replicas, group, peers)


def _groups(ranks: Tensor, timeout_s: float) -> list[dist.ProcessGroup]:
    """Return a group of each row of ranks. Every rank has to call it, and can use its own."""
    limit = datetime.timedelta(seconds=timeout_s)
    return [dist.new_group(row, timeout=limit) for row in ranks.tolist()]
