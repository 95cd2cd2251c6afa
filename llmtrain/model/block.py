"""A block of the decoder: attention, then feed-forward, each on a normalised input.

Shapes: B sequences, T tokens, C hidden features, D features a head.
Parameters have their Hugging Face names, so that a checkpoint needs no conversion.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask

from llmtrain.choice import ActivationCheckpointing, AttentionKernel, BlockKernels
from llmtrain.model.adapted_linear import AdaptedLinear, adapted_matrices
from llmtrain.ops.attention import causal_attention
from llmtrain.ops.checkpointing import checkpointed, silence_compiler_warning
from llmtrain.ops.documents import DocumentMask
from llmtrain.ops.native.adapted_block import Gains, NativeAdaptedBlock
from llmtrain.ops.native.block import BlockCasts, HeadsLayout, NativeBlock, NativeNorm
from llmtrain.ops.norm import rms_norm
from llmtrain.ops.precision import WeightCasts, compute_dtype
from llmtrain.ops.rotary import rotate
from llmtrain.profile.shape import ModelShape

COMPILER_MODULES = ("torch._dynamo", "torch._inductor.compile_fx")
# Whether the C++ compiler supports this CPU's vector instructions shows at the first kernel: this
# spares some of the programs that test it beforehand.
_COMPILE_OPTIONS: dict[str, bool | int | str | Callable[..., object]] = {"cpp.vec_isa_ok": True}


class RMSNorm(nn.Module):
    """A learned gain on the root-mean-square normalised input."""

    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.epsilon = epsilon
        self.kernels: BlockKernels = "torch"

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised `x` in the type in which matrices are multiplied."""
        if self.kernels == "native" and _suits_native(x):
            normed: Tensor = NativeNorm.apply(x, self.weight, self.epsilon)  # type: ignore[no-untyped-call]
            return normed
        return rms_norm(x, self.weight, self.epsilon, compute_dtype(x))

    def of_residual(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the residual stream to add to, and it normalised."""
        if self.kernels == "triton":
            from llmtrain.ops.triton.norm import norm_residual

            return norm_residual(x, self.weight, self.epsilon, compute_dtype(x))
        return x, self(x)

    def of_sum(self, x: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        """Return `x + delta`, and it normalised."""
        if self.kernels == "triton":
            from llmtrain.ops.triton.norm import add_norm_residual

            return add_norm_residual(x, delta, self.weight, self.epsilon)
        x = x + delta
        return x, self(x)

    def rotated(self, x_bhtd: Tensor, cos_td: Tensor, sin_td: Tensor) -> Tensor:
        """Return heads normalised and then rotated, in their type."""
        if self.kernels == "triton":
            from llmtrain.ops.triton.rotary import norm_rotate

            x_bthd = x_bhtd.transpose(1, 2)
            return norm_rotate(x_bthd, self.weight, self.epsilon, cos_td, sin_td).transpose(1, 2)
        return rotate(self(x_bhtd), cos_td, sin_td, x_bhtd.dtype)


class Attention(nn.Module):
    """Causal self-attention with grouped queries, rotary positions and normed queries and keys."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.head_dim, self.num_key_heads = shape.head_dim, shape.num_kv_heads
        self.kernel: AttentionKernel = "sdpa"
        self.kernels: BlockKernels = "torch"  # of what surrounds it
        width, kv_width = shape.attention_width, shape.kv_width
        self.q_proj = nn.Linear(shape.hidden_size, width, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, kv_width, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, kv_width, bias=False)
        self.o_proj = nn.Linear(width, shape.hidden_size, bias=False)
        self.q_norm = RMSNorm(shape.head_dim, shape.norm_epsilon) if shape.qk_norm else None
        self.k_norm = RMSNorm(shape.head_dim, shape.norm_epsilon) if shape.qk_norm else None

    def forward(
        self,
        x_btc: Tensor,
        cos_td: Tensor,
        sin_td: Tensor,
        documents: DocumentMask | None = None,
    ) -> Tensor:
        """Return the attention output, (B, T, C).

        With `documents`, from `document_mask`, tokens attend to their own document only.
        """
        if self.kernels == "triton" and self.q_norm is not None:
            q, k, v = self._of_one_product(x_btc, cos_td, sin_td)
        else:
            q, k, v = self._of_three_products(x_btc, cos_td, sin_td)
        y_btc: Tensor = self.o_proj(causal_attention(q, k, v, self.kernel, documents))
        return y_btc

    def _of_three_products(
        self, x_btc: Tensor, cos_td: Tensor, sin_td: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (
            self._heads(projection(x_btc)) for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = (
            rotate(x, cos_td, sin_td, x.dtype) if norm is None else norm.rotated(x, cos_td, sin_td)
            for x, norm in ((q, self.q_norm), (k, self.k_norm))
        )
        return q, k, v

    def _of_one_product(
        self, x_btc: Tensor, cos_td: Tensor, sin_td: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return query, key and value by our own kernels, which need them side by side."""
        from llmtrain.ops.triton.rotary import split_norm_rotate

        assert self.q_norm is not None
        assert self.k_norm is not None
        weights = [projection.weight for projection in (self.q_proj, self.k_proj, self.v_proj)]
        q, k, v = split_norm_rotate(
            F.linear(x_btc, torch.cat(weights)),
            self.q_norm.weight,
            self.k_norm.weight,
            self.q_norm.epsilon,
            cos_td,
            sin_td,
            heads=self.q_proj.out_features // self.head_dim,
        )
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def _heads(self, x_btc: Tensor) -> Tensor:
        sequences, tokens, _ = x_btc.shape
        return x_btc.view(sequences, tokens, -1, self.head_dim).transpose(1, 2)


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020)."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)
        self.kernels: BlockKernels = "torch"

    def forward(self, x_btc: Tensor) -> Tensor:
        """Return `down(silu(gate(x)) · up(x))`, (B, T, C)."""
        if self.kernels == "triton":
            from llmtrain.ops.triton.swiglu import swiglu

            both = torch.cat([self.gate_proj.weight, self.up_proj.weight])
            hidden = swiglu(F.linear(x_btc, both))
        else:
            hidden = F.silu(self.gate_proj(x_btc)) * self.up_proj(x_btc)
        y_btc: Tensor = self.down_proj(hidden)
        return y_btc


class Block(nn.Module):
    """Attention, then feed-forward, each on a normalised input and added to the residual."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(shape.hidden_size, shape.norm_epsilon)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = RMSNorm(shape.hidden_size, shape.norm_epsilon)
        self.mlp = FeedForward(shape)
        self.checkpointing: ActivationCheckpointing = "off"
        self.kernels: BlockKernels = "torch"
        self._casts: WeightCasts | None = None  # of native kernels

    def forward(
        self,
        x_btc: Tensor,
        cos_td: Tensor,
        sin_td: Tensor,
        documents: DocumentMask | None = None,
    ) -> Tensor:
        """Return the residual stream after this block, (B, T, C)."""
        rest = cos_td, sin_td, documents
        if self.kernels == "native" and _suits_native(x_btc):
            return self._native(x_btc, *rest)
        return checkpointed(self.checkpointing, self._forward, x_btc, *rest)

    def use_kernels(self, kernels: BlockKernels, casts: WeightCasts | None = None) -> None:
        """Compute what surrounds products by these kernels from now on.

        `casts`: the copies of weights that native kernels multiply in training.
        """
        self.kernels, self._casts = kernels, casts
        for module in self.modules():
            if isinstance(module, (RMSNorm, FeedForward, Attention)):
                module.kernels = kernels

    def _forward(
        self,
        x_btc: Tensor,
        cos_td: Tensor,
        sin_td: Tensor,
        documents: DocumentMask | None,
    ) -> Tensor:
        x_btc, normed = self.input_layernorm.of_residual(x_btc)
        attended = self.self_attn(normed, cos_td, sin_td, documents)
        x_btc, normed = self.post_attention_layernorm.of_sum(x_btc, attended)
        mixed: Tensor = self.mlp(normed)
        return x_btc + mixed

    def _native(
        self, x_btc: Tensor, cos_td: Tensor, sin_td: Tensor, documents: DocumentMask | None
    ) -> Tensor:
        assert not isinstance(documents, BlockMask)
        heads, feed = self.self_attn, self.mlp
        layers = [heads.q_proj, heads.k_proj, heads.v_proj, heads.o_proj]
        layers += [feed.gate_proj, feed.up_proj, feed.down_proj]
        gains = Gains(
            self.input_layernorm.weight,
            self.post_attention_layernorm.weight,
            None if heads.q_norm is None else heads.q_norm.weight,
            None if heads.k_norm is None else heads.k_norm.weight,
        )
        layout = HeadsLayout(
            cos_td, sin_td, documents, heads.num_key_heads, self.input_layernorm.epsilon
        )
        # an evaluation has no backward to keep anything for
        checkpointing = self.checkpointing if torch.is_grad_enabled() else "full"
        if any(isinstance(layer, AdaptedLinear) for layer in layers):
            matrices, adapters = adapted_matrices(layers, self._cast)
            adapted: Tensor = NativeAdaptedBlock.apply(  # type: ignore[no-untyped-call]
                x_btc, matrices, gains, layout, checkpointing != "full", *adapters
            )
            return adapted
        weights = [layer.weight for layer in layers]
        y_btc: Tensor = NativeBlock.apply(  # type: ignore[no-untyped-call]
            x_btc,
            BlockCasts(self._stacked(weights[:3]), *map(self._cast, weights[3:])),
            layout,
            checkpointing,
            gains.attention,
            *weights[:4],
            gains.feed_forward,
            *weights[4:],
            gains.queries,
            gains.keys,
        )
        return y_btc

    def _cast(self, weight: Tensor) -> Tensor:
        """Return the weight in bf16; in an evaluation anew, as nobody keeps the copies current."""
        if self._casts is None or not torch.is_grad_enabled():
            return weight.detach().to(torch.bfloat16)
        return self._casts.plain(weight)

    def _stacked(self, weights: Sequence[Tensor]) -> Tensor:
        """Return what `_cast` returns of each weight, one below the other."""
        if self._casts is None or not torch.is_grad_enabled():
            return torch.cat([self._cast(weight) for weight in weights])
        return self._casts.stacked(weights)


def _suits_native(x: Tensor) -> bool:
    """Return whether native kernels compute on `x`: an fp32 residual stream, products in bf16."""
    return x.dtype == torch.float32 and compute_dtype(x) == torch.bfloat16


def compile_block(block: Block) -> None:
    """Compile the block at its next call, for that call's shapes."""
    silence_compiler_warning()
    block.compile(dynamic=False, options=_COMPILE_OPTIONS)


def load_compiler(device: torch.device) -> None:
    """Import torch's compiler, and let it find out which vector instructions a CPU has.

    The first call of something compiled would do both: the import is thousands of files, and a
    Xeon with AMX is probed six times, each time in a process of its own, which imports torch before
    torch 2.13 and on other systems than Linux. Without a C++ compiler the probe finds out nothing,
    as compiling will say.
    """
    for name in COMPILER_MODULES:
        import_module(name)
    if device.type != "cpu":
        return
    from torch._inductor import config
    from torch._inductor.cpu_vec_isa import pick_vec_isa
    from torch._inductor.exc import InvalidCxxCompiler

    with config.patch(_COMPILE_OPTIONS), suppress(InvalidCxxCompiler):
        pick_vec_isa()


def compile_inside(block: Block) -> None:
    """Compile what is within the block's hooks, which gather its weights, at its next call."""
    silence_compiler_warning()
    vars(block)["forward"] = torch.compile(
        block.forward, dynamic=False, options=dict(_COMPILE_OPTIONS)
    )


def run_eagerly(block: Block) -> None:
    """Call the block uncompiled from now on."""
    vars(block).pop("_compiled_call_impl", None)  # set by nn.Module.compile
    vars(block).pop("forward", None)
