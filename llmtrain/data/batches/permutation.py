"""The order of windows in training, computed from the position without any state.

window(i) covers the tokens [i·T, i·T + T], both ends included: T inputs, and the T targets that
follow them. So every token but the first is a target exactly once an epoch, up to the last
whole window.
"""

from __future__ import annotations

import math

from llmtrain.errors import DataError

_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15
_ROUNDS = 6


def count_windows(num_tokens: int, context: int) -> int:
    """Return the number of whole windows in `num_tokens`. Raises DataError if there is none."""
    if num_tokens <= context:
        message = f"{num_tokens} tokens of text are too few for one window of context {context}"
        raise DataError(message, hint="add text with --data, or set a smaller model.context")
    return (num_tokens - 1) // context


def permuted_index(position: int, num_windows: int, seed: int) -> tuple[int, int]:
    """Return (epoch, window) at `position`: each epoch has every window once, in its own order."""
    epoch, index = divmod(position, num_windows)
    return epoch, _permute(index, num_windows, _mix(_mix(seed & _MASK) + epoch))


def _permute(index: int, size: int, key: int) -> int:
    """Return the image of `index` under the bijection on [0, size) that `key` selects.

    A Feistel network on the digits of a two-digit number, with addition modulo each digit's base,
    is a bijection on [0, rows × columns); following it from inside until it is inside again makes
    it one on [0, size). (Black and Rogaway, Ciphers with Arbitrary Finite Domains, 2002.) The
    domain is larger than `size` by less than one row, so a second step is rare.
    """
    columns = math.isqrt(size - 1) + 1
    rows = -(-size // columns)
    while True:
        index = _feistel(index, rows, columns, key)
        if index < size:
            return index


def _feistel(index: int, rows: int, columns: int, key: int) -> int:
    row, column = divmod(index, columns)
    for number in range(0, _ROUNDS, 2):
        row = (row + _mix(key ^ (number << 56 | column))) % rows
        column = (column + _mix(key ^ ((number + 1) << 56 | row))) % columns
    return row * columns + column


def _mix(value: int) -> int:
    """Return splitmix64 of `value`: each bit of the result depends on all bits of it."""
    value = (value + _GOLDEN) & _MASK
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) & _MASK
    return value ^ value >> 31
