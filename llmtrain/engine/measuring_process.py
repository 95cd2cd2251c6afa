"""The process that measures a CPU for a run. Imports nothing heavy before it is set up."""

from __future__ import annotations

import sys

from llmtrain.children import end_with_parent


def main() -> None:
    """Measure for the task on standard input, as a process that trains would."""
    from llmtrain.machine.allocator import restart_with_allocator_settings

    restart_with_allocator_settings()  # first of all: it starts this process again
    end_with_parent()
    from llmtrain.machine.startup import prepare_for_torch

    prepare_for_torch()
    from llmtrain.engine.measure_apart import measure

    measure(sys.stdin.buffer.read())
