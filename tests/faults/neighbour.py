"""A process that takes memory: `python -m tests.faults.neighbour AT_ONCE MORE_A_SECOND MOST`."""

from __future__ import annotations

import mmap
import sys
import time

_PAGE_BYTES = 4096


def _take(size_bytes: int) -> mmap.mmap:
    block = mmap.mmap(-1, size_bytes)
    block[::_PAGE_BYTES] = b"\1" * len(range(0, size_bytes, _PAGE_BYTES))
    return block


def main(at_once: int, a_second: int, most: int) -> None:
    """Holds more and more memory, until it is ended."""
    held = [_take(at_once)] if at_once else []
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    taken = at_once
    while True:
        time.sleep(0.1)
        more = min(a_second // 10, most - taken) // _PAGE_BYTES * _PAGE_BYTES
        if more > 0:
            held.append(_take(more))
            taken += more


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
