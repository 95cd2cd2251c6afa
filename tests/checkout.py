"""The path of this checkout, for child processes."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).parents[1]


def import_path() -> str:
    """Return PYTHONPATH with this checkout in front."""
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
