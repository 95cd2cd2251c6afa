"""Exact parameter and FLOP counts of a decoder, from its shape alone."""

from __future__ import annotations

from dataclasses import dataclass

from llmtrain.profile.schema import ModelSection

_MUON_ITERATIONS = 5  # of Newton-Schulz, three matrix products each


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A decoder's shape, with every `auto` resolved."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    context: int
    rope_theta: float
    norm_epsilon: float
    qk_norm: bool
    tie_embeddings: bool

    @property
    def attention_width(self) -> int:
        """Total features of all query heads."""
        return self.num_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Total features of all key heads; those of the value heads are as many."""
        return self.num_kv_heads * self.head_dim

    @property
    def block_matrix_parameters(self) -> int:
        """Number of weights in the seven matrices of one block."""
        attention = 2 * self.hidden_size * (self.attention_width + self.kv_width)
        return attention + 3 * self.hidden_size * self.intermediate_size

    @property
    def block_parameters(self) -> int:
        """Number of weights of one block: matrices, two norm gains, and query and key gains."""
        gains = 2 * self.hidden_size + (2 * self.head_dim if self.qk_norm else 0)
        return self.block_matrix_parameters + gains

    @property
    def embedding_parameters(self) -> int:
        """Number of weights of the embedding, and of the head if it is not tied."""
        return self.vocab_size * self.hidden_size * (1 if self.tie_embeddings else 2)

    @property
    def parameters(self) -> int:
        """Number of weights of the model."""
        blocks = self.num_layers * self.block_parameters
        return self.embedding_parameters + blocks + self.hidden_size

    @property
    def training_flops_per_token(self) -> int:
        """Model FLOPs of one token's forward and backward pass.

        They are 2 FLOPs for each weight and token forward and twice that backward, for every
        matrix that is multiplied (the head, but not the embedding), plus the attention products
        over the causal half of the context: scores and values, 2·2·width·context/2 for each layer
        forward (Chowdhery et al. 2022, appendix B, halved for causality).
        """
        matrices = self.num_layers * self.block_matrix_parameters
        head = self.vocab_size * self.hidden_size
        attention = self.num_layers * 2 * self.attention_width * self.context
        return 3 * (2 * (matrices + head) + attention)


def shape_of(section: ModelSection) -> ModelShape:
    """Return the shape of a profile's model section, with each `auto` resolved."""
    values = section.model_dump(exclude={"init_from"})
    if section.num_kv_heads == "auto":
        values["num_kv_heads"] = section.num_heads
    if section.head_dim == "auto":
        values["head_dim"] = section.hidden_size // section.num_heads
    return ModelShape(**values)


def muon_flops(shape: ModelShape) -> int:
    """Return the FLOPs of one step of Muon, to orthogonalize every hidden matrix."""
    width, inner = shape.hidden_size, shape.intermediate_size
    flops = 2 * orthogonalization_flops(width, shape.attention_width)
    flops += 2 * orthogonalization_flops(width, shape.kv_width)
    flops += 3 * orthogonalization_flops(width, inner)
    return shape.num_layers * flops


def orthogonalization_flops(rows: int, columns: int) -> int:
    """Return the FLOPs to orthogonalize one matrix X.

    Each iteration computes X·Xᵀ, its square, and a polynomial of it times X.
    """
    short, long = sorted((rows, columns))
    return _MUON_ITERATIONS * (2 * 2 * short * short * long + 2 * short**3)
