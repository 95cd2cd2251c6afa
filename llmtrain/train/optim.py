"""The optimizer: every parameter in exactly one group, its state under readable names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from llmtrain.errors import LlmtrainError
from llmtrain.profile.schema import OptimSection

Role = Literal["matrix", "gain", "embedding", "head"]
_STATE = ("step", "exp_avg", "exp_avg_sq")  # what AdamW keeps for a parameter


def role_of(name: str, parameter: nn.Parameter) -> Role:
    """What a parameter is for. Raises ValueError for one that no group claims."""
    if name == "model.embed_tokens.weight":
        return "embedding"
    if name == "lm_head.weight":
        return "head"
    if parameter.dim() == 1:
        return "gain"
    if parameter.dim() == 2 and name.startswith("model.layers."):
        return "matrix"
    raise ValueError(f"no optimizer group claims {name} of shape {tuple(parameter.shape)}")


def peak_learning_rate(section: OptimSection, role: Role) -> float:
    """The learning rate of a role before the schedule; `auto` is the hidden matrices'."""
    special = {
        "embedding": section.embedding_learning_rate,
        "head": section.head_learning_rate,
    }.get(role, "auto")
    return section.learning_rate if special == "auto" else special


def build_optimizer(
    model: nn.Module, section: OptimSection, kernel: Literal["fused", "foreach"]
) -> torch.optim.AdamW:
    """AdamW with one group a role. Only hidden matrices decay."""
    by_role: dict[Role, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        by_role.setdefault(role_of(name, parameter), []).append(parameter)
    groups = [
        {
            "params": parameters,
            "lr": peak_learning_rate(section, role),
            "peak_lr": peak_learning_rate(section, role),
            "weight_decay": section.weight_decay if role == "matrix" else 0.0,
        }
        for role, parameters in by_role.items()
    ]
    return torch.optim.AdamW(
        groups,
        betas=(section.beta1, section.beta2),
        eps=section.epsilon,
        fused=kernel == "fused",
        foreach=kernel == "foreach",
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Every group's learning rate is its peak times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


def named_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's tensors, keyed `<parameter>.<state>`."""
    return {
        f"{name}.{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }


def load_named_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """The optimizer goes on from `tensors`. Raises LlmtrainError where they do not fit."""
    for name, parameter in model.named_parameters():
        found = {key: tensors[f"{name}.{key}"] for key in _STATE if f"{name}.{key}" in tensors}
        expected = dict.fromkeys(_STATE, parameter.shape) | {"step": torch.Size()}
        if {key: value.shape for key, value in found.items()} != expected:
            raise LlmtrainError(f"optimizer state of {name} is missing or has another shape")
        optimizer.state[parameter] = {
            key: value.clone() if key == "step" else value.to(parameter.device, copy=True)
            for key, value in found.items()
        }
        if parameter.device.type != "cpu":
            step = optimizer.state[parameter]["step"]
            optimizer.state[parameter]["step"] = step.to(parameter.device)  # where fused wants it
