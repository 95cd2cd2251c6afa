"""A decoder's weights as generation multiplies them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmtrain.model.block import Block
from llmtrain.model.decoder import Decoder
from llmtrain.model.lora import AdaptedLinear


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


def native_weights(weights: DecoderWeights) -> list[Tensor]:
    """Return the weights as the compiled step takes them: eight a layer, then gain and head."""
    none = torch.empty(0)
    found = []
    for layer in weights.layers:
        (query_key_value,), (gate_up,) = layer.query_key_value, layer.gate_up
        gains = (none if each is None else each for each in (layer.query_gain, layer.key_gain))
        found += [layer.attention_gain, query_key_value, *gains, layer.output]
        found += [layer.feed_forward_gain, gate_up, layer.down]
    return [*found, weights.gain, weights.head]
