"""The command `llmtrain`, also as `python -m llmtrain` and as what torchrun starts."""

from __future__ import annotations

import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line of this process and exit with its code.

    Ctrl-C ends it without a traceback also while modules are imported.
    """
    try:
        from llmtrain.interrupts import end_on_interrupt

        end_on_interrupt()
        if sys.argv[1:2] in (["train"], ["finetune"]):
            from llmtrain.machine.allocator import restart_with_allocator_settings

            restart_with_allocator_settings()  # first of all: it starts this process again
        from llmtrain.cli.app import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)  # `AbortedError`'s, which may not be imported yet


if __name__ == "__main__":
    main()
