"""The native attention kernel: as accurate as torch's, bitwise repeatable, for every shape."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from llmtrain.ops.attention import causal_attention

pytestmark = pytest.mark.usefixtures("native_kernels")

LARGEST_ERROR = 1e-2
OF_TORCH = 1.2  # times the error of torch's kernel in bf16
# (sequences, heads, key heads, tokens, head size)
SHAPES = [
    (2, 3, 3, 512, 64),
    (1, 4, 2, 700, 128),  # two blocks of keys in the forward; a block that is not full
    (2, 4, 1, 33, 80),
    (1, 3, 3, 129, 48),
    (1, 2, 1, 260, 36),
    (3, 2, 2, 9, 32),
]
Inputs = tuple[Tensor, Tensor, Tensor]


def draw(shape: tuple[int, int, int, int, int], factor: float = 1.0) -> tuple[Inputs, Tensor]:
    """Return queries, keys and values as a projection leaves them, and a gradient of the result."""
    sequences, heads, key_heads, tokens, size = shape
    generator = torch.Generator().manual_seed(0)

    def random(*dims: int) -> Tensor:
        return torch.randn(*dims, generator=generator).bfloat16()

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
    return float((found.float() - exact).norm() / exact.norm())


@pytest.mark.parametrize("masked", [False, True], ids=["causal", "documents"])
@pytest.mark.parametrize("factor", [1.0, 4.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_as_accurate_as_torch(
    shape: tuple[int, int, int, int, int], factor: float, masked: bool
) -> None:
    inputs, d_y = draw(shape, factor)
    first = first_tokens(shape[0], shape[3]) if masked else None
    exact = torchs(inputs, d_y, first, torch.float32)
    in_bf16 = torchs(inputs, d_y, first, torch.bfloat16)
    for found, reference, other in zip(native(inputs, d_y, first), exact, in_bf16, strict=True):
        assert found.shape == reference.shape
        assert error(found, reference) <= min(
            LARGEST_ERROR, OF_TORCH * error(other, reference) + 1e-6
        )


@pytest.mark.parametrize("threads", [1, 3, 8])
def test_a_number_of_threads_gives_the_same_bits_each_time(threads: int) -> None:
    inputs, d_y = draw((1, 4, 2, 700, 64))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        once, again = (native(inputs, d_y, first_tokens(1, 700)) for _ in range(2))
    finally:
        torch.set_num_threads(before)
    exact = torchs(inputs, d_y, first_tokens(1, 700), torch.float32)
    for a, b, reference in zip(once, again, exact, strict=True):
        assert torch.equal(a, b)
        assert error(a, reference) < LARGEST_ERROR


def test_later_tokens_and_other_documents_are_not_seen() -> None:
    (q, k, v), _ = draw((1, 2, 2, 300, 32))
    first = torch.where(torch.arange(300) < 100, 0, 100)[None].int()
    before = causal_attention(q, k, v, "native", first)
    k, v = k.clone(), v.clone()
    k[:, :, 200:], v[:, :, 200:] = 7.0, torch.nan
    assert torch.equal(causal_attention(q, k, v, "native", first)[:, :128], before[:, :128])
    k[:, :, :99], v[:, :, :99] = -7.0, 5.0
    found = causal_attention(q, k, v, "native", first)
    assert torch.equal(found[:, 100:128], before[:, 100:128])


def test_one_position_attends_to_itself() -> None:
    (q, k, v), d_y = draw((2, 2, 1, 1, 64))
    y, d_q, d_k, d_v = native((q, k, v), d_y, None)
    assert torch.equal(y, torch.cat([v.flatten(1)] * 2, dim=1)[:, None])
    assert d_q.abs().max() < 0.05
    assert d_k.abs().max() < 0.05
    assert error(d_v, d_y.float().view(2, 1, 2, 64).sum(2, keepdim=True)) < LARGEST_ERROR


def test_not_a_number_is_passed_on() -> None:
    (q, k, v), _ = draw((1, 1, 1, 40, 32))
    q = q.clone()
    q[0, 0, 5] = torch.nan
    y = causal_attention(q, k, v, "native")
    assert y[0, 5].isnan().all()
    assert y[0, :5].isfinite().all()


def test_compiled_code_calls_it() -> None:
    inputs, d_y = draw((1, 2, 1, 64, 32))

    def around(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return 2 * causal_attention(q * 0.5, k, v, "native")

    eager = gradients(around, inputs, d_y)
    compiled = gradients(torch.compile(around, backend="aot_eager", fullgraph=True), inputs, d_y)
    for a, b in zip(eager, compiled, strict=True):
        assert torch.equal(a, b)


def test_its_description_for_the_compiler_is_what_it_does() -> None:
    (q, k, v), _ = draw((1, 4, 2, 40, 32))
    operator = torch.ops.llmtrain.native_attention.default
    for first in (None, first_tokens(1, 40)):
        torch.library.opcheck(operator, (q, k, v, first), test_utils="test_faketensor")
