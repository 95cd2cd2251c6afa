"""A decoder-only transformer in the Qwen3 form; without query and key norms it is Llama.

Shapes: B sequences, T tokens, C hidden features, H query heads, G key heads, D features a head.
Parameters have their Hugging Face names, so that a checkpoint needs no conversion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmtrain.choice import ActivationCheckpointing, AttentionKernel, BlockKernels, LossKernel
from llmtrain.model.preferences import preference_weights
from llmtrain.ops.attention import causal_attention
from llmtrain.ops.checkpointing import checkpointed, silence_compiler_warning
from llmtrain.ops.documents import DocumentMask, document_mask, first_of_document
from llmtrain.ops.loss import (
    Exponentiate,
    compiled_exponentiate,
    exponentiate,
    linear_cross_entropy,
    token_cross_entropy,
)
from llmtrain.ops.norm import rms_norm
from llmtrain.ops.precision import WeightCasts, compute_dtype
from llmtrain.ops.recomputation import checkpointed_block
from llmtrain.ops.rotary import rotary_table, rotate
from llmtrain.profile.shape import ModelShape

INITIAL_STD = 0.02  # Radford et al. 2019
# While every block is the identity, a tied head gives each token's own logit std · hidden_size.
# If that grew with the width, a wide model would start far worse than guessing.
_LARGEST_TIED_LOGIT = 8.0
# Whether the C++ compiler supports this CPU's vector instructions shows at the first kernel;
# testing it beforehand compiles six programs.
_COMPILE_OPTIONS: dict[str, bool | int | str | Callable[..., object]] = {"cpp.vec_isa_ok": True}


def embedding_std(hidden_size: int) -> float:
    """Return the initial standard deviation of embeddings: 0.02, less from a width of 400 on."""
    return min(INITIAL_STD, _LARGEST_TIED_LOGIT / hidden_size)


class RMSNorm(nn.Module):
    """A learned gain on the root-mean-square normalised input."""

    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.epsilon = epsilon
        self.kernels: BlockKernels = "torch"

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised `x` in the type in which matrices are multiplied."""
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
        self.head_dim = shape.head_dim
        self.kernel: AttentionKernel = "sdpa"
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
        q, k, v = (
            self._heads(projection(x_btc)) for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = (
            rotate(x, cos_td, sin_td, x.dtype) if norm is None else norm.rotated(x, cos_td, sin_td)
            for x, norm in ((q, self.q_norm), (k, self.k_norm))
        )
        y_btc: Tensor = self.o_proj(causal_attention(q, k, v, self.kernel, documents))
        return y_btc

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

    def forward(
        self,
        x_btc: Tensor,
        cos_td: Tensor,
        sin_td: Tensor,
        documents: DocumentMask | None = None,
    ) -> Tensor:
        """Return the residual stream after this block, (B, T, C)."""
        rest = cos_td, sin_td, documents
        return checkpointed(self.checkpointing, self._forward, x_btc, *rest)

    def use_kernels(self, kernels: BlockKernels) -> None:
        """Compute what surrounds products by these kernels from now on."""
        for module in self.modules():
            if isinstance(module, (RMSNorm, FeedForward)):
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


def compile_block(block: Block) -> None:
    """Compile the block at its next call, for that call's shapes."""
    silence_compiler_warning()
    block.compile(dynamic=False, options=_COMPILE_OPTIONS)


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


class Backbone(nn.Module):
    """Embedding, blocks and final norm: everything before the head."""

    cos_td: Tensor
    sin_td: Tensor

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.checkpointing: ActivationCheckpointing = "off"
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Block(shape) for _ in range(shape.num_layers))
        self.norm = RMSNorm(shape.hidden_size, shape.norm_epsilon)
        self._rotations = shape.head_dim, shape.context, shape.rope_theta
        self.set_rotations()

    def set_rotations(self, device: torch.device | None = None) -> None:
        """Compute the angles of positions, on the device that modules are made on or on another."""
        cos_td, sin_td = rotary_table(*self._rotations)
        self.register_buffer("cos_td", cos_td.to(device), persistent=False)
        self.register_buffer("sin_td", sin_td.to(device), persistent=False)

    def blocks(self) -> Iterator[Block]:
        """Yield the blocks in order."""
        return (block for block in self.layers if isinstance(block, Block))

    def forward(
        self,
        tokens_bt: Tensor,
        casts: WeightCasts | None = None,
        first_bt: Tensor | None = None,
    ) -> Tensor:
        """Return final hidden states, (B, T, C).

        `first_bt`: the first token that each attends to, unless that is the window's first.
        """
        length = tokens_bt.shape[1]
        x_btc = as_residual(self.embed_tokens(tokens_bt))
        documents: DocumentMask | None = None
        if first_bt is not None:
            documents = document_mask(self._attention, first_bt, compute_dtype(x_btc))
        for block in self.layers:
            rest = self.cos_td[:length], self.sin_td[:length], documents
            call = block if casts is None else partial(casts.call, block)
            x_btc = checkpointed_block(self.checkpointing, block, call, x_btc, *rest)
        hidden: Tensor = self.norm(x_btc)
        return hidden

    @property
    def _attention(self) -> AttentionKernel:
        return next(self.blocks()).self_attn.kernel


def as_residual(embedded: Tensor) -> Tensor:
    """Return embeddings in the residual stream's type: fp32 where they are in half precision."""
    return embedded.float() if embedded.dtype.itemsize == 2 else embedded


class Decoder(nn.Module):
    """A causal language model. Its forward is the training objective."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        self.exponentiate: Exponentiate = exponentiate
        self.loss_kernel: LossKernel = "chunks"
        self.casts: WeightCasts | None = None
        # If set, tokens do not attend to anything before their document's separator.
        self.separator_id: int | None = None
        self.has_padding = False  # if True, targets below 0 do not count
        self.preference_beta = 0.0  # of pairs of answers
        self.model = Backbone(shape)
        self.lm_head = (
            None
            if shape.tie_embeddings
            else nn.Linear(shape.hidden_size, shape.vocab_size, bias=False)
        )

    @property
    def head_weight(self) -> Tensor:
        """The output projection from hidden states to logits, (vocabulary, C)."""
        embedding = self.model.embed_tokens
        return embedding.weight if self.lm_head is None else self.lm_head.weight

    def forward(
        self, tokens_bt: Tensor, targets_bt: Tensor, references_bt: Tensor | None = None
    ) -> Tensor:
        """Return the negative log-likelihood summed over all targets, in nats.

        With `references_bt` the windows hold pairs of answers, and the sum is that of their losses
        (`llmtrain.model.preferences`).
        """
        is_training = torch.is_grad_enabled()
        casts = self.casts if is_training else None
        hidden_nc = self._hidden(tokens_bt, targets_bt, casts).flatten(0, 1)
        loss_of = partial(
            linear_cross_entropy,
            hidden_nc,
            self.head_weight,
            targets_bt.flatten(),
            weight_cast_vd=None if casts is None else casts.plain(self.head_weight),
            # It is compiled for training's shapes; run eagerly, each of its passes would copy.
            exponentiate=self.exponentiate if is_training else exponentiate,
            has_padding=self.has_padding,
        )
        if references_bt is None:
            return loss_of(kernel=self.loss_kernel)
        assert self.separator_id is not None, "pairs are told apart by it"
        loss, weights_n = preference_weights(
            token_cross_entropy(hidden_nc.detach(), self.head_weight, targets_bt.flatten()),
            targets_bt.flatten(),
            references_bt.flatten(),
            self.preference_beta,
            self.separator_id,
        )
        weighted = loss_of(token_weights_n=weights_n)
        return weighted - weighted.detach() + loss  # its gradient is that of the loss

    @torch.no_grad()
    def token_losses(self, tokens_bt: Tensor, targets_bt: Tensor) -> Tensor:
        """Return the negative log-likelihood of each target, in nats, (B, T)."""
        hidden_nc = self._hidden(tokens_bt, targets_bt).flatten(0, 1)
        losses_n = token_cross_entropy(hidden_nc, self.head_weight, targets_bt.flatten())
        return losses_n.view(targets_bt.shape)

    def _hidden(
        self, tokens_bt: Tensor, targets_bt: Tensor, casts: WeightCasts | None = None
    ) -> Tensor:
        """Return final hidden states, (B, T, C); each document for itself if they are masked."""
        first_bt = None
        if self.separator_id is not None:
            first_bt = first_of_document(targets_bt, self.separator_id)
        hidden_btc: Tensor = self.model(tokens_bt, casts, first_bt)
        return hidden_btc

    def compute_with(
        self,
        *,
        attention: AttentionKernel = "sdpa",
        loss: LossKernel = "chunks",
        block_kernels: BlockKernels = "torch",
        checkpointing: ActivationCheckpointing = "off",
        casts: WeightCasts | None = None,
        compiled: bool = False,
        sharded: bool = False,
    ) -> None:
        """Choose how to compute from now on; the function stays the same.

        With `casts` the training forward multiplies those copies, which the caller keeps up to
        date. `compiled`: the block, once for all layers, and the softmax of the loss are compiled
        at their next call, for that call's shapes. `sharded`: hooks of a block gather its weights.
        Native kernels are loaded already.
        """
        self.loss_kernel = loss
        self.casts = casts
        # Compiled and sharded blocks checkpoint inside; others around, so that casts are not
        # repeated.
        is_inside = compiled or sharded
        self.model.checkpointing = "off" if is_inside else checkpointing
        for block in self.model.blocks():
            block.self_attn.kernel = attention
            block.use_kernels(block_kernels)
            block.checkpointing = checkpointing if is_inside else "off"
            run_eagerly(block)
            if compiled and sharded:
                compile_inside(block)
            elif compiled:
                compile_block(block)
        self.exponentiate = compiled_exponentiate() if compiled else exponentiate

    def logits(self, tokens_bt: Tensor) -> Tensor:
        """Return logits after every token, (B, T, vocabulary)."""
        return F.linear(self.model(tokens_bt), self.head_weight)

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Initialise weights from `seed`, the same on every device.

        Normal with standard deviation 0.02, embeddings with `embedding_std`. Projections that write
        to the residual stream start at zero, so that every block starts as the identity (Zhang et
        al. 2019, "Fixup"; nanochat).
        """
        parameters = dict(self.named_parameters())
        for name, drawn in self.drawn_weights(seed):
            parameters[name].copy_(drawn)

    def drawn_weights(self, seed: int) -> Iterator[tuple[str, Tensor]]:
        """Yield the name of every parameter with what `initialise` sets it to, on the CPU."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            drawn = torch.empty(parameter.shape)
            if parameter.dim() < 2:
                yield name, drawn.fill_(1.0)
            elif name.endswith(("o_proj.weight", "down_proj.weight")):
                yield name, drawn.zero_()
            else:
                is_embedding = name == "model.embed_tokens.weight"
                std = embedding_std(self.shape.hidden_size) if is_embedding else INITIAL_STD
                yield name, drawn.normal_(0, std, generator=generator)
