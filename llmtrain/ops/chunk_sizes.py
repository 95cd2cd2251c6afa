"""What the loss and the optimizer compute at once. Without torch, for use in plans."""

from __future__ import annotations

# Bytes of logits by bytes per element. In half precision about the last-level cache: more is no
# faster. fp32 products pack the whole head for every chunk: with 32 MiB a step takes 7% longer.
_CPU_LOSS_CHUNK_BYTES = {2: 32 << 20, 4: 128 << 20}
_NATIVE_RUN = 512
NATIVE_WIDTH_MULTIPLE = 32  # of hidden features, that the native loss takes
_ACCELERATOR_LOSS_CHUNK_BYTES = 1 << 30  # large enough that products fill the device
MUON_STACK_BYTES = 64 << 20  # of matrices that Muon orthogonalises at once


def loss_chunk_tokens(vocab_size: int, device_kind: str, element_bytes: int) -> int:
    """Return the most tokens whose logits the loss computes at once."""
    budget = _ACCELERATOR_LOSS_CHUNK_BYTES
    if device_kind == "cpu":
        budget = _CPU_LOSS_CHUNK_BYTES.get(element_bytes, _CPU_LOSS_CHUNK_BYTES[4])
    return max(64, budget // (element_bytes * vocab_size) // 64 * 64)


def even_chunk(rows: int, limit: int) -> int:
    """Return a chunk size up to `limit` that divides `rows` evenly if one is near; else `limit`."""
    fewest = -(-rows // limit)
    even = (rows // count for count in range(fewest, 2 * fewest + 1) if rows % count == 0)
    return max(1, next(even, limit))


def native_chunk_tokens(rows: int, vocab_size: int) -> int:
    """Return the tokens whose exponentials the native loss keeps at once: no more than above.

    It keeps them in runs of 512 tokens, or one shorter run of a multiple of 32.
    """
    limit = min(loss_chunk_tokens(vocab_size, "cpu", 2), -(-rows // 32) * 32)
    return limit // _NATIVE_RUN * _NATIVE_RUN if limit >= _NATIVE_RUN else limit // 32 * 32
