"""Commands that start with signals ignored, as under nohup or as a script's background job."""

from __future__ import annotations

import signal
import sys

_EXEC = """\
import os, signal, sys
for number in sys.argv[1].split(","):
    signal.signal(int(number), signal.SIG_IGN)
os.execvp(sys.argv[2], sys.argv[2:])
"""


def ignoring(numbers: tuple[signal.Signals, ...], command: list[str]) -> list[str]:
    """Return a command that ignores the signals and then becomes `command`."""
    return [sys.executable, "-c", _EXEC, ",".join(str(int(n)) for n in numbers), *command]
