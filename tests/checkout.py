"""This checkout, as other processes find it."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).parents[1]


def import_path() -> str:
    """PYTHONPATH with this checkout before what is there already."""
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
