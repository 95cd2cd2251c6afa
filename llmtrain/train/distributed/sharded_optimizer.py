"""Muon and AdamW on sharded parameters, with the same updates as on whole ones.

AdamW changes numbers one by one, so each rank updates its part. Muon orthogonalises a matrix as a
whole: each has one owner, to which the ranks send their rows of Nesterov's direction, and which
sends back theirs of the result, in the type of the products. While an owner works, the matrices of
the next round travel. Where the model is sharded within machines, each machine has its owners.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from llmtrain.model.optimizer import RoleOptimizer, stacks
from llmtrain.ops.orthogonal import orthogonalize
from llmtrain.profile.shape import orthogonalization_flops
from llmtrain.train.distributed.exchange import Arriving, Round, balanced_owners
from llmtrain.train.distributed.replica import Replica
from llmtrain.train.distributed.sharding import local_part

_Stacks = list[list[Tensor]]  # of one round, by the rank that owns them


class ShardedOptimizer(RoleOptimizer):
    """The optimizer of a sharded model; the state of a parameter has the shape of its part."""

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        product_dtype: torch.dtype,
        replica: Replica,
    ) -> None:
        super().__init__(groups, product_dtype=product_dtype)
        self._replica = replica

    def part(self, tensor: Tensor) -> Tensor:
        """Return this rank's part of a parameter or its gradient."""
        return local_part(tensor)

    def _muon(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        coming = returning = None
        for owned in [*self._rounds(parameters), None]:
            following = None if owned is None else self._begin(group, owned)
            if returning is not None:
                self._finish(group, *returning)
                returning = None
            if coming is not None:
                returning = self._orthogonalized(*coming)
            coming = following
        if returning is not None:
            self._finish(group, *returning)

    def _rounds(self, parameters: list[Tensor]) -> Iterator[_Stacks]:
        """Yield what each rank orthogonalises at once, until every matrix had its turn."""
        ranks = self._replica.size
        costs = [float(orthogonalization_flops(*parameter.shape)) for parameter in parameters]
        owned: list[list[Tensor]] = [[] for _ in range(ranks)]
        for parameter, owner in zip(parameters, balanced_owners(costs, ranks), strict=True):
            owned[owner].append(parameter)
        by_rank = (stacks(each, self.product_dtype.itemsize) for each in owned)
        for together in zip_longest(*by_rank, fillvalue=[]):
            yield list(together)

    def _begin(self, group: dict[str, Any], owned: _Stacks) -> tuple[_Stacks, Round, Arriving]:
        """Update the momentum of a round's matrices, and send their directions to the owners."""
        shapes = tuple(tuple(parameter.shape for parameter in each) for each in owned)
        device = next(parameter.device for each in owned for parameter in each)
        exchange = Round(self._replica, shapes, self.product_dtype, device)
        pieces = [[self._ahead(group, parameter) for parameter in each] for each in owned]
        return owned, exchange, exchange.to_owners(pieces)

    def _orthogonalized(
        self, owned: _Stacks, exchange: Round, arriving: Arriving
    ) -> tuple[_Stacks, Round, Arriving]:
        """Orthogonalise this rank's matrices and send every rank its rows of them."""
        whole = exchange.assembled(arriving)
        wide = [matrix if len(matrix) <= matrix.shape[1] else matrix.mT for matrix in whole]
        found = list(orthogonalize(torch.stack(wide))) if wide else []
        directions = [
            direction if len(matrix) <= matrix.shape[1] else direction.mT
            for matrix, direction in zip(whole, found, strict=True)
        ]
        return owned, exchange, exchange.to_shards(directions)

    def _finish(
        self, group: dict[str, Any], owned: _Stacks, exchange: Round, arriving: Arriving
    ) -> None:
        for parameters, rows in zip(owned, exchange.shards(arriving), strict=True):
            for parameter, direction in zip(parameters, rows, strict=True):
                height, width = parameter.shape
                part = self.part(parameter)
                part.mul_(1.0 - group["lr"] * group["weight_decay"])
                part.add_(direction, alpha=-group["lr"] * max(1.0, height / width) ** 0.5)


class ShardedGradScaler(torch.amp.GradScaler):
    """A loss scaler that unscales the parts of sharded gradients, beside whole ones."""

    @torch.no_grad()
    def _unscale_grads_(
        self,
        optimizer: torch.optim.Optimizer,
        inv_scale: Tensor,
        found_inf: Tensor,
        allow_fp16: bool,
    ) -> dict[torch.device, Tensor]:
        gradients = [
            local_part(parameter.grad)
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        if gradients:
            torch._amp_foreach_non_finite_check_and_unscale_(gradients, found_inf, inv_scale)
        return {found_inf.device: found_inf}
