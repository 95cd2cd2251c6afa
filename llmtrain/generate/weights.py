"""A decoder's weights as generation multiplies them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmtrain.model.adapted_linear import AdaptedLinear
from llmtrain.model.block import Block
from llmtrain.model.decoder import Decoder

_LARGEST_INT8 = 127
_INT8_OFFSET = 128  # stored as unsigned bytes, which AVX-512 multiplies by signed ones


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One block's weights.

    Matrices that multiply the same input are one above the other. Where that would take a copy
    that is not needed otherwise, they are several, in order.
    """

    attention_gain: Tensor
    query_key_value: tuple[Tensor, ...]
    query_gain: Tensor | None
    key_gain: Tensor | None
    output: Tensor
    feed_forward_gain: Tensor
    gate_up: tuple[Tensor, ...]
    down: Tensor


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """A decoder's matrices in `dtype`, its gains and embeddings as they are."""

    dtype: torch.dtype
    embedding: Tensor
    layers: tuple[LayerWeights, ...]
    gain: Tensor
    head: Tensor


def weights_of(model: Decoder, dtype: torch.dtype) -> DecoderWeights:
    """Return the weights of `model` with matrices in `dtype`; those that are in it are shared."""
    backbone = model.model
    layers = tuple(_layer_weights(block, dtype) for block in backbone.blocks())
    embedding, gain = backbone.embed_tokens.weight.detach(), backbone.norm.weight.detach()
    head = model.head_weight.detach().to(dtype)
    return DecoderWeights(dtype, embedding, layers, gain, head)


def _layer_weights(block: Block, dtype: torch.dtype) -> LayerWeights:
    attention, feed_forward = block.self_attn, block.mlp
    projections = attention.q_proj, attention.k_proj, attention.v_proj
    query_norm, key_norm = attention.q_norm, attention.k_norm
    return LayerWeights(
        attention_gain=block.input_layernorm.weight.detach(),
        query_key_value=_stacked([_weight(each) for each in projections], dtype),
        query_gain=None if query_norm is None else query_norm.weight.detach(),
        key_gain=None if key_norm is None else key_norm.weight.detach(),
        output=_weight(attention.o_proj).to(dtype),
        feed_forward_gain=block.post_attention_layernorm.weight.detach(),
        gate_up=_stacked([_weight(feed_forward.gate_proj), _weight(feed_forward.up_proj)], dtype),
        down=_weight(feed_forward.down_proj).to(dtype),
    )


def _weight(layer: nn.Module) -> Tensor:
    """Return the layer's matrix, with its adapter added if it has one."""
    if isinstance(layer, AdaptedLinear):
        return layer.merged_weight()
    assert isinstance(layer, nn.Linear)
    return layer.weight.detach()


def _stacked(matrices: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    if all(matrix.dtype == dtype for matrix in matrices):
        return tuple(matrices)
    return (torch.cat([matrix.to(dtype) for matrix in matrices]),)


def multiply(x_btc: Tensor, matrices: tuple[Tensor, ...]) -> Tensor:
    """Return the products of `x` with matrices that lie one above the other, side by side."""
    if len(matrices) == 1:
        return F.linear(x_btc, matrices[0])
    return torch.cat([F.linear(x_btc, matrix) for matrix in matrices], dim=-1)


@dataclass(frozen=True, slots=True)
class NativeWeights:
    """The weights as the compiled step takes them: eight a layer, then gain and head.

    `scales`: none, or those of the rows of each matrix, which then is in int8.
    """

    tensors: list[Tensor]
    scales: list[Tensor]


def native_weights(weights: DecoderWeights, *, in_int8: bool = False) -> NativeWeights:
    """Return the weights as the compiled step takes them."""
    none, scales = torch.empty(0), list[Tensor]()

    def matrix(values: Tensor) -> Tensor:
        if not in_int8:
            return values
        whole, of_rows = rounded_to_int8(values)
        scales.append(of_rows)
        return whole

    found = []
    for layer in weights.layers:
        query_key_value, gate_up = _joined(layer.query_key_value), _joined(layer.gate_up)
        gains = (none if each is None else each for each in (layer.query_gain, layer.key_gain))
        found += [layer.attention_gain, matrix(query_key_value), *gains, matrix(layer.output)]
        found += [layer.feed_forward_gain, matrix(gate_up), matrix(layer.down)]
    return NativeWeights([*found, weights.gain, matrix(weights.head)], scales)


def _joined(matrices: tuple[Tensor, ...]) -> Tensor:
    return matrices[0] if len(matrices) == 1 else torch.cat(matrices)


def rounded_to_int8(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return a matrix in int8 and 128 more, and the scale of each row in fp32: by its largest."""
    scales = matrix.float().abs().amax(1) / _LARGEST_INT8
    whole = (matrix.float() / scales.clamp(min=torch.finfo().tiny)[:, None]).round()
    return (whole + _INT8_OFFSET).to(torch.uint8), scales


@torch.no_grad()
def round_to_int8(model: Decoder) -> None:
    """Replace what generation multiplies by what `rounded_to_int8` makes of it."""
    matrices = [each.weight for each in model.modules() if isinstance(each, nn.Linear)]
    for matrix in {id(each): each for each in (*matrices, model.head_weight)}.values():
        whole, scales = rounded_to_int8(matrix)
        matrix.copy_((whole.float() - _INT8_OFFSET) * scales[:, None])
