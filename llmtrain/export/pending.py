"""Files and directories that get their name only once they are complete."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmtrain.files import created, sync_directory, sync_file

_SUFFIX = ".partial"


@contextmanager
def pending(final: Path) -> Iterator[Path]:
    """Yield a hidden path beside `final`: a file or a directory that is to become `final`.

    It is synced and renamed where the block succeeds, over a file or directory that was there, and
    removed where it fails, with directories that were created for it. A process that is killed
    leaves it, and the next one for the same name removes it.
    """
    with created(final.parent):
        for left in final.parent.glob(f".{final.name}.????????{_SUFFIX}"):
            _remove(left)
        hidden = final.with_name(f".{final.name}.{secrets.token_hex(4)}{_SUFFIX}")
        try:
            yield hidden
            for path in [hidden] if hidden.is_file() else sorted(hidden.iterdir()):
                sync_file(path)
            if final.is_dir():
                shutil.rmtree(final)
            hidden.replace(final)
        finally:
            _remove(hidden)
    sync_directory(final.parent)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
