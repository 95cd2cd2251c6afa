"""The shape of low-rank adapters, and exact counts of their parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llmtrain.profile.schema import LoraSection
from llmtrain.profile.shape import ModelShape

# The matrices of a block, by name, and the part of the block that each is in.
TARGETS: Mapping[str, str] = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), "self_attn"),
    **dict.fromkeys(("gate_proj", "up_proj", "down_proj"), "mlp"),
}


@dataclass(frozen=True, slots=True)
class LoraShape:
    """Adapters of one rank beside some matrices of every block."""

    rank: int
    alpha: float
    targets: tuple[str, ...]

    @property
    def scale(self) -> float:
        """The factor of an adapter's product."""
        return self.alpha / self.rank

    def parameters(self, shape: ModelShape) -> int:
        """Return the number of weights of all adapters of a model."""
        return shape.num_layers * self.rank * self.features(shape)

    def features(self, shape: ModelShape) -> int:
        """Return the inputs and outputs of a block's adapted matrices, added up."""
        hidden, inner = shape.hidden_size, shape.intermediate_size
        widths = {"q_proj": shape.attention_width, "o_proj": shape.attention_width}
        widths |= dict.fromkeys(("k_proj", "v_proj"), shape.kv_width)
        widths |= dict.fromkeys(("gate_proj", "up_proj", "down_proj"), inner)
        return sum(hidden + widths[target] for target in self.targets)


def lora_shape_of(section: LoraSection) -> LoraShape | None:
    """Return the shape of a profile's adapters; None if it trains all weights."""
    if section.rank is None:
        return None
    targets = tuple(TARGETS) if section.targets == "all" else section.targets
    return LoraShape(section.rank, section.alpha, tuple(dict.fromkeys(targets)))
