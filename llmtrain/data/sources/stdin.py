"""Standard input as a file: read once, and kept until the process ends."""

from __future__ import annotations

import atexit
import shutil
import sys
import tempfile
from functools import cache
from pathlib import Path

from llmtrain.data.formats.registry import reading_of
from llmtrain.data.reading import SourceFile
from llmtrain.errors import DataError, UsageError

_ORIGIN = "stdin"


def is_stdin(spec: str) -> bool:
    """Return whether `spec` is `-`, or `-` with the suffix of a format, such as `-.jsonl`."""
    return spec == "-" or spec.startswith("-.")


def stdin_file(spec: str) -> SourceFile:
    """Return standard input as a file that can be read any number of times.

    Raises UsageError if there is no input, DataError if there is no room on the disk.
    """
    return SourceFile(_spooled(), _ORIGIN, reading_of(_ORIGIN + spec[1:]))


@cache  # there is one standard input per process, which can be read only once
def _spooled() -> Path:
    if sys.stdin is None or sys.stdin.closed:
        raise UsageError("--data - reads standard input, which is closed", hint="--data FILE")
    if sys.stdin.isatty():
        message = "--data - reads standard input, which is a terminal"
        raise UsageError(message, hint="cat FILE | llmtrain … --data -, or --data FILE")
    place = tempfile.gettempdir()
    try:
        with tempfile.NamedTemporaryFile(prefix="llmtrain-stdin-", delete=False) as file:
            path = Path(file.name)
            atexit.register(path.unlink, missing_ok=True)
            shutil.copyfileobj(sys.stdin.buffer, file)
    except OSError as error:
        message = f"cannot keep standard input in {place}: {error.strerror or error}"
        raise DataError(message, hint="make room there, or set TMPDIR to another place") from error
    return path
