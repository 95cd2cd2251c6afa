"""A linear layer with a low-rank adapter (Hu et al. 2021, "LoRA") beside a weight that stays.

    y = W·x + (α / r) · B·(A·x)      A: r × inputs, B: outputs × r

A and B are trained, W is not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmtrain.ops.native.adapted_block import AdaptedMatrices
from llmtrain.profile.lora_shape import LoraShape


class AdaptedLinear(nn.Module):
    """A linear layer whose weight stays as it is, and an adapter."""

    def __init__(self, weight: Tensor, lora: LoraShape) -> None:
        """Add an adapter that is zero to `weight`."""
        super().__init__()
        outputs, inputs = weight.shape
        self.scale = lora.scale
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.lora_A = nn.Linear(inputs, lora.rank, bias=False)
        self.lora_B = nn.Linear(lora.rank, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output with the adapter's added.

        Adding is part of the product: checkpointing then keeps one result of this width, not two.
        """
        weight = self.weight if self.weight.dtype == x.dtype else self.weight.to(x.dtype)
        x_nc = x.flatten(0, -2)
        y_nd, a_nr = F.linear(x_nc, weight), self.lora_A(x_nc)
        y_nd = torch.addmm(y_nd, a_nr, self.lora_B.weight.t(), alpha=self.scale)
        return y_nd.view(*x.shape[:-1], -1)

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """Return the weight with the adapter added, in fp32."""
        product = self.lora_B.weight.float() @ self.lora_A.weight.float()
        return self.weight.float() + self.scale * product


def adapted_matrices(
    layers: Sequence[nn.Module], cast: Callable[[Tensor], Tensor]
) -> tuple[AdaptedMatrices, list[Tensor | None]]:
    """Return what a native block multiplies, and for autograd what is trained of it.

    At least one of the layers has an adapter, and all that have one the same scale. `cast` returns
    an adapter's matrix in bf16.
    """
    weights, a, b = list[Tensor](), list[Tensor](), list[Tensor]()
    trained, scale = list[Tensor | None](), 0.0
    for layer in layers:
        assert isinstance(layer, (nn.Linear, AdaptedLinear))
        weight = layer.weight.detach()
        weights.append(weight)
        if isinstance(layer, AdaptedLinear):
            scale = layer.scale
            trained += layer.lora_A.weight, layer.lora_B.weight
            a.append(cast(layer.lora_A.weight))
            b.append(cast(layer.lora_B.weight))
        else:
            trained += None, None
            a.append(weight.new_empty(0, weight.shape[1]))
            b.append(weight.new_empty(weight.shape[0], 0))
    return AdaptedMatrices(weights, a, b, scale), trained
