"""Build the optimizer's parameter groups, and save and load its state under readable names."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from llmtrain.choice import Algorithm
from llmtrain.errors import LlmtrainError
from llmtrain.model.decoder import Decoder
from llmtrain.model.optimizer import STATE, RoleOptimizer
from llmtrain.profile.schema import OptimSection
from llmtrain.recipe.learning_rate import Role, algorithm_of, peak_learning_rates
from llmtrain.train.distributed.replica import Replica
from llmtrain.train.distributed.sharded_optimizer import ShardedOptimizer
from llmtrain.train.distributed.sharding import part_of


def role_of(name: str, parameter: nn.Parameter) -> Role:
    """Return the role of a parameter. Raises ValueError for one that no group claims."""
    if name == "model.embed_tokens.weight":
        return "embedding"
    if name == "lm_head.weight":
        return "head"
    if parameter.dim() == 1:
        return "gain"
    if parameter.dim() == 2 and name.startswith("model.layers."):
        return "matrix"
    raise ValueError(f"no optimizer group claims {name} of shape {tuple(parameter.shape)}")


def build_optimizer(
    model: Decoder,
    section: OptimSection,
    product_dtype: torch.dtype = torch.float32,
    *,
    tokens_per_step: int,
    continues: bool = False,
    is_dpo: bool = False,
    sharded_over: Replica | None = None,
    native: bool = False,
) -> RoleOptimizer:
    """Build one group per role, with its algorithm and rate. Only hidden matrices decay.

    `continues`: the model begins with the weights of another one; `is_dpo`: and learns preferences.
    `sharded_over`: the ranks that its parameters are sharded over, if they are. `native`: update
    by native kernels, unless they are sharded.
    """
    by_role: dict[Role, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            by_role.setdefault(role_of(name, parameter), []).append(parameter)
    rates = peak_learning_rates(
        section, model.shape.hidden_size, tokens_per_step, continues=continues, is_dpo=is_dpo
    )
    groups = [
        {
            "params": parameters,
            "algorithm": algorithm_of(section, role),
            "lr": rates[role],
            "peak_lr": rates[role],
            "weight_decay": section.weight_decay if role == "matrix" else 0.0,
            "momentum": section.momentum,
            "betas": (section.beta1, section.beta2),
            "eps": section.epsilon,
        }
        for role, parameters in by_role.items()
    ]
    if sharded_over is None:
        return RoleOptimizer(groups, product_dtype=product_dtype, native=native)
    return ShardedOptimizer(groups, product_dtype=product_dtype, replica=sharded_over)


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's learning rate to its peak times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


def named_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's tensors, keyed `<parameter>.<state>`."""
    return {
        f"{name}.{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_named_state(
    model: nn.Module, optimizer: RoleOptimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Load the optimizer's state from whole `tensors`. Raises LlmtrainError if they do not fit.

    Of a sharded parameter's, this rank takes its part. Before the first update there are none.
    """
    if not tensors:
        return
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            found = _found(name, parameter, group["algorithm"], tensors)
            optimizer.state[parameter] = {
                key: (value if value.dim() == 0 else part_of(value, parameter)).to(
                    parameter.device, copy=True
                )
                for key, value in found.items()
            }


def _found(
    name: str, parameter: nn.Parameter, algorithm: Algorithm, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the state of a parameter in `tensors`, whole."""
    expected = dict.fromkeys(STATE[algorithm], parameter.shape)
    if "step" in expected:
        expected["step"] = torch.Size()
    found = {key: tensors[f"{name}.{key}"] for key in expected if f"{name}.{key}" in tensors}
    if {key: value.shape for key, value in found.items()} != expected:
        raise LlmtrainError(f"optimizer state of {name} is missing or has another shape")
    return found
