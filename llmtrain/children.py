"""Processes of their own that run a part of this package."""

from __future__ import annotations

import sys

MAIN = "llmtrain.cli.app:main"  # the command itself


def python_command(entry: str, *arguments: str) -> list[str]:
    """What calls `module:function` in another Python; `arguments` are its `sys.argv[1:]`.

    It imports from where this one does. `python -m` would look in the working directory first,
    where the user's data lies, and run a file there that has the name of a library.
    """
    module, _, function = entry.partition(":")
    code = f"import sys; sys.path[:] = {sys.path!r}; from {module} import {function}; {function}()"
    return [sys.executable, "-c", code, *arguments]
