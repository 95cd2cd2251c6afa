"""Sharded training with FSDP2: every rank has a part of each matrix, and of its optimizer state.

A block's matrices are gathered before it computes, in the precision of products, and freed after;
their gradients are summed in fp32 and scattered. Embedding and head are one group, gathered in
fp32: the loss computes the head's gradient in its forward. Gains are not sharded: they are few, and
rounded to half precision they would be another function. Their gradients are averaged once a step.

Where each machine has a replica (HSDP: PyTorch's "hybrid sharding"), all that is within a machine,
and once a step the ranks that have the same part average its gradients over machines.

FSDP2 imports torch's compiler, which takes seconds: only a sharded run does that.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

from llmtrain.choice import Precision
from llmtrain.model.decoder import Decoder
from llmtrain.ops.precision import half_dtype
from llmtrain.train.distributed.exchange import own_rows
from llmtrain.train.distributed.replica import Replica

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule

_TENSORS = "torch.distributed.tensor"  # of whose class there are none before FSDP2 imported it


def local_part(tensor: Tensor) -> Tensor:
    """Return this rank's part of a sharded tensor; a tensor that is not sharded as it is."""
    if not is_sharded(tensor):
        return tensor
    from torch.distributed.tensor import DTensor

    assert isinstance(tensor, DTensor)
    return tensor.to_local()


def is_sharded(tensor: Tensor) -> bool:
    """Return whether each rank has a part of the tensor."""
    module = sys.modules.get(_TENSORS)
    return module is not None and isinstance(tensor, module.DTensor)


def part_of(whole: Tensor, parameter: Tensor) -> Tensor:
    """Return the part of `whole` that this rank has of `parameter`."""
    if not is_sharded(parameter):
        return whole
    from torch.distributed.tensor import DTensor

    assert isinstance(parameter, DTensor)
    mesh = parameter.device_mesh
    parts = mesh.ndim - 1  # the dimension before it, if there is one, is that of replicas
    return whole[own_rows(len(whole), mesh.get_local_rank(parts), mesh.size(parts))]


class ShardedModel:
    """A decoder whose matrices are sharded over a replica's ranks. Its modules stay its own."""

    def __init__(self, model: Decoder, replica: Replica, precision: Precision, kind: str) -> None:
        """Shard `model` in place; its matrices are empty after that, if they were on `meta`."""
        from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

        self._model, self.replica = model, replica
        mesh = replica.mesh(kind)
        ignored = set(_gains(model))
        policy = MixedPrecisionPolicy(
            param_dtype=half_dtype(precision),
            reduce_dtype=torch.float32,
            cast_forward_inputs=False,
        )
        blocks = list(model.model.blocks())
        for block in blocks:
            fully_shard(block, mesh=mesh, mp_policy=policy, ignored_params=ignored)
        whole = MixedPrecisionPolicy(cast_forward_inputs=False)
        fully_shard(
            model, mesh=mesh, mp_policy=whole, ignored_params=ignored, reshard_after_forward=False
        )
        for block, following in pairwise(blocks):
            assert isinstance(block, FSDPModule)
            assert isinstance(following, FSDPModule)
            block.set_modules_to_forward_prefetch([following])

    def add_over_replicas(self, *, is_last: bool) -> None:
        """Let the next backward add gradients over replicas too, if it is a step's last one.

        In those before it they are added within a replica, where each rank keeps its part.
        """
        if self.replica.replicas > 1:
            self._whole.set_requires_all_reduce(is_last)

    def finish_gradients(self) -> None:
        """Average the gradients of gains over ranks; FSDP2 has averaged those of matrices."""
        gradients = [gain.grad for gain in _gains(self._model) if gain.grad is not None]
        if not gradients:
            return
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.replica.size * self.replica.replicas
        parts = torch.split(flat, [gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def clip_gradients(self, limit: float | None) -> float:
        """Scale gradients down to a global norm of `limit`; return the norm before that.

        It is the same number on all ranks.
        """
        sharded: list[Tensor] = []
        whole: list[Tensor] = []
        for parameter in self._model.parameters():
            if parameter.grad is not None:
                into = sharded if is_sharded(parameter.grad) else whole
                into.append(local_part(parameter.grad))
        squares = nn.utils.get_total_norm(sharded, foreach=True).square()
        dist.all_reduce(squares)  # over all ranks, so that they have one number
        squares /= self.replica.replicas
        norm = (squares + nn.utils.get_total_norm(whole, foreach=True).square()).sqrt()
        if limit is not None:
            scale = (limit / (norm + 1e-6)).clamp(max=1.0)  # as nn.utils.clip_grad_norm_
            torch._foreach_mul_([*sharded, *whole], scale)
        return float(norm)

    def free(self) -> None:
        """Free what is gathered after a forward that no backward followed."""
        for module in self._groups():
            module.reshard()

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Within the block, every rank has the whole weights, and may use them alone."""
        groups = list(self._groups())
        for module in groups:
            handle = module.unshard(async_op=False)
            assert handle is None
        try:
            yield
        finally:
            self.free()

    @property
    def _whole(self) -> FSDPModule:
        """The whole model, as FSDP2 knows it."""
        return next(self._groups())

    def _groups(self) -> Iterator[FSDPModule]:
        from torch.distributed.fsdp import FSDPModule

        for module in (self._model, *self._model.model.blocks()):
            assert isinstance(module, FSDPModule)
            yield module


def _gains(model: Decoder) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.dim() < 2]
