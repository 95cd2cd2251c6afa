"""The JSON of answers, whole and streamed alike."""

from __future__ import annotations

import json
from typing import Any


def encode_json(value: dict[str, Any]) -> bytes:
    """Return a value as JSON of one line, in UTF-8.

    Halves of surrogate pairs, which UTF-8 lacks, become question marks. Raises ValueError for NaN
    and infinities, which JSON lacks.
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode(errors="replace")
