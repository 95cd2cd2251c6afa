"""The native loss kernel: as accurate as the loop in chunks, bitwise repeatable, for all shapes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from llmtrain.ops.loss import linear_cross_entropy

pytestmark = pytest.mark.usefixtures("native_kernels")

LARGEST_ERROR = 1e-2
OF_CHUNKS = 1.2  # times the error of the loop in chunks
# (tokens, width, vocabulary)
SHAPES = [(512, 128, 4096), (333, 96, 1001), (5, 32, 3), (700, 192, 65), (1100, 64, 30_011)]
Result = tuple[Tensor, Tensor, Tensor]


def draw(shape: tuple[int, int, int], factor: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    tokens, width, vocabulary = shape
    generator = torch.Generator().manual_seed(0)
    weight = (0.05 * factor * torch.randn(vocabulary, width, generator=generator)).bfloat16()
    hidden = torch.randn(tokens, width, generator=generator).bfloat16()
    return hidden, weight, torch.randint(0, vocabulary, (tokens,), generator=generator)


def computed(
    kernel: str, hidden: Tensor, weight: Tensor, targets: Tensor, has_padding: bool = False
) -> Result:
    assert kernel in ("chunks", "native")
    h, w = hidden.detach().requires_grad_(), weight.float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        total = linear_cross_entropy(
            h,
            w,
            targets,
            has_padding=has_padding,
            kernel="native" if kernel == "native" else "chunks",
        )
    d_h, d_w = torch.autograd.grad(0.5 * total, (h, w))
    return total.detach(), d_h, d_w


def exact(hidden: Tensor, weight: Tensor, targets: Tensor) -> Result:
    h, w = hidden.float().requires_grad_(), weight.float().requires_grad_()
    total = F.cross_entropy(h @ w.t(), targets, reduction="sum", ignore_index=-1)
    d_h, d_w = torch.autograd.grad(0.5 * total, (h, w))
    return total.detach(), d_h, d_w


def error(found: Tensor, reference: Tensor) -> float:
    return float((found.float() - reference).norm() / reference.norm())


@pytest.mark.parametrize("factor", [1.0, 4.0, 40.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_as_accurate_as_chunks(shape: tuple[int, int, int], factor: float) -> None:
    inputs = draw(shape, factor)
    results = computed("native", *inputs), exact(*inputs), computed("chunks", *inputs)
    for found, reference, other in zip(*results, strict=True):
        assert found.dtype == other.dtype
        assert error(found, reference) <= min(
            LARGEST_ERROR, OF_CHUNKS * error(other, reference) + 1e-5
        )


def test_targets_far_below_the_largest_logit() -> None:
    """The reference logit is then far away, and the sweep is made a second time."""
    hidden, weight, _ = draw((96, 128, 3000), 60.0)
    weight[:256] = 0  # the first rows are part of the reference
    targets = (hidden.float() @ weight.float().t()).argmin(dim=1)
    results = computed("native", hidden, weight, targets), exact(hidden, weight, targets)
    for found, reference in zip(*results, strict=True):
        assert error(found, reference) < LARGEST_ERROR


def test_padding_counts_nothing() -> None:
    hidden, weight, targets = draw((300, 64, 500))
    targets[::3] = -1
    results = computed("native", hidden, weight, targets, True), exact(hidden, weight, targets)
    for found, reference in zip(*results, strict=True):
        assert error(found, reference) < LARGEST_ERROR
    assert not computed("native", hidden, weight, targets, True)[1][::3].any()


@pytest.mark.parametrize("target", [500, -1])
def test_targets_beyond_the_vocabulary_are_refused(target: int) -> None:
    hidden, weight, targets = draw((40, 64, 500))
    targets[7] = target
    with pytest.raises(IndexError, match=f"target {target} of 500"):
        computed("native", hidden, weight, targets)


@pytest.mark.parametrize("threads", [1, 3, 8])
def test_a_number_of_threads_gives_the_same_bits_each_time(threads: int) -> None:
    inputs = draw((400, 64, 9000))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        once, again = computed("native", *inputs), computed("native", *inputs)
    finally:
        torch.set_num_threads(before)
    for a, b, reference in zip(once, again, exact(*inputs), strict=True):
        assert torch.equal(a, b)
        assert error(a, reference) < LARGEST_ERROR


def test_without_gradients_the_loss_has_the_same_bits() -> None:
    hidden, weight, targets = draw((200, 64, 1000))
    total, d_hidden, _ = computed("native", hidden, weight, targets)
    with torch.no_grad():
        assert linear_cross_entropy(hidden, weight, targets, kernel="native") == total
    hidden.requires_grad_()
    alone = linear_cross_entropy(hidden, weight, targets, kernel="native")
    (d_alone,) = torch.autograd.grad(alone, hidden)
    assert torch.equal(0.5 * d_alone, d_hidden)


def test_not_a_number_is_passed_on() -> None:
    hidden, weight, targets = draw((40, 64, 500))
    hidden[3] = torch.nan
    assert computed("native", hidden, weight, targets)[0].isnan()


def test_its_description_for_the_compiler_is_what_it_does() -> None:
    inputs = draw((40, 64, 100))
    for wanted in ((True, True), (False, False)):
        torch.library.opcheck(
            torch.ops.llmtrain.native_cross_entropy.default,
            (*inputs, False, *wanted),
            test_utils="test_faketensor",
        )
