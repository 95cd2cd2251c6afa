"""Runs command lines one after the other in one process, which imports torch once for all.

A line of JSON on stdin is a request: `words`, the `directory` to run in, and the `cache`. The
answer is a line on stdout: `code`, `out`, `err`.
"""

from __future__ import annotations

import io
import json
import os
import sys
import traceback
from contextlib import redirect_stderr, redirect_stdout

from llmtrain.cli.app import run


def main() -> None:
    """Answers until stdin ends."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    for line in sys.stdin:
        request = json.loads(line)
        os.chdir(request["directory"])
        os.environ["LLMTRAIN_CACHE_DIR"] = request["cache"]
        out, err = _stream(), _stream()
        with redirect_stdout(out), redirect_stderr(err):
            code = _code_of(request["words"])
        answer = {"code": code, "out": _text(out), "err": _text(err)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _code_of(words: list[str]) -> int:
    """The exit code; 1 after what nobody foresaw, with its traceback."""
    try:
        return run(words)
    except Exception:  # noqa: BLE001 - the next request is answered all the same
        traceback.print_exc()
        return 1


def _stream() -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="")


def _text(stream: io.TextIOWrapper) -> str:
    stream.seek(0)
    return stream.read()


if __name__ == "__main__":
    main()
