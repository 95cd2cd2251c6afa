"""`llmtrain` in a process that holds memory already: `python -m tests.faults.ballast BYTES …`."""

from __future__ import annotations

import sys

from llmtrain.cli.app import main

if __name__ == "__main__":
    ballast = bytearray(int(sys.argv.pop(1)))
    ballast[::4096] = b"\1" * len(range(0, len(ballast), 4096))
    main()
