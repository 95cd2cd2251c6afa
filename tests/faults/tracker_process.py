"""A tracker's process whose disk is full after a few kilobytes, as training starts it."""

from __future__ import annotations

import os

from llmtrain.tracking.worker import main

BYTES = "LLMTRAIN_TEST_FILE_BYTES"


def limited() -> None:
    """Log as ever, with a limit on the size of each file that is written."""
    import resource
    import signal

    limit = int(os.environ.get(BYTES, "8192"))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing fails, as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    main()
