"""The weights of a model under GGUF's names, and back.

The Llama form of llama.cpp rotates neighbouring rows of a head, Hugging Face's the two halves, so
the rows of its query and key projections are permuted; the Qwen3 form rotates halves in both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from llmtrain.export.encoding import Encoding, encoding_of
from llmtrain.model.huggingface import weight_shapes
from llmtrain.profile.shape import ModelShape

if TYPE_CHECKING:
    from pathlib import Path

    from gguf import GGMLQuantizationType
    from torch import Tensor

Array = NDArray[Any]
_WHOLE_MODEL = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
_OF_BLOCK = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor of the file, and the weight that it holds."""

    name: str
    weight: str  # its Hugging Face name
    dims: tuple[int, ...]
    encoding: Encoding
    rotated_heads: int  # whose rows are permuted; 0: none


def gguf_tensors(shape: ModelShape, encoding: Encoding) -> Iterator[GgufTensor]:
    """Yield the tensors of a model's file, in order."""
    for weight, dims in weight_shapes(shape):
        name = gguf_name(weight)
        is_vocabulary = name in ("token_embd.weight", "output.weight")
        stored = encoding_of(encoding, dims, is_vocabulary=is_vocabulary)
        yield GgufTensor(name, weight, dims, stored, _rotated_heads(shape, name))


def gguf_name(weight: str) -> str:
    """Return GGUF's name of a weight."""
    module = weight.removesuffix(".weight")
    if module in _WHOLE_MODEL:
        return _WHOLE_MODEL[module] + ".weight"
    _, _, layer, part = module.split(".", 3)
    return f"blk.{layer}.{_OF_BLOCK[part]}.weight"


def _rotated_heads(shape: ModelShape, name: str) -> int:
    if shape.qk_norm:
        return 0
    if name.endswith("attn_q.weight"):
        return shape.num_heads
    return shape.num_kv_heads if name.endswith("attn_k.weight") else 0


def interleave_halves(rows: Array, heads: int) -> Array:
    """Return the rows of each head with those of its two halves taken in turn."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, rows.shape[1])
    interleaved: Array = halves.swapaxes(1, 2).reshape(rows.shape)
    return interleaved


def separate_halves(rows: Array, heads: int) -> Array:
    """Return what `interleave_halves` was given."""
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, rows.shape[1])
    separate: Array = pairs.swapaxes(1, 2).reshape(rows.shape)
    return separate


def stored_values(tensor: GgufTensor, weights: Mapping[str, Tensor]) -> Array:
    """Return what the file holds of a tensor: fp32 and fp16, or bytes of the other encodings."""
    from gguf.quants import quantize

    values = weights[tensor.weight].detach().cpu().float().numpy()
    if tensor.rotated_heads:
        values = interleave_halves(values, tensor.rotated_heads)
    return quantize(np.ascontiguousarray(values), quantization_type(tensor.encoding))


def quantization_type(encoding: Encoding) -> GGMLQuantizationType:
    """Return ggml's number of an encoding."""
    from gguf import GGMLQuantizationType

    return GGMLQuantizationType[encoding.upper()]


def read_weights(path: Path, shape: ModelShape) -> Iterator[tuple[str, Array]]:
    """Yield the Hugging Face name and the fp32 values of every weight in a GGUF file."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    found = {each.name: each for each in GGUFReader(path).tensors}
    for tensor in gguf_tensors(shape, "f32"):
        values = dequantize(found[tensor.name].data, found[tensor.name].tensor_type)
        if tensor.rotated_heads:
            values = separate_halves(values, tensor.rotated_heads)
        yield tensor.weight, np.require(values, np.float32, ["C", "W"])
