"""The decoder with a cache of keys and values, for several sequences at a time.

Shapes: B sequences, T new tokens, S tokens so far, C hidden features, H query heads, G key heads,
D features a head, V the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from llmtrain.generate.weights import (
    LayerWeights,
    NativeWeights,
    multiply,
    native_weights,
    weights_of,
)
from llmtrain.model.decoder import Decoder, as_residual
from llmtrain.ops.attention import cached_attention, causal_attention
from llmtrain.ops.norm import rms_norm
from llmtrain.ops.rotary import rotate

# From a layer's index and the new tokens' queries, keys and values to the attention's output.
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


class CachedDecoder:
    """Logits of tokens that continue cached ones, equal to the decoder's up to rounding.

    The cache has `slots`, each for one sequence of up to the context. The weights are those that
    the model has when this is made; where no copy in `dtype` is needed, the model's own.
    """

    def __init__(self, model: Decoder, dtype: torch.dtype, slots: int = 1) -> None:
        self.shape = model.shape
        self.slots = slots
        self._weights = weights_of(model, dtype)
        self._cos_td, self._sin_td = model.model.cos_td, model.model.sin_td
        self._device = self._weights.head.device
        shape = self.shape
        size = (shape.num_layers, slots, shape.num_kv_heads, shape.context, shape.head_dim)
        self._k_lsgtd = torch.zeros(size, dtype=dtype, device=self._device)
        self._v_lsgtd = torch.zeros(size, dtype=dtype, device=self._device)
        self._lengths = [0] * slots
        self._native_weights: NativeWeights | None = None  # where the compiled step computes

    def compute_natively(self, is_native: bool) -> None:
        """From now on compute single tokens by the compiled step, which has to be loaded, or not.

        For weights in bf16 on a CPU.
        """
        self._native_weights = native_weights(self._weights) if is_native else None

    def compute_in_int8(self, model: Decoder) -> None:
        """From now on compute single tokens by the compiled step, with `model`'s matrices in int8.

        The step has to be loaded; this decoder is one in bf16 of the same model, on a CPU.
        """
        weights = weights_of(model, torch.float32)
        self._native_weights = native_weights(weights, in_int8=True)

    def length(self, slot: int) -> int:
        """Return how many tokens of the sequence in `slot` are cached."""
        return self._lengths[slot]

    def truncate(self, slot: int, length: int) -> None:
        """Forget what is cached in `slot` after the first `length` tokens."""
        assert length <= self._lengths[slot]
        self._lengths[slot] = length

    @torch.inference_mode()
    def copy(self, source: int, target: int, length: int) -> None:
        """Make the sequence in `target` the first `length` tokens of the one in `source`."""
        assert length <= self._lengths[source]
        for cache in (self._k_lsgtd, self._v_lsgtd):
            cache[:, target, :, :length] = cache[:, source, :, :length]
        self._lengths[target] = length

    @torch.inference_mode()
    def extend(self, slot: int, tokens: Sequence[int]) -> Tensor:
        """Append tokens to the sequence in `slot`; return the logits after the last, (V,) fp32."""
        start = self._lengths[slot]
        end = start + len(tokens)
        assert start < end <= self.shape.context, "more tokens than the context"
        mask = None
        if start > 0 and len(tokens) > 1:
            mask = torch.ones(len(tokens), end, dtype=torch.bool, device=self._device).tril(start)
        rotations = self._cos_td[start:end], self._sin_td[start:end]

        def attend(layer: int, q_bhtd: Tensor, k_bgtd: Tensor, v_bgtd: Tensor) -> Tensor:
            k_bgsd, v_bgsd = self._k_lsgtd[layer, slot, None], self._v_lsgtd[layer, slot, None]
            k_bgsd[:, :, start:end], v_bgsd[:, :, start:end] = k_bgtd, v_bgtd
            if start == 0:
                return causal_attention(q_bhtd, k_bgtd, v_bgtd)
            return cached_attention(q_bhtd, k_bgsd[:, :, :end], v_bgsd[:, :, :end], mask)

        logits_bv = self._forward(self._tensor([tokens]), rotations, attend)
        self._lengths[slot] = end
        return logits_bv[0]

    @torch.inference_mode()
    def step(self, slots: Sequence[int], tokens: Sequence[int]) -> Tensor:
        """Append one token to the sequence in each of `slots`; return the logits, (B, V) fp32."""
        starts = [self._lengths[slot] for slot in slots]
        assert max(starts) < self.shape.context, "more tokens than the context"
        positions_b, slots_b = self._tensor(starts), self._tensor(slots)
        if self._native_weights is None:
            logits_bv = self._step(slots, starts, slots_b, positions_b, tokens)
        else:
            logits_bv = self._native_step(self._native_weights, slots_b, positions_b, tokens)
        for slot, start in zip(slots, starts, strict=True):
            self._lengths[slot] = start + 1
        return logits_bv

    def _native_step(
        self,
        weights: NativeWeights,
        slots_b: Tensor,
        positions_b: Tensor,
        tokens: Sequence[int],
    ) -> Tensor:
        embedded_bc = as_residual(F.embedding(self._tensor(tokens), self._weights.embedding))
        logits_bv: Tensor = torch.ops.llmtrain_decode.step(
            embedded_bc,
            weights.tensors,
            weights.scales,
            self._k_lsgtd,
            self._v_lsgtd,
            self._cos_td,
            self._sin_td,
            slots_b,
            positions_b,
            self.shape.num_heads,
            self.shape.intermediate_size,
            self.shape.norm_epsilon,
        )
        return logits_bv

    def _step(
        self,
        slots: Sequence[int],
        starts: Sequence[int],
        slots_b: Tensor,
        positions_b: Tensor,
        tokens: Sequence[int],
    ) -> Tensor:
        longest = max(starts) + 1
        rotations = self._cos_td[positions_b, None, None], self._sin_td[positions_b, None, None]
        mask = None
        if min(starts) + 1 < longest:
            seen_s = torch.arange(longest, device=self._device)
            mask = (seen_s <= positions_b[:, None])[:, None, None]
        is_range = list(slots) == list(range(slots[0], slots[0] + len(slots)))
        rows = slice(slots[0], slots[0] + len(slots)) if is_range else slots_b

        def attend(layer: int, q_bhtd: Tensor, k_bgtd: Tensor, v_bgtd: Tensor) -> Tensor:
            k_sgtd, v_sgtd = self._k_lsgtd[layer], self._v_lsgtd[layer]
            k_sgtd[slots_b, :, positions_b] = k_bgtd[:, :, 0]
            v_sgtd[slots_b, :, positions_b] = v_bgtd[:, :, 0]
            k_bgsd, v_bgsd = k_sgtd[rows, :, :longest], v_sgtd[rows, :, :longest]
            return cached_attention(q_bhtd, k_bgsd, v_bgsd, mask)

        return self._forward(self._tensor(tokens)[:, None], rotations, attend)

    def _tensor(self, values: Sequence[object]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self._device)

    def _forward(
        self, tokens_bt: Tensor, rotations: tuple[Tensor, Tensor], attend: Attend
    ) -> Tensor:
        """Return the logits after the last token of each sequence, (B, V) fp32."""
        weights, epsilon = self._weights, self.shape.norm_epsilon
        x_btc = as_residual(F.embedding(tokens_bt, weights.embedding))
        for index, layer in enumerate(weights.layers):
            normed = rms_norm(x_btc, layer.attention_gain, epsilon, weights.dtype)
            q, k, v = self._heads(multiply(normed, layer.query_key_value), layer, rotations)
            x_btc = x_btc + F.linear(attend(index, q, k, v), layer.output)
            normed = rms_norm(x_btc, layer.feed_forward_gain, epsilon, weights.dtype)
            gate, up = multiply(normed, layer.gate_up).chunk(2, dim=-1)
            x_btc = x_btc + F.linear(F.silu(gate) * up, layer.down)
        last_bc = rms_norm(x_btc[:, -1], weights.gain, epsilon, weights.dtype)
        return F.linear(last_bc, weights.head).float()

    def _heads(
        self, projected: Tensor, layer: LayerWeights, rotations: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values by head, normed and rotated."""
        shape, dtype = self.shape, self._weights.dtype
        heads = projected.view(*projected.shape[:2], -1, shape.head_dim).transpose(1, 2)
        sizes = [shape.num_heads, shape.num_kv_heads, shape.num_kv_heads]
        q, k, v = torch.split_with_sizes(heads, sizes, dim=1)
        if layer.query_gain is not None and layer.key_gain is not None:
            q = rms_norm(q, layer.query_gain, shape.norm_epsilon, dtype)
            k = rms_norm(k, layer.key_gain, shape.norm_epsilon, dtype)
        return rotate(q, *rotations, dtype), rotate(k, *rotations, dtype), v
