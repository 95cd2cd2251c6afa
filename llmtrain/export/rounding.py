"""The arithmetic of a reader: the inputs of each product are rounded to the kind of its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from llmtrain.export.encoding import BLOCK_COLUMNS, Encoding
from llmtrain.model.decoder import Decoder


@contextmanager
def rounded_inputs(model: Decoder, encoding: Encoding) -> Iterator[None]:
    """Round the inputs of the model's products as llama.cpp does for weights of this encoding."""
    rounded = _rounding_of(encoding)
    linears = [each for each in model.modules() if isinstance(each, nn.Linear)]
    handles = [
        each.register_forward_pre_hook(lambda _, inputs: (rounded(inputs[0]),)) for each in linears
    ]
    # The head may be the embedding, which is no Linear: what goes into it is the last norm's.
    handles.append(model.model.norm.register_forward_hook(lambda _, __, output: rounded(output)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _rounding_of(encoding: Encoding) -> Callable[[Tensor], Tensor]:
    if encoding == "f32":
        return lambda x: x
    if encoding in ("f16", "bf16"):
        dtype = torch.float16 if encoding == "f16" else torch.bfloat16
        return lambda x: x.to(dtype).to(x.dtype)
    return _to_eight_bits


def _to_eight_bits(x: Tensor) -> Tensor:
    """Round blocks of numbers to 8 bits with a common scale (ggml's Q8_0)."""
    if x.shape[-1] % BLOCK_COLUMNS:
        return x.to(torch.float16).to(x.dtype)  # as such weights are: see `encoding_of`
    blocks = x.reshape(*x.shape[:-1], -1, BLOCK_COLUMNS)
    scales = (blocks.abs().amax(-1, keepdim=True) / 127).to(torch.float16).to(x.dtype)
    steps = (blocks / scales.clamp_min(torch.finfo(torch.float16).tiny)).round()
    return (steps * scales).flatten(-2)
