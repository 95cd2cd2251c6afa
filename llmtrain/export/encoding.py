"""How an exported weight is stored: the formats, their encodings, and which tensors get which."""

from __future__ import annotations

from typing import Literal

Format = Literal["gguf", "hf"]
# The names of ggml; those with a q store blocks of 32 numbers with a common scale.
Encoding = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]

UNQUANTIZED: tuple[Encoding, ...] = ("f32", "f16", "bf16")
BLOCK_COLUMNS = 32
_FOUR_OR_FIVE_BITS = ("q5_1", "q5_0", "q4_1", "q4_0")


def encoding_of(encoding: Encoding, dims: tuple[int, ...], *, is_vocabulary: bool) -> Encoding:
    """Return how a tensor of these dimensions is stored where `encoding` was asked for.

    Gains stay f32. Embeddings and the head are more sensitive: they have at least 8 bits, as in
    files of llama.cpp's own tool, and rows that are not whole blocks are f16.
    """
    if len(dims) == 1:
        return "f32"
    if encoding in UNQUANTIZED:
        return encoding
    if dims[-1] % BLOCK_COLUMNS:
        return "f16"
    return "q8_0" if is_vocabulary and encoding in _FOUR_OR_FIVE_BITS else encoding
