"""Attention within documents: what the documents gather alone, whatever computes it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_mask

from llmtrain.choice import AttentionKernel
from llmtrain.ops import blocked_attention as module
from llmtrain.ops.attention import causal_attention
from llmtrain.ops.blocked_attention import blocked_attention
from llmtrain.ops.document_blocks import document_blocks
from llmtrain.ops.documents import document_mask, first_of_document

SEPARATOR = 7
KERNELS: list[AttentionKernel] = ["sdpa", "blocks"]
# Documents' lengths in each sequence: of any length, on and beside the borders of blocks.
LENGTHS = ([100, 1, 28, 1, 127, 33], [290], [128, 128, 34], [1] * 20 + [270], [256, 2, 32])
TOKENS = 290


def draw(heads: int = 4, key_heads: int = 2, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(len(LENGTHS), count, TOKENS, 8, generator=generator).to(dtype).requires_grad_()
        for count in (heads, key_heads, key_heads)
    ]


def firsts() -> Tensor:
    rows = []
    for lengths in LENGTHS:
        starts = torch.tensor([0, *lengths]).cumsum(0)[:-1]
        rows.append(torch.repeat_interleave(starts, torch.tensor(lengths)))
    return torch.stack(rows).to(torch.int32)


def document_by_document(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Every document as a sequence of its own, by torch's kernel without a mask."""
    rows = []
    for row, lengths in enumerate(LENGTHS):
        cuts = zip(*(x[row : row + 1].split(lengths, dim=2) for x in (q, k, v)), strict=True)
        rows.append(torch.cat([causal_attention(*cut) for cut in cuts], dim=1))
    return torch.cat(rows)


def value_and_gradients(y: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    d_y = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    return [y.detach(), *torch.autograd.grad(y, inputs, d_y)]


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)],
    ids=["fp64", "fp32", "bf16"],
)
def test_documents_side_by_side_gather_what_they_gather_alone(
    kernel: AttentionKernel, key_heads: int, dtype: torch.dtype, tolerance: float
) -> None:
    """In value and in gradient."""
    inputs = draw(key_heads=key_heads, dtype=dtype)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    expected = value_and_gradients(document_by_document(*exact), exact)
    seen = document_mask(kernel, firsts(), dtype)
    found = value_and_gradients(causal_attention(*inputs, kernel, seen), inputs)
    assert {x.dtype for x in found} == {dtype}
    assert max(map(relative, found, expected)) <= tolerance


@pytest.mark.parametrize("block_rows", [1, 3, 64, 1000])
@pytest.mark.parametrize("at_once", [1, 2, 9])
def test_neither_blocks_nor_cuts_change_what_is_gathered(
    monkeypatch: pytest.MonkeyPatch, block_rows: int, at_once: int
) -> None:
    inputs = draw()
    expected = value_and_gradients(document_by_document(*inputs), inputs)
    monkeypatch.setattr(module, "_BLOCK_ROWS", block_rows)
    one_bytes = 4 * min(block_rows, TOKENS) * TOKENS * 8
    monkeypatch.setattr(module, "_SCORES_BYTES", at_once * one_bytes)
    found = value_and_gradients(causal_attention(*inputs, "blocks", firsts()), inputs)
    assert max(map(relative, found, expected)) <= 1e-12


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_documents_are_not_seen(kernel: AttentionKernel, dtype: torch.dtype) -> None:
    """Bitwise, in value and in gradient: the third document of the first sequence, 101 to 129."""
    inputs, seen = draw(dtype=dtype), document_mask(kernel, firsts(), dtype)
    before = causal_attention(*inputs, kernel, seen)
    changed = [x.detach().clone() for x in inputs]
    for x in changed:
        x[0, :, :101] = 50 * torch.randn_like(x[0, :, :101])
        x[0, :, 129:] = 50 * torch.randn_like(x[0, :, 129:])
    after = causal_attention(*changed, kernel, seen)
    assert torch.equal(after[0, 101:129], before[0, 101:129])
    assert not torch.equal(after[0, :101], before[0, :101])
    for gradient in torch.autograd.grad(before[0, 101:129].sum(), inputs):
        assert gradient[0, :, 101:129].any()
        assert not gradient[0, :, :101].any()
        assert not gradient[0, :, 129:].any()


def test_one_document_is_computed_as_if_nothing_were_masked() -> None:
    inputs = draw(dtype=torch.float32)
    whole = torch.zeros(len(LENGTHS), TOKENS, dtype=torch.int32)
    masked = value_and_gradients(blocked_attention(*inputs, whole), inputs)
    assert all(map(torch.equal, masked, value_and_gradients(blocked_attention(*inputs), inputs)))


def test_blocks_of_keys_before_every_document_are_not_multiplied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The point of it: masking takes less work, not more."""
    widths: list[int] = []
    multiply = torch.baddbmm

    def watched(*args: Tensor, **options: object) -> Tensor:
        widths.append(args[2].shape[2])
        return multiply(*args, **options)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(torch, "baddbmm", watched)
    q, k, v = (x[:1] for x in draw())
    blocked_attention(q, k, v)
    assert widths == [128, 256, 290]
    widths.clear()
    blocked_attention(q, k, v, torch.arange(TOKENS, dtype=torch.int32)[None] // 130 * 130)
    assert widths == [128, 256, 162]
    widths.clear()
    blocked_attention(q, k, v, torch.arange(TOKENS, dtype=torch.int32)[None])
    assert widths == [128, 128, 34]


def test_the_gradient_is_the_slope(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK_ROWS", 3)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(2, heads, 7, 4, generator=generator, dtype=torch.float64).requires_grad_()
        for heads in (4, 2, 2)
    )
    first = torch.tensor([[0, 0, 2, 2, 2, 5, 6], [0, 0, 0, 0, 4, 4, 4]], dtype=torch.int32)
    assert torch.autograd.gradcheck(lambda *x: blocked_attention(*x, first), (q, k, v))


# torch 2.14's own check reads the gradient of what it copied.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_compiler_is_told_the_truth(dtype: torch.dtype) -> None:
    """Shapes, types, strides and what is changed, of the operator and of its gradient."""
    inputs, first = draw(dtype=dtype), firsts()
    torch.library.opcheck(module._forward, (*inputs, first))
    q, k, v = (x.detach() for x in inputs)
    d_y = torch.ones_like(module._forward(q, k, v, first))
    torch.library.opcheck(module._backward, (d_y, q, k, v, first))


@settings(deadline=None, max_examples=100)
@given(st.lists(st.lists(st.sampled_from([1, 2, SEPARATOR]), min_size=6, max_size=6), min_size=1))
def test_a_document_begins_after_its_separator_was_the_target(rows: list[list[int]]) -> None:
    """Of a window: whose first token may be within a document."""
    targets = torch.tensor(rows)
    found = first_of_document(targets, SEPARATOR)
    assert found.dtype == torch.int32
    for row, firsts_found in zip(rows, found.tolist(), strict=True):
        inputs = [1, *row[:-1]]  # a separator that was the target is the next input
        first = 0
        for position, token in enumerate(inputs):
            first = position if position and token == SEPARATOR else first
            assert firsts_found[position] == first


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mask_shows_each_token_itself_and_its_document_before_it(dtype: torch.dtype) -> None:
    first = firsts()
    mask = document_mask("sdpa", first, dtype)
    assert (mask.dtype, mask.shape) == (dtype, (len(LENGTHS), 1, TOKENS, TOKENS))
    at = torch.arange(TOKENS)
    visible = (at <= at[:, None]) & (at >= first[:, None, :, None])
    assert torch.equal(mask == 0, visible)
    assert torch.equal(mask == -torch.inf, ~visible)
    assert document_mask("blocks", first, dtype) is first
    with torch.no_grad():
        assert torch.equal(document_mask("flex", first, dtype), mask)


@pytest.mark.parametrize("tokens", [1, 127, 128, 129, TOKENS])
def test_blocks_of_pairs_are_those_that_documents_have(tokens: int) -> None:
    """Whole where every token sees every key, so that these need no mask; no others are named."""
    first = firsts()[:, :tokens]
    blocks = document_blocks(first)
    at = torch.arange(tokens)
    visible = (at <= at[:, None]) & (at >= first[:, :, None])
    shown = torch.zeros_like(visible)
    for sequence, row, column, whole in named_blocks(blocks):
        place = sequence, slice(128 * row, 128 * row + 128), slice(128 * column, 128 * column + 128)
        assert not shown[place].any()
        assert visible[place].any()
        if whole:
            assert visible[place].shape == (128, 128)
            assert visible[place].all()
        shown[place] = visible[place]
    assert torch.equal(shown, visible)
    mask = create_mask(blocks.mask_mod, len(first), 1, tokens, tokens, device="cpu")
    assert torch.equal(mask[:, 0], visible)


def named_blocks(blocks: BlockMask) -> Iterator[tuple[int, int, int, bool]]:
    assert blocks.full_kv_num_blocks is not None
    assert blocks.full_kv_indices is not None
    for whole, counts, indices in (
        (False, blocks.kv_num_blocks, blocks.kv_indices),
        (True, blocks.full_kv_num_blocks, blocks.full_kv_indices),
    ):
        for sequence, rows in enumerate(counts[:, 0].tolist()):
            for row, count in enumerate(rows):
                for column in indices[sequence, 0, row, :count].tolist():
                    yield sequence, row, column, whole


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("key_heads", [1, 4])
def test_flex_attention_gathers_what_documents_gather_alone(key_heads: int) -> None:
    """As it is written. Compiled for a GPU it is compared by tests that need one."""
    inputs = [x.detach().float() for x in draw(key_heads=key_heads)]
    found = causal_attention(*inputs, "flex", document_mask("flex", firsts(), torch.float32))
    assert relative(found, document_by_document(*inputs)) <= 1e-6


@pytest.mark.skipif(not torch.cuda.is_available(), reason="compiles for a GPU")
@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize("tokens", [128, 256, TOKENS])
def test_flex_attention_on_a_gpu(key_heads: int, tokens: int) -> None:
    """In value and in gradient; compiled once for all documents of a shape."""
    inputs = [
        x.detach()[:, :, :tokens].repeat(1, 1, 1, 8).to("cuda", torch.bfloat16).requires_grad_()
        for x in draw(key_heads=key_heads)
    ]
    torch.compiler.reset()  # of one function no more than eight compilations are kept
    compiled = torch.compile(causal_attention, dynamic=False)
    stance = "default"
    for first in (firsts(), torch.zeros_like(firsts())):
        first = first[:, :tokens].contiguous().to("cuda")
        exact = [x.detach().float().requires_grad_() for x in inputs]
        mask = document_mask("sdpa", first, torch.float32)
        expected = value_and_gradients(causal_attention(*exact, "sdpa", mask), exact)
        with torch.compiler.set_stance(stance):
            flex = compiled(*inputs, "flex", document_mask("flex", first, torch.bfloat16))
        stance = "fail_on_recompile"
        found = value_and_gradients(flex, inputs)
        assert max(map(relative, found, expected)) <= 2e-2
