"""Every parameter is stepped once, as its role says, and the state survives a round trip."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from llmtrain.errors import LlmtrainError
from llmtrain.model.decoder import Decoder
from llmtrain.profile.schema import ModelSection, OptimSection
from llmtrain.profile.shape import shape_of
from llmtrain.train.parameter_groups import (
    build_optimizer,
    load_named_state,
    named_state,
    role_of,
    set_learning_rate,
)

SECTION = ModelSection(
    vocab_size=300, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=2, context=8
)
OPTIM = OptimSection(
    name="adamw", learning_rate=1e-2, embedding_learning_rate=3e-2, head_learning_rate=2e-3
)
MUON = OPTIM.model_copy(update={"name": "muon"})


def make_model(*, tied: bool = True, qk_norm: bool = True) -> Decoder:
    section = SECTION.model_copy(update={"tie_embeddings": tied, "qk_norm": qk_norm})
    model = Decoder(shape_of(section))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    return model


def give_gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("section", [OPTIM, MUON], ids=["adamw", "muon"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("qk_norm", [True, False])
def test_every_parameter_is_in_one_group(tied: bool, qk_norm: bool, section: OptimSection) -> None:
    model = make_model(tied=tied, qk_norm=qk_norm)
    groups = build_optimizer(model, section, tokens_per_step=8192).param_groups
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    assert len(groups) == (3 if tied else 4)


@pytest.mark.parametrize(("section", "gain_rate"), [(OPTIM, 1e-2), (MUON, 3e-2)])
def test_roles_have_their_own_rates_and_only_matrices_decay(
    section: OptimSection, gain_rate: float
) -> None:
    model = make_model(tied=False)
    found = {}
    for group in build_optimizer(model, section, tokens_per_step=8192).param_groups:
        for parameter in group["params"]:
            found[id(parameter)] = (group["lr"], group["weight_decay"])
    for name, parameter in model.named_parameters():
        expected = {
            "embed_tokens": (3e-2, 0.0),
            "lm_head": (2e-3, 0.0),
            "proj": (1e-2, 0.1),
            "norm": (gain_rate, 0.0),
        }
        assert found[id(parameter)] == next(v for key, v in expected.items() if key in name)


def test_adamw_steps_what_torchs_own_does() -> None:
    ours, theirs = make_model(tied=False), make_model(tied=False)
    optimizer = build_optimizer(ours, OPTIM, tokens_per_step=8192)
    names = {parameter: name for name, parameter in ours.named_parameters()}
    groups = [
        {
            "params": [theirs.get_parameter(names[p]) for p in group["params"]],
            "lr": group["lr"],
            "weight_decay": group["weight_decay"],
        }
        for group in optimizer.param_groups
    ]
    torchs = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)
    for seed in range(4):
        give_gradients(ours, seed)
        give_gradients(theirs, seed)
        optimizer.step()
        torchs.step()
    for name, value in values(ours).items():
        assert torch.equal(value, theirs.get_parameter(name))


@pytest.mark.parametrize("section", [OPTIM, MUON], ids=["adamw", "muon"])
def test_without_gradients_only_matrices_shrink(section: OptimSection) -> None:
    model = make_model(tied=False)
    before = values(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    build_optimizer(model, section, tokens_per_step=8192).step()
    for name, value in values(model).items():
        shrunk = before[name] * (1 - 1e-2 * 0.1) if "proj" in name else before[name]
        torch.testing.assert_close(value, shrunk, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("model.layers.0.router.weight", (4, 4, 4)),
        ("model.memory.weight", (4, 4)),
        ("model.scale", ()),
        ("embed_tokens.weight", (4, 4)),
    ],
)
def test_a_parameter_that_no_group_claims_is_an_error(name: str, size: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=f"claims {name}"):
        role_of(name, nn.Parameter(torch.zeros(size)))


def test_an_unclaimed_parameter_stops_the_optimizer() -> None:
    model = make_model()
    model.register_parameter("extra", nn.Parameter(torch.zeros(2, 2)))
    with pytest.raises(ValueError, match="extra"):
        build_optimizer(model, OPTIM, tokens_per_step=8192)


def test_the_schedule_scales_every_group_from_its_peak() -> None:
    optimizer = build_optimizer(make_model(tied=False), OPTIM, tokens_per_step=8192)
    for factor in (0.5, 0.1, 1.0):
        set_learning_rate(optimizer, factor)
        rates = sorted(group["lr"] for group in optimizer.param_groups)
        assert rates == pytest.approx([2e-3 * factor, 1e-2 * factor, 1e-2 * factor, 3e-2 * factor])


@pytest.mark.parametrize("section", [OPTIM, MUON], ids=["adamw", "muon"])
def test_state_by_name_gives_the_next_step_bitwise(section: OptimSection) -> None:
    model = make_model(tied=False)
    optimizer = build_optimizer(model, section, tokens_per_step=8192)
    for seed in range(3):
        give_gradients(model, seed)
        optimizer.step()
    kept = {name: t.clone() for name, t in named_state(model, optimizer).items()}
    other = make_model(tied=False)
    other.load_state_dict(model.state_dict())
    resumed = build_optimizer(other, section, tokens_per_step=8192)
    load_named_state(other, resumed, kept)
    for seed in range(3, 6):
        for either, steps in ((model, optimizer), (other, resumed)):
            give_gradients(either, seed)
            steps.step()
        for name, value in values(model).items():
            assert torch.equal(value, other.get_parameter(name))
    after, again = named_state(model, optimizer), named_state(other, resumed)
    assert after.keys() == again.keys()
    assert all(torch.equal(after[name], again[name]) for name in after)


@pytest.fixture
def stepped() -> dict[str, Tensor]:
    model = make_model()
    optimizer = build_optimizer(model, OPTIM, tokens_per_step=8192)
    give_gradients(model, 0)
    optimizer.step()
    return named_state(model, optimizer)


def test_state_is_keyed_by_parameter(stepped: dict[str, Tensor]) -> None:
    assert set(stepped) == {
        f"{name}.{key}"
        for name, _ in make_model().named_parameters()
        for key in ("step", "exp_avg", "exp_avg_sq")
    }


def test_muon_keeps_one_tensor_of_a_matrix() -> None:
    model = make_model()
    optimizer = build_optimizer(model, MUON, tokens_per_step=8192)
    give_gradients(model, 0)
    optimizer.step()
    kept = {name.rpartition(".")[::2] for name in named_state(model, optimizer)}
    for name, _ in model.named_parameters():
        found = {state for parameter, state in kept if parameter == name}
        is_matrix = "proj" in name
        assert found == ({"momentum"} if is_matrix else {"step", "exp_avg", "exp_avg_sq"})


def test_state_of_another_algorithm_does_not_fit() -> None:
    model = make_model()
    optimizer = build_optimizer(model, MUON, tokens_per_step=8192)
    give_gradients(model, 0)
    optimizer.step()
    with pytest.raises(LlmtrainError, match="is missing"):
        load_named_state(
            model,
            build_optimizer(model, OPTIM, tokens_per_step=8192),
            named_state(model, optimizer),
        )


def test_an_optimizer_that_has_not_stepped_goes_on_as_a_fresh_one() -> None:
    model = make_model()
    optimizer = build_optimizer(model, OPTIM, tokens_per_step=8192)
    load_named_state(model, optimizer, named_state(model, optimizer))
    give_gradients(model, 1)
    optimizer.step()
    fresh = make_model()
    other = build_optimizer(fresh, OPTIM, tokens_per_step=8192)
    give_gradients(fresh, 1)
    other.step()
    ours, theirs = values(model), values(fresh)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_loaded_state_is_a_copy(stepped: dict[str, Tensor]) -> None:
    kept = {name: t.clone() for name, t in stepped.items()}
    model = make_model()
    optimizer = build_optimizer(model, OPTIM, tokens_per_step=8192)
    load_named_state(model, optimizer, stepped)
    give_gradients(model, 1)
    optimizer.step()
    assert all(torch.equal(stepped[name], kept[name]) for name in kept)


NAME = "model.layers.1.mlp.up_proj.weight"


def without(key: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: {k: v for k, v in state.items() if not k.startswith(f"{NAME}{key}")}


def with_value(key: str, value: Tensor) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: state | {f"{NAME}.{key}": value}


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(without(""), id="nothing"),
        pytest.param(without(".step"), id="no step"),
        pytest.param(without(".exp_avg"), id="no moments"),
        pytest.param(without(".exp_avg_sq"), id="no second moment"),
        pytest.param(with_value("exp_avg", torch.zeros(16, 24)), id="turned"),
        pytest.param(with_value("exp_avg_sq", torch.zeros(24 * 16)), id="flat"),
        pytest.param(with_value("step", torch.zeros(2)), id="two steps"),
    ],
)
def test_state_that_does_not_fit_is_named(
    stepped: dict[str, Tensor], change: Callable[[dict[str, Tensor]], dict[str, Tensor]]
) -> None:
    model = make_model()
    with pytest.raises(LlmtrainError, match=NAME):
        load_named_state(
            model, build_optimizer(model, OPTIM, tokens_per_step=8192), change(stepped)
        )
