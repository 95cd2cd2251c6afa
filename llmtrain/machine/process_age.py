"""The age of this process: a run's time counts from its start, imports included."""

from __future__ import annotations

import os
import time


def process_age_s() -> float:
    """Return the seconds since this process was started."""
    import psutil

    return max(0.0, time.time() - psutil.Process(os.getpid()).create_time())
