"""Causal attention as batched products over blocks of rows, for CPUs with fast bf16 products.

Each block of queries attends to all keys up to its last row: a product, a softmax, a product. The
backward recomputes the probabilities, so only queries, keys and values are saved. The tiles of
flash attention are too small for a CPU's matrix units; these blocks are not.

If tokens attend to their own document only, blocks of keys before every document of the queries
are skipped, and the rest are masked.

Shapes: B sequences, H query heads, G key heads, M = H / G query heads a key head, T tokens,
D features a head; N = B · G matrices in a batched product, R = M · rows of a block, E keys.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from llmtrain.ops.operator import operator

_SCORES_BYTES = 16 << 20  # of one block's scores: what fits a last-level cache beside the rest
_BLOCK_ROWS = 128
_LONG_CONTEXT, _LONG_BLOCK_ROWS = 2048, 256  # fewer sums of the keys' gradients

_softmax_backward = torch.ops.aten._softmax_backward_data  # noqa: SLF001 (autograd calls the same)


def blocked_attention(
    q_bhtd: Tensor, k_bgtd: Tensor, v_bgtd: Tensor, first_bt: Tensor | None = None
) -> Tensor:
    """Return causal attention, (B, T, H · D), in the inputs' type.

    Scores are rounded to that type, sums are kept in fp32. `first_bt`: int32, the first token that
    each one attends to, not decreasing along T; without it, the first of the window.
    """
    q_bhtd, k_bgtd, v_bgtd = q_bhtd.contiguous(), k_bgtd.contiguous(), v_bgtd.contiguous()
    y_btc: Tensor = _forward(q_bhtd, k_bgtd, v_bgtd, first_bt)
    return y_btc


class _Heads:
    """Queries, keys and values of some sequences, and buffers for one block's scores."""

    def __init__(
        self, q_bhtd: Tensor, k_bgtd: Tensor, v_bgtd: Tensor, first_bt: Tensor | None
    ) -> None:
        self.first_bt = first_bt
        self.key_heads = k_bgtd.shape[1]
        self.tokens, self.size = q_bhtd.shape[2:]
        self.scale = self.size**-0.5
        self.q_bgmtd = self.grouped(q_bhtd)
        self.k_ntd, self.v_ntd = k_bgtd.flatten(0, 1), v_bgtd.flatten(0, 1)
        self.block_rows = _block_rows(self.tokens)
        size = q_bhtd.shape[0] * q_bhtd.shape[1] * self.block_rows * self.tokens
        self.scores, self.probabilities = q_bhtd.new_empty(size), q_bhtd.new_empty(size)
        hidden = torch.full((self.block_rows, self.block_rows), -torch.inf, dtype=q_bhtd.dtype)
        self.mask = hidden.triu_(1)

    def blocks(self) -> Iterator[tuple[slice, slice]]:
        """Yield the rows of every block, and the keys that any of them attends to."""
        for start in range(0, self.tokens, self.block_rows):
            end = min(start + self.block_rows, self.tokens)
            yield slice(start, end), slice(self._first_key(start), end)

    def _first_key(self, row: int) -> int:
        """Return the first key that `row` and later rows attend to, rounded down to a block.

        Rounded, so that products have few shapes: the libraries prepare for each.
        """
        if self.first_bt is None:
            return 0
        return int(self.first_bt[:, row].min()) // self.block_rows * self.block_rows

    def grouped(self, x_bhtd: Tensor) -> Tensor:
        """Return a view with each key head's query heads together, (B, G, M, T, D)."""
        return x_bhtd.view(len(x_bhtd), self.key_heads, -1, self.tokens, self.size)

    def joined(self, x_btc: Tensor) -> Tensor:
        """Return a view of concatenated heads in that order, (B, G, M, T, D)."""
        shape = (len(x_btc), self.tokens, self.key_heads, -1, self.size)
        return x_btc.view(shape).permute(0, 2, 3, 1, 4)

    def rows(self, x_bgmtd: Tensor, rows: slice) -> Tensor:
        """Return a block of rows as a dense batch of matrices, (N, R, D)."""
        return x_bgmtd[:, :, :, rows].reshape(len(self.k_ntd), -1, self.size)

    def probabilities_of(self, q_nrd: Tensor, rows: slice, keys: slice) -> Tensor:
        """Return the softmax over the keys that each row attends to, (N, R, E)."""
        count, width = rows.stop - rows.start, keys.stop - keys.start
        shape = (*q_nrd.shape[:2], width)
        scores = _view(self.scores, shape)
        k_nde = self.k_ntd[:, keys].contiguous().transpose(1, 2)
        torch.baddbmm(scores, q_nrd, k_nde, beta=0, alpha=self.scale, out=scores)
        diagonal = scores.view(len(scores), -1, count, width)[..., rows.start - keys.start :]
        diagonal.add_(self.mask[:count, :count])
        if self.first_bt is not None:
            self._mask_earlier_documents(scores, self.first_bt[:, rows], keys.start)
        return torch.softmax(scores, -1, out=_view(self.probabilities, shape))

    def _mask_earlier_documents(self, scores_nre: Tensor, first_br: Tensor, first_key: int) -> None:
        """Set each row's scores of keys before its document to −∞."""
        width = int(first_br[:, -1].max()) - first_key
        if width <= 0:
            return  # every row attends to all of these keys
        keys = torch.arange(first_key, first_key + width, dtype=first_br.dtype)
        hidden = keys < first_br[:, :, None]
        mask = torch.zeros(hidden.shape, dtype=scores_nre.dtype).masked_fill_(hidden, -torch.inf)
        sequences, rows = first_br.shape
        scores = scores_nre.view(sequences, -1, rows, scores_nre.shape[2])
        scores[..., :width].add_(mask[:, None])

    def score_gradients(self, p_nre: Tensor, d_y_nrd: Tensor, keys: slice) -> Tensor:
        """Return the gradient of the scaled scores, in the buffer of the scores, (N, R, E)."""
        d_p_nre = _view(self.scores, tuple(p_nre.shape))
        torch.bmm(d_y_nrd, self.v_ntd[:, keys].contiguous().transpose(1, 2), out=d_p_nre)
        _softmax_backward(d_p_nre, p_nre, -1, p_nre.dtype, grad_input=d_p_nre)
        return d_p_nre


class _Sum:
    """The gradient of some keys or values, summed in fp32 over blocks of queries."""

    def __init__(self, x_ntd: Tensor) -> None:
        wide = torch.promote_types(x_ntd.dtype, torch.float32)
        self.total_ntd = torch.zeros(x_ntd.shape, dtype=wide)
        self._share = x_ntd.new_empty(x_ntd.numel())
        self._wide_share = torch.empty(x_ntd.numel(), dtype=wide)

    def add_product(self, keys: slice, left_ner: Tensor, right_nrd: Tensor) -> None:
        """Add `left · right` for E of the keys."""
        shape = (*left_ner.shape[:2], right_nrd.shape[2])
        share = torch.bmm(left_ner, right_nrd, out=_view(self._share, shape))
        self.total_ntd[:, keys].add_(_view(self._wide_share, shape).copy_(share))


@operator("blocked_attention")
def _forward(
    q_bhtd: Tensor, k_bgtd: Tensor, v_bgtd: Tensor, first_bt: Tensor | None = None
) -> Tensor:
    y_btc = _empty_output(q_bhtd)
    for some in _splits(q_bhtd):
        first = None if first_bt is None else first_bt[some]
        heads = _Heads(q_bhtd[some], k_bgtd[some], v_bgtd[some], first)
        y_bgmtd = heads.joined(y_btc[some])
        for rows, keys in heads.blocks():
            p_nre = heads.probabilities_of(heads.rows(heads.q_bgmtd, rows), rows, keys)
            y_nrd = torch.bmm(p_nre, heads.v_ntd[:, keys].contiguous())
            block = y_bgmtd[:, :, :, rows]
            block.copy_(y_nrd.view(block.shape))
    return y_btc


@operator("blocked_attention_backward")
def _backward(
    d_y_btc: Tensor,
    q_bhtd: Tensor,
    k_bgtd: Tensor,
    v_bgtd: Tensor,
    first_bt: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    d_q_bhtd, d_k_bgtd, d_v_bgtd = (torch.empty_like(x) for x in (q_bhtd, k_bgtd, v_bgtd))
    d_y_btc = d_y_btc.contiguous()
    for some in _splits(q_bhtd):
        first = None if first_bt is None else first_bt[some]
        heads = _Heads(q_bhtd[some], k_bgtd[some], v_bgtd[some], first)
        d_k, d_v = _Sum(heads.k_ntd), _Sum(heads.v_ntd)
        d_y_bgmtd, d_q_bgmtd = heads.joined(d_y_btc[some]), heads.grouped(d_q_bhtd[some])
        for rows, keys in heads.blocks():
            q_nrd, d_y_nrd = heads.rows(heads.q_bgmtd, rows), heads.rows(d_y_bgmtd, rows)
            p_nre = heads.probabilities_of(q_nrd, rows, keys)
            d_v.add_product(keys, p_nre.transpose(1, 2), d_y_nrd)
            d_s_nre = heads.score_gradients(p_nre, d_y_nrd, keys)
            d_k.add_product(keys, d_s_nre.transpose(1, 2), q_nrd)
            d_q_nrd = torch.bmm(d_s_nre, heads.k_ntd[:, keys].contiguous())
            block = d_q_bgmtd[:, :, :, rows]
            torch.mul(d_q_nrd.view(block.shape), heads.scale, out=block)
        d_k_bgtd[some].copy_(d_k.total_ntd.mul_(heads.scale).view(d_k_bgtd[some].shape))
        d_v_bgtd[some].copy_(d_v.total_ntd.view(d_v_bgtd[some].shape))
    return d_q_bhtd, d_k_bgtd, d_v_bgtd


def _fake_forward(
    q_bhtd: Tensor, k_bgtd: Tensor, v_bgtd: Tensor, first_bt: Tensor | None = None
) -> Tensor:
    return _empty_output(q_bhtd)


torch.library.register_fake(_forward, _fake_forward)


def _fake_backward(
    d_y_btc: Tensor,
    q_bhtd: Tensor,
    k_bgtd: Tensor,
    v_bgtd: Tensor,
    first_bt: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q_bhtd), torch.empty_like(k_bgtd), torch.empty_like(v_bgtd)


torch.library.register_fake(_backward, _fake_backward)


def _save(ctx: Any, inputs: tuple[Tensor | None, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, d_y_btc: Tensor) -> tuple[Tensor | None, ...]:
    gradients: tuple[Tensor, Tensor, Tensor] = _backward(d_y_btc, *ctx.saved_tensors)
    return *gradients, None


torch.library.register_autograd(_forward, _differentiate, setup_context=_save)

OPERATOR = torch.ops.llmtrain.blocked_attention.default


def _block_rows(tokens: int) -> int:
    return min(tokens, _BLOCK_ROWS if tokens < _LONG_CONTEXT else _LONG_BLOCK_ROWS)


def _splits(q_bhtd: Tensor) -> Iterator[slice]:
    """Split the sequences so that a block's scores stay within `_SCORES_BYTES` or are of one."""
    sequences, num_heads, tokens, _ = q_bhtd.shape
    one = num_heads * _block_rows(tokens) * tokens * q_bhtd.element_size()
    count = max(1, _SCORES_BYTES // one)
    return (slice(start, start + count) for start in range(0, sequences, count))


def _empty_output(q_bhtd: Tensor) -> Tensor:
    sequences, num_heads, tokens, size = q_bhtd.shape
    return q_bhtd.new_empty(sequences, tokens, num_heads * size)


def _view(buffer: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return the front of `buffer` as a tensor of `shape`."""
    return buffer[: math.prod(shape)].view(shape)
