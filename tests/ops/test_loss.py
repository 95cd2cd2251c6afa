"""Cross-entropy in chunks is cross-entropy, and full logits never exist."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from llmtrain.ops import loss as loss_module
from llmtrain.ops.chunk_sizes import even_chunk, loss_chunk_tokens
from llmtrain.ops.loss import (
    exponentiate,
    linear_cross_entropy,
    token_cross_entropy,
)

ROWS, FEATURES, PIECES = 45, 12, 37


@pytest.fixture(params=[1, 7, 45, 64])
def chunk_rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Chunks of one row, of a number that leaves a rest, of all rows, and of more."""
    rows: int = request.param
    monkeypatch.setattr(loss_module, "loss_chunk_tokens", lambda *_: rows)
    return rows


def draw(dtype: torch.dtype, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, FEATURES, generator=generator, dtype=torch.float64) * scale
    weight = torch.randn(PIECES, FEATURES, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, PIECES, (ROWS,), generator=generator)
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets


def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight), targets, reduction="sum")


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def value_and_gradients(loss: Loss, dtype: torch.dtype, weigh: float = 0.25) -> list[Tensor]:
    hidden, weight, targets = draw(dtype)
    total = loss(hidden, weight, targets)
    return [total.detach(), *torch.autograd.grad(total * weigh, [hidden, weight])]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_value_and_gradients_are_those_of_full_logits(
    chunk_rows: int, dtype: torch.dtype, tolerance: float
) -> None:
    found = value_and_gradients(linear_cross_entropy, dtype)
    expected = value_and_gradients(plain, torch.float64)
    assert [t.dtype for t in found] == [dtype] * 3
    assert all(relative(a, b) <= tolerance for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("share_bytes", [1, 5 * FEATURES * 8])
def test_the_heads_gradient_in_shares_is_the_same(
    share_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In shares of one row, and of a number that leaves a rest."""
    whole = value_and_gradients(linear_cross_entropy, torch.float64)
    monkeypatch.setattr(loss_module, "_CPU_SHARE_BYTES", share_bytes)
    shared = value_and_gradients(linear_cross_entropy, torch.float64)
    assert all(relative(a, b) <= 1e-14 for a, b in zip(shared, whole, strict=True))


def test_under_autocast_products_are_bf16_and_sums_fp32(chunk_rows: int) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = value_and_gradients(linear_cross_entropy, torch.float32)
    expected = value_and_gradients(plain, torch.float64)
    assert [t.dtype for t in found] == [torch.float32] * 3
    errors = [relative(a, b) for a, b in zip(found, expected, strict=True)]
    assert max(errors) <= 2e-2
    assert min(errors[1:]) > 1e-5  # or nothing was rounded


def test_the_gradient_is_the_slope(chunk_rows: int) -> None:
    """Central differences in fp64, along each coordinate."""
    hidden, weight, targets = draw(torch.float64)
    gradients = torch.autograd.grad(linear_cross_entropy(hidden, weight, targets), (hidden, weight))
    step = 1e-6
    with torch.no_grad():
        for tensor, gradient in zip((hidden, weight), gradients, strict=True):
            flat, slopes = tensor.view(-1), torch.empty(tensor.numel(), dtype=torch.float64)
            for i in range(0, tensor.numel(), 5):
                centre = flat[i].item()
                flat[i] = centre + step
                above = linear_cross_entropy(hidden, weight, targets)
                flat[i] = centre - step
                slopes[i] = (above - linear_cross_entropy(hidden, weight, targets)) / (2 * step)
                flat[i] = centre
            torch.testing.assert_close(slopes[::5], gradient.view(-1)[::5], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("wanted", ["hidden", "weight"])
def test_only_the_gradient_that_is_wanted(chunk_rows: int, wanted: str) -> None:
    gradients = value_and_gradients(linear_cross_entropy, torch.float64, weigh=1)[1:]
    expected = gradients[0 if wanted == "hidden" else 1]
    hidden, weight, targets = draw(torch.float64)
    frozen, learnt = (weight, hidden) if wanted == "hidden" else (hidden, weight)
    frozen.requires_grad_(False)
    linear_cross_entropy(hidden, weight, targets).backward()
    assert frozen.grad is None
    assert learnt.grad is not None
    assert torch.equal(learnt.grad, expected)


def test_gradients_are_handed_out_once() -> None:
    hidden, weight, targets = draw(torch.float32)
    total = linear_cross_entropy(hidden, weight, targets)
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="called twice"):
        total.backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_logits_stay_finite(chunk_rows: int, dtype: torch.dtype) -> None:
    hidden = torch.eye(4, dtype=dtype) * 100
    weight = torch.tensor([[100.0], [-100.0], [0.0]], dtype=dtype).expand(3, 4)  # ±1e4
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    targets = torch.tensor([0, 1, 2, 1])
    total = linear_cross_entropy(hidden, weight, targets)
    total.backward()
    assert total.item() == 0 + 2e4 + 1e4 + 2e4
    for tensor in (hidden, weight):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
    assert weight.grad is not None
    assert weight.grad[:, 1].tolist() == [100.0, -100.0, 0.0]


class Watched(TorchDispatchMode):
    """Sees every operation, and what it gives."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[torch.Size] = []
        self.products: list[torch.Size] = []

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.shapes.append(out.shape)
            if func in (torch.ops.aten.mm.default, torch.ops.aten.mm.out):
                self.products.append(out.shape)
        return out

    @property
    def largest(self) -> int:
        return max(shape.numel() for shape in self.shapes)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_full_logits_never_exist(dtype: torch.dtype | None) -> None:
    rows, pieces = 800, 120_000
    chunk = loss_chunk_tokens(pieces, "cpu", 4 if dtype is None else 2)
    assert rows > 3 * chunk
    hidden = torch.randn(rows, 4, requires_grad=True)
    weight = torch.randn(pieces, 4, requires_grad=True)
    targets = torch.randint(0, pieces, (rows,))
    with Watched() as watched:
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            total = linear_cross_entropy(hidden, weight, targets)
        total.backward()
    assert pieces < watched.largest <= chunk * pieces


def test_without_gradients_none_are_computed() -> None:
    hidden, weight, targets = draw(torch.float32)
    with torch.no_grad(), Watched() as watched:
        total = linear_cross_entropy(hidden, weight, targets)
    assert not total.requires_grad
    assert watched.products == [(ROWS, PIECES)]
    with torch.inference_mode():
        assert linear_cross_entropy(hidden, weight, targets) == total


def test_a_cast_that_is_at_hand_is_the_one_used(chunk_rows: int) -> None:
    """Bitwise what the loss would have cast itself; of another matrix, that one's products."""
    found: dict[str, list[Tensor]] = {}
    casts = {"none": None, "same": draw(torch.bfloat16)[1], "other": draw(torch.bfloat16)[1] * 2}
    for name, cast in casts.items():
        loss = partial(linear_cross_entropy, weight_cast_vd=cast)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found[name] = value_and_gradients(loss, torch.float32)
    assert all(map(torch.equal, found["none"], found["same"]))
    assert not any(map(torch.equal, found["none"], found["other"]))
    assert [t.dtype for t in found["other"]] == [torch.float32] * 3


@pytest.mark.parametrize("vocab_size", [300, 4096, 32_000, 151_936, 10_000_000])
@pytest.mark.parametrize("kind", ["cpu", "cuda", "mps"])
@pytest.mark.parametrize("element_bytes", [2, 4])
def test_a_chunk_is_whole_tiles_within_its_budget(
    element_bytes: int, kind: str, vocab_size: int
) -> None:
    rows, budget = loss_chunk_tokens(vocab_size, kind, element_bytes), 1 << 30
    if kind == "cpu":
        budget = {2: 32 << 20, 4: 128 << 20}[element_bytes]
    row_bytes = element_bytes * vocab_size
    assert rows >= 64
    assert rows % 64 == 0
    assert rows == 64 or rows * row_bytes <= budget < (rows + 64) * row_bytes


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_logits_become_what_the_softmax_divides(dtype: torch.dtype) -> None:
    """Where some are beyond what exp can take."""
    logits = (torch.randn(33, 101, dtype=torch.float64) * 500).to(dtype)
    exact, wide = logits.double().clone(), torch.promote_types(dtype, torch.float32)
    rounding = torch.finfo(dtype).eps
    largest, sums = exponentiate(logits)
    assert torch.equal(largest.double(), exact.amax(-1, keepdim=True))
    assert (largest.shape, sums.dtype) == ((33, 1), wide)
    found = logits.double() / sums.double()
    # exp multiplies an error of its argument, which is up to thousands, by itself
    torch.testing.assert_close(found, exact.softmax(-1), rtol=0, atol=4 * rounding)
    assert found.sum(-1).sub(1).abs().max() <= 8 * torch.finfo(wide).eps


@pytest.mark.parametrize(
    ("rows", "limit", "chunk"), [(65536, 5312, 4096), (100, 1000, 100), (97, 10, 10), (1, 64, 1)]
)
def test_chunks_are_equal_where_they_can_be(rows: int, limit: int, chunk: int) -> None:
    assert even_chunk(rows, limit) == chunk


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)],
)
def test_padding_counts_for_nothing(chunk_rows: int, dtype: torch.dtype, tolerance: float) -> None:
    """Loss and gradients are those of the other rows, and its own gradient is zero."""
    hidden, weight, targets = draw(dtype)
    is_target = torch.rand(ROWS, generator=torch.Generator().manual_seed(1)) < 0.7
    is_target[-8:] = False
    padded = torch.where(is_target, targets, -1)
    total = linear_cross_entropy(hidden, weight, padded, has_padding=True)
    found = [total.detach(), *torch.autograd.grad(total, [hidden, weight])]
    assert not found[1][~is_target].any()
    exact = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    expected = plain(exact[0][is_target], exact[1], targets[is_target])
    gradients = [expected.detach(), *torch.autograd.grad(expected, exact)]
    assert all(relative(a, b) <= tolerance for a, b in zip(found, gradients, strict=True))


def test_what_padding_is_made_of_makes_no_difference() -> None:
    hidden, weight, targets = draw(torch.float32)
    padded = torch.where(torch.arange(ROWS) < 30, targets, -1)
    other = torch.where(torch.arange(ROWS)[:, None] < 30, hidden, 1e4 * hidden).detach()
    found = []
    for values in (hidden, other.requires_grad_()):
        total = linear_cross_entropy(values, weight, padded, has_padding=True)
        found.append([total.detach(), *torch.autograd.grad(total, [values, weight])])
    assert all(map(torch.equal, *found))


def test_without_padding_its_absence_changes_nothing() -> None:
    with_it = partial(linear_cross_entropy, has_padding=True)
    found, expected = (
        value_and_gradients(loss, torch.float32) for loss in (with_it, linear_cross_entropy)
    )
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("tokens", [1, 7, 1000])
def test_losses_by_token_sum_to_the_loss(tokens: int) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(tokens, 8, dtype=torch.float64), torch.randn(50, 8).double()
    targets = torch.randint(50, (tokens,))
    found = token_cross_entropy(hidden, weight, targets)
    expected = F.cross_entropy(hidden @ weight.t(), targets, reduction="none")
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    total = linear_cross_entropy(hidden, weight, targets)
    torch.testing.assert_close(found.sum(), total, rtol=1e-12, atol=0)
