"""A decoder-only transformer in the Qwen3 form; without query and key norms it is Llama.

Shapes: B sequences, T tokens, C hidden features, H query heads, G key heads, D features a head.
Parameters have their Hugging Face names, so that a checkpoint needs no conversion.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmtrain.choice import ActivationCheckpointing, AttentionKernel, BlockKernels, LossKernel
from llmtrain.model.block import (
    Block,
    RMSNorm,
    compile_block,
    compile_inside,
    load_compiler,
    run_eagerly,
)
from llmtrain.model.preferences import preference_weights
from llmtrain.ops.documents import DocumentMask, document_mask, first_of_document
from llmtrain.ops.loss import (
    Exponentiate,
    compiled_exponentiate,
    exponentiate,
    linear_cross_entropy,
    token_cross_entropy,
)
from llmtrain.ops.precision import WeightCasts, compute_dtype
from llmtrain.ops.recomputation import checkpointed_block
from llmtrain.ops.rotary import rotary_table
from llmtrain.profile.shape import ModelShape

INITIAL_STD = 0.02  # Radford et al. 2019
# While every block is the identity, a tied head gives each token's own logit std · hidden_size.
# If that grew with the width, a wide model would start far worse than guessing.
_LARGEST_TIED_LOGIT = 8.0


def embedding_std(hidden_size: int) -> float:
    """Return the initial standard deviation of embeddings: 0.02, less from a width of 400 on."""
    return min(INITIAL_STD, _LARGEST_TIED_LOGIT / hidden_size)


class Backbone(nn.Module):
    """Embedding, blocks and final norm: everything before the head."""

    cos_td: Tensor
    sin_td: Tensor

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.checkpointing: ActivationCheckpointing = "off"
        self.kernels: BlockKernels = "torch"
        self.embed_tokens = _embedding(shape.vocab_size, shape.hidden_size)
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
        if self.kernels == "native":  # has the copies, and gives gradients in fp32
            casts = None
        x_btc = as_residual(self.embed_tokens(tokens_bt))
        documents: DocumentMask | None = None
        if first_bt is not None and self.layers:
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


class Embedding(nn.Embedding):
    """An embedding whose gradient may be the rows of its tokens, to be added to a dense one.

    Not by torch's own attribute for that, from which DDP concludes that the sum is sparse, too.
    """

    has_sparse_gradient = False

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the row of each token."""
        return F.embedding(tokens, self.weight, sparse=self.has_sparse_gradient)


def _embedding(rows: int, width: int) -> Embedding:
    """Return an embedding with random weights; on the meta device it has none.

    To draw numbers there, torch imports its compiler: some 80 MiB of the process.
    """
    if torch.get_default_device().type == "meta":
        return Embedding(rows, width, _weight=torch.empty(rows, width))
    return Embedding(rows, width)


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
        # Compiled, sharded and native blocks checkpoint inside; others around, so that casts are
        # not repeated.
        is_inside = compiled or sharded or block_kernels == "native"
        self.model.checkpointing = "off" if is_inside else checkpointing
        self.model.kernels = block_kernels
        # Where the weight is also the head's, autograd has that gradient by then: a dense one of
        # the embedding would be cleared and read whole for a few thousand rows.
        is_on_cpu = self.head_weight.device.type == "cpu"
        is_added = is_on_cpu and self.shape.tie_embeddings and not sharded
        self.model.embed_tokens.has_sparse_gradient = is_added
        self.model.norm.kernels = "native" if block_kernels == "native" else "torch"
        if compiled:
            load_compiler(self.head_weight.device)
        for block in self.model.blocks():
            block.self_attn.kernel = attention
            block.use_kernels(block_kernels, casts)
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
