"""Ctrl-C before a command has something to finish: it ends the process with exit code 130."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

_IMPORT_SYSTEM = "<frozen importlib._bootstrap>"
_EXIT_CODE = 130
_REPEAT_AFTER_S = 0.05


def end_on_interrupt() -> None:
    """Let Ctrl-C end this process wherever it is, without a traceback.

    A module that is being imported may swallow KeyboardInterrupt, and an extension module in C++
    aborts the process on it: there the process exits at once, as nothing is begun yet. Elsewhere
    KeyboardInterrupt is raised, and raised again where Python drops it, as in `__del__`. SIGINT
    that is ignored (nohup, a script's background job) stays ignored.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _on_interrupt)
        sys.unraisablehook = _on_unraisable


def is_importing(frame: FrameType | None) -> bool:
    """Return whether a module is being imported in `frame` or in one that called it."""
    while frame is not None:
        if frame.f_code.co_filename == _IMPORT_SYSTEM:
            return True
        frame = frame.f_back
    return False


def _on_interrupt(_number: int, frame: FrameType | None) -> NoReturn:
    if is_importing(frame):
        os._exit(_EXIT_CODE)
    raise KeyboardInterrupt


def _on_unraisable(dropped: UnraisableHookArgs, /) -> None:
    """Repeat a KeyboardInterrupt that was dropped; report anything else as Python does."""
    if issubclass(dropped.exc_type, KeyboardInterrupt):
        # After a moment, as this is still where exceptions are dropped.
        again = threading.Timer(_REPEAT_AFTER_S, _interrupt_main_thread)
        again.daemon = True
        again.start()
    else:
        sys.__unraisablehook__(dropped)


def _interrupt_main_thread() -> None:
    if hasattr(signal, "pthread_kill"):  # which also interrupts a system call
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, signal.SIGINT)
    else:
        import _thread

        _thread.interrupt_main()
