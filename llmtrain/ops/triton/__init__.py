"""Kernels for NVIDIA GPUs, in Triton: what surrounds a block's products, in one pass each.

Importing a module here needs Triton, which torch's builds for CUDA bring; `ops` imports one where
a plan has chosen it.
"""

from __future__ import annotations

from pathlib import Path

from llmtrain.files import json_key, sha256_file


def source_digest() -> str:
    """Return a key of the kernels' source: what was measured of others says nothing of them."""
    return json_key([sha256_file(path) for path in sorted(Path(__file__).parent.glob("*.py"))])
