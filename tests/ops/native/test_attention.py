"""The native attention kernels: as accurate as torch's, bitwise repeatable, for every shape."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from llmtrain.ops.attention import causal_attention

LARGEST_ERROR = {torch.bfloat16: 1e-2, torch.float32: 5e-6}
# times the error of torch's kernel in the same type; fp32's is that of sums in another order
OF_TORCH = {torch.bfloat16: 1.2, torch.float32: 2.0}
# (sequences, heads, key heads, tokens, head size)
SHAPES = [
    (2, 3, 3, 512, 64),
    (1, 4, 2, 700, 128),  # two blocks of keys in the forward; a block that is not full
    (2, 4, 1, 33, 80),
    (1, 3, 3, 129, 48),
    (1, 2, 1, 260, 36),
    (3, 2, 2, 9, 32),
]
ODD_SHAPES = [(1, 2, 1, 260, 37), (2, 6, 2, 1100, 50)]  # fp32 takes any size
Inputs = tuple[Tensor, Tensor, Tensor]


@pytest.fixture(params=[torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    found: torch.dtype = request.param
    name = "native_fp32_kernels" if found == torch.float32 else "native_kernels"
    request.getfixturevalue(name)
    return found


def draw(
    shape: tuple[int, int, int, int, int], dtype: torch.dtype, factor: float = 1.0
) -> tuple[Inputs, Tensor]:
    """Return queries, keys and values as a projection leaves them, and a gradient of the result."""
    sequences, heads, key_heads, tokens, size = shape
    generator = torch.Generator().manual_seed(0)

    def random(*dims: int) -> Tensor:
        return torch.randn(*dims, generator=generator).to(dtype)

    q, k, v = (
        random(sequences, tokens, number, size).transpose(1, 2)
        for number in (heads, key_heads, key_heads)
    )
    return (factor * q, k, v), random(sequences, tokens, heads * size)


def first_tokens(sequences: int, tokens: int) -> Tensor:
    """Return the first token that each attends to, of three documents in each sequence."""
    generator = torch.Generator().manual_seed(1)
    starts, _ = torch.randint(0, tokens, (sequences, 2), generator=generator).sort()
    positions = torch.arange(tokens)
    begun = torch.where(positions >= starts[:, :, None], starts[:, :, None], 0)
    return begun.amax(dim=1).int()


def gradients(attend: Callable[..., Tensor], inputs: Inputs, d_y: Tensor) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    y = attend(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, d_y.to(y.dtype))]


def native(inputs: Inputs, d_y: Tensor, first: Tensor | None) -> list[Tensor]:
    return gradients(lambda q, k, v: causal_attention(q, k, v, "native", first), inputs, d_y)


def torchs(inputs: Inputs, d_y: Tensor, first: Tensor | None, dtype: torch.dtype) -> list[Tensor]:
    keys = torch.arange(d_y.shape[1])
    mask = keys <= keys[:, None]
    if first is not None:
        mask = mask & (keys >= first[:, None, :, None])

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        return y.transpose(1, 2).flatten(2)

    q, k, v = (x.to(dtype) for x in inputs)
    return gradients(attend, (q, k, v), d_y)


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm().clamp_min(1e-30))


def assert_as_accurate_as_torch(
    shape: tuple[int, int, int, int, int], factor: float, masked: bool, dtype: torch.dtype
) -> None:
    inputs, d_y = draw(shape, dtype, factor)
    first = first_tokens(shape[0], shape[3]) if masked else None
    exact = torchs(inputs, d_y, first, torch.float64)
    in_same_type = torchs(inputs, d_y, first, dtype)
    for found, reference, other in zip(
        native(inputs, d_y, first), exact, in_same_type, strict=True
    ):
        assert found.shape == reference.shape
        assert found.dtype == dtype
        allowed = OF_TORCH[dtype] * error(other, reference) + 1e-6
        assert error(found, reference) <= min(LARGEST_ERROR[dtype], allowed)


@pytest.mark.parametrize("masked", [False, True], ids=["causal", "documents"])
@pytest.mark.parametrize("factor", [1.0, 4.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_as_accurate_as_torch(
    shape: tuple[int, int, int, int, int], factor: float, masked: bool, dtype: torch.dtype
) -> None:
    assert_as_accurate_as_torch(shape, factor, masked, dtype)


@pytest.mark.usefixtures("native_fp32_kernels")
@pytest.mark.parametrize("masked", [False, True], ids=["causal", "documents"])
@pytest.mark.parametrize("shape", ODD_SHAPES, ids=str)
def test_in_fp32_heads_have_any_size(shape: tuple[int, int, int, int, int], masked: bool) -> None:
    assert_as_accurate_as_torch(shape, 1.0, masked, torch.float32)


@pytest.mark.parametrize("threads", [1, 3, 8])
def test_a_number_of_threads_gives_the_same_bits_each_time(
    threads: int, dtype: torch.dtype
) -> None:
    inputs, d_y = draw((1, 4, 2, 700, 64), dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        once, again = (native(inputs, d_y, first_tokens(1, 700)) for _ in range(2))
    finally:
        torch.set_num_threads(before)
    exact = torchs(inputs, d_y, first_tokens(1, 700), torch.float64)
    for a, b, reference in zip(once, again, exact, strict=True):
        assert torch.equal(a, b)
        assert error(a, reference) < LARGEST_ERROR[dtype]


def test_later_tokens_and_other_documents_are_not_seen(dtype: torch.dtype) -> None:
    (q, k, v), _ = draw((1, 2, 2, 300, 32), dtype)
    first = torch.where(torch.arange(300) < 100, 0, 100)[None].int()
    before = causal_attention(q, k, v, "native", first)
    k, v = k.clone(), v.clone()
    k[:, :, 200:], v[:, :, 200:] = 7.0, torch.nan
    assert torch.equal(causal_attention(q, k, v, "native", first)[:, :128], before[:, :128])
    k[:, :, :99], v[:, :, :99] = -7.0, 5.0
    found = causal_attention(q, k, v, "native", first)
    assert torch.equal(found[:, 100:128], before[:, 100:128])


def test_one_position_attends_to_itself(dtype: torch.dtype) -> None:
    (q, k, v), d_y = draw((2, 2, 1, 1, 64), dtype)
    y, d_q, d_k, d_v = native((q, k, v), d_y, None)
    assert torch.equal(y, torch.cat([v.flatten(1)] * 2, dim=1)[:, None])
    assert d_q.abs().max() < 0.05
    assert d_k.abs().max() < 0.05
    expected = d_y.double().view(2, 1, 2, 64).sum(2, keepdim=True)
    assert error(d_v, expected) < LARGEST_ERROR[dtype]


def test_not_a_number_is_passed_on(dtype: torch.dtype) -> None:
    (q, k, v), _ = draw((1, 1, 1, 40, 32), dtype)
    q = q.clone()
    q[0, 0, 5] = torch.nan
    y = causal_attention(q, k, v, "native")
    assert y[0, 5].isnan().all()
    assert y[0, :5].isfinite().all()


def test_compiled_code_calls_it(dtype: torch.dtype) -> None:
    inputs, d_y = draw((1, 2, 1, 64, 32), dtype)

    def around(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return 2 * causal_attention(q * 0.5, k, v, "native")

    eager = gradients(around, inputs, d_y)
    compiled = gradients(torch.compile(around, backend="aot_eager", fullgraph=True), inputs, d_y)
    for a, b in zip(eager, compiled, strict=True):
        assert torch.equal(a, b)


def test_its_description_for_the_compiler_is_what_it_does(dtype: torch.dtype) -> None:
    (q, k, v), _ = draw((1, 4, 2, 40, 32), dtype)
    operator = torch.ops.llmtrain.native_attention.default
    for first in (None, first_tokens(1, 40)):
        torch.library.opcheck(operator, (q, k, v, first), test_utils="test_faketensor")
