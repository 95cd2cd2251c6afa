"""What is computed again in the backward is exactly what was not to be kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from llmtrain.choice import ActivationCheckpointing, AttentionKernel
from llmtrain.ops.attention import causal_attention
from llmtrain.ops.checkpointing import checkpointed, silence_compiler_warning

PRODUCTS = {"mm"}
ATTENTION = {"_scaled_dot_product_flash_attention_for_cpu", "blocked_attention"}
PASSES = {"silu", "mul"}


def mixed(x: Tensor, up: Tensor, down: Tensor, kernel: AttentionKernel) -> Tensor:
    """Two products, attention, and passes over memory between them."""
    heads = (F.silu(x @ up) * 2).view(2, 10, 3, 4).transpose(1, 2)
    return F.silu(causal_attention(heads, heads, heads, kernel).flatten(0, 1) @ down)


def draw(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, up, down = (torch.randn(*s, generator=generator) for s in ((20, 8), (8, 12), (12, 8)))
    return x.to(dtype).requires_grad_(), up.to(dtype).requires_grad_(), down.requires_grad_()


class Counted(TorchDispatchMode):
    """How often each operator ran."""

    def __init__(self) -> None:
        super().__init__()
        self.runs: Counter[str] = Counter()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        self.runs[func.overloadpacket.__name__] += 1  # type: ignore[attr-defined]
        return func(*args, **(kwargs or {}))

    def of(self, names: set[str]) -> int:
        return sum(self.runs[name] for name in names)


@pytest.mark.parametrize("kernel", ["sdpa", "blocks"])
@pytest.mark.parametrize(
    ("mode", "products", "attention", "passes"),
    [("off", 0, 0, 0), ("selective", 0, 0, True), ("full", 2, 1, True)],
)
def test_the_backward_computes_again_what_was_not_kept(
    mode: ActivationCheckpointing,
    products: int,
    attention: int,
    passes: bool,
    kernel: AttentionKernel,
) -> None:
    """Beyond what the backward of what keeps all runs."""
    again = {}
    for tried in ("off", mode):
        y = checkpointed(tried, mixed, *draw(), kernel)
        with Counted() as counted:
            y.sum().backward()
        again[tried] = counted
    plain, found = again["off"], again[mode]
    assert found.of(PRODUCTS) - plain.of(PRODUCTS) == products
    assert found.of(ATTENTION) - plain.of(ATTENTION) == attention
    assert (found.of(PASSES) > plain.of(PASSES)) is bool(passes)


@pytest.mark.parametrize("kernel", ["sdpa", "blocks"])
@pytest.mark.parametrize("mode", ["selective", "full"])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_value_and_gradients_are_bitwise_those_of_what_keeps_all(
    precision: torch.dtype, mode: ActivationCheckpointing, kernel: AttentionKernel
) -> None:
    found = []
    for tried in ("off", mode):
        inputs = draw()
        with torch.autocast("cpu", dtype=precision, enabled=precision != torch.float32):
            y = checkpointed(tried, mixed, *inputs, kernel)
        found.append([y, *torch.autograd.grad(y.float().square().sum(), inputs)])
    assert all(map(torch.equal, *found))


def test_nothing_is_computed_twice_where_no_gradient_is_wanted() -> None:
    for mode in ("off", "selective", "full"):
        with torch.no_grad(), Counted() as counted:
            y = checkpointed(mode, mixed, *draw(), "blocks")
        assert counted.of(PRODUCTS) == 2
        assert not y.requires_grad


def test_an_error_in_the_function_is_its_own() -> None:
    def fail(_: Tensor) -> Tensor:
        raise ValueError("no such thing")

    for mode in ("off", "selective", "full"):
        with pytest.raises(ValueError, match="no such thing"):
            checkpointed(mode, fail, draw()[0])


@torch.library.custom_op("llmtrain_tests::doubled", mutates_args=())
def _doubled(x: Tensor) -> Tensor:
    return 2 * x


@_doubled.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Doubled(torch.autograd.Function):
    """An operator that the compiler cannot look into, in a function with a backward of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return _doubled(x)

    @staticmethod
    def backward(ctx: Any, d_y: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * d_y + 0 * x


def of_own_operators(x: Tensor, w: Tensor) -> Tensor:
    """Products around the operator, whose backward needs what it returns."""
    return F.silu(F.silu(Doubled.apply(x @ w)) @ w)  # type: ignore[no-untyped-call]


# torch hides them from users, though not from a filter that makes them errors
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled_and_full_only_the_arguments_are_saved() -> None:
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(n, 8, generator=generator, requires_grad=True) for n in (20, 8))
    silence_compiler_warning()
    torch.compiler.reset()
    compiled = torch.compile(
        partial(checkpointed, "full", of_own_operators),
        dynamic=False,
        backend="aot_eager_decomp_partition",  # divides forward and backward as Inductor does
    )
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        found = compiled(x, w)
    own = {x.data_ptr(), w.data_ptr()}
    assert {tensor.data_ptr() for tensor in saved} == own
    expected = torch.autograd.grad(of_own_operators(x, w).sum(), (x, w))
    for a, b in zip(torch.autograd.grad(found.sum(), (x, w)), expected, strict=True):
        torch.testing.assert_close(a, b)
    torch.compiler.reset()
