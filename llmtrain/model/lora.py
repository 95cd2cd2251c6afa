"""A model beside whose weights, which are not trained, adapters are (`AdaptedLinear`).

Names of tensors are those of PEFT. An adapter is merged by adding (α / r) · B·A to W. Only the
matrices of blocks have adapters: the embedding and the head never change, so it does not matter
whether they are one matrix.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from llmtrain.choice import Precision
from llmtrain.errors import LlmtrainError
from llmtrain.model.adapted_linear import AdaptedLinear
from llmtrain.model.block import Block
from llmtrain.model.decoder import Decoder
from llmtrain.ops.rotary import rotary_table
from llmtrain.profile.lora_shape import TARGETS, LoraShape
from llmtrain.profile.shape import ModelShape

_TESTED_AT_ONCE = 1 << 20  # numbers
_A, _B = ".lora_A.weight", ".lora_B.weight"


def adapted_decoder(
    shape: ModelShape,
    tensors: Iterable[tuple[str, Tensor]],
    lora: LoraShape,
    dtype: torch.dtype,
) -> Decoder:
    """Return a model of which only adapters are trained; its own matrices become `dtype`.

    `tensors` are its weights, of any type, which are copied one at a time. Raises LlmtrainError
    unless they are just the weights of the shape.
    """
    with torch.device("meta"):
        model = Decoder(shape)
    backbone = model.model
    backbone.cos_td, backbone.sin_td = rotary_table(shape.head_dim, shape.context, shape.rope_theta)
    missing = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    for name, tensor in tensors:
        if missing.pop(name, None) != tensor.shape:
            raise LlmtrainError(f"{name} does not fit the model that adapters are trained beside")
        if not _is_finite(tensor):
            raise LlmtrainError(f"{name} of the model to fine-tune has numbers that are not finite")
        parent, _, own = name.rpartition(".")
        weight = tensor.to(dtype if tensor.dim() == 2 else torch.float32, copy=True)
        setattr(model.get_submodule(parent), own, nn.Parameter(weight, requires_grad=False))
    if missing:
        raise LlmtrainError(f"{min(missing)} is missing in the model to fine-tune")
    for block in backbone.blocks():
        add_adapters(block, lora)
    return model


def _is_finite(tensor: Tensor) -> bool:
    """Return whether all numbers are finite, in parts: the test makes copies."""
    parts = torch.split(tensor.flatten(), _TESTED_AT_ONCE)
    return all(bool(torch.isfinite(part).all()) for part in parts)


def add_adapters(block: Block, lora: LoraShape) -> None:
    """Put an adapter beside each of the block's matrices that has one; freeze all else."""
    block.requires_grad_(False)
    for target in lora.targets:
        parent = block.get_submodule(TARGETS[target])
        linear = parent.get_submodule(target)
        assert isinstance(linear, nn.Linear), target
        setattr(parent, target, AdaptedLinear(linear.weight.data, lora))


def freeze_matrices(module: nn.Module, precision: Precision) -> None:
    """Freeze the module's matrices; in bf16 where products are."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    for parameter in module.parameters():
        if parameter.dim() == 2:
            parameter.requires_grad_(False)
            parameter.data = parameter.data.to(dtype)


@torch.no_grad()
def reset_adapters(model: Decoder, seed: int) -> None:
    """Initialise every adapter from `seed`, the same on every device.

    A is drawn as in PEFT, uniformly with variance 1 / (3 · inputs), and B is zero: the model
    computes what it did before.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith(_A):
            bound = 1 / math.sqrt(parameter.shape[1])
            drawn = torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator)
            parameter.copy_(drawn)
        elif name.endswith(_B):
            parameter.zero_()


def trained_weights(model: Decoder) -> dict[str, Tensor]:
    """Return what is trained: all weights, or the adapters where there are some."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def adapter_shapes(
    shapes: Mapping[str, tuple[int, ...]], lora: LoraShape
) -> dict[str, tuple[int, ...]]:
    """Return the dimensions of every adapter's tensors, by name, of a model's weights."""
    found = dict[str, tuple[int, ...]]()
    for name, dims in shapes.items():
        stem = name.removesuffix(".weight")
        if stem.rpartition(".")[2] in lora.targets:
            found[stem + _A] = (lora.rank, dims[1])
            found[stem + _B] = (dims[0], lora.rank)
    return found


def merged_weights(
    weights: Mapping[str, Tensor], adapters: Mapping[str, Tensor], lora: LoraShape
) -> dict[str, Tensor]:
    """Return the weights with the adapters added, in fp32."""
    merged = dict(weights)
    for name, b in adapters.items():
        if name.endswith(_B):
            stem = name.removesuffix(_B)
            product = b.float() @ adapters[stem + _A].float()
            merged[stem + ".weight"] = weights[stem + ".weight"] + lora.scale * product
    return merged
