"""What a launcher and its ranks say to each other, through the launcher's store."""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from datetime import timedelta

from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import Store

from llmtrain import errors
from llmtrain.errors import LlmtrainError, PeerLostError

_HOST = "127.0.0.1"
_HAS_LIBUV = sys.platform != "win32"  # Windows wheels are built without it
_TELLING_LIMIT = timedelta(seconds=5)
_KINDS: tuple[type[LlmtrainError], ...] = (
    errors.PeerLostError,
    errors.UsageError,
    errors.DoesNotFitError,
    errors.DivergedError,
    errors.DataError,
    errors.ThresholdError,
    errors.InterruptedRunError,
    errors.AbortedError,
    errors.LlmtrainError,
)


def open_store() -> tuple[Store, int]:
    """The launcher's own store, and the port that the system chose for it."""
    store = TCPStore(_HOST, 0, is_master=True, wait_for_workers=False, use_libuv=_HAS_LIBUV)
    return store, store.port


def place_of(rank: int, ranks: int, port: int) -> dict[str, str]:
    """The variables that tell a rank where it stands, named as torchrun names them."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": _HOST,
        "MASTER_PORT": str(port),
    }


def launchers_store(limit: timedelta) -> Store:
    """The launcher's store, for one of its ranks. Raises PeerLostError where it is gone."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        found: Store = TCPStore(host, port, is_master=False, timeout=limit, use_libuv=_HAS_LIBUV)
    except DistError as error:
        raise PeerLostError("the launcher is gone", hint="--resume auto goes on") from error
    return found


def report_failure(error: LlmtrainError) -> bool:
    """Whether the launcher was told why this rank ends, and will say it."""
    kind = next(kind.__name__ for kind in _KINDS if isinstance(error, kind))
    told = json.dumps([kind, error.message, error.hint])
    with suppress(DistError, PeerLostError):
        launchers_store(_TELLING_LIMIT).set(_key(int(os.environ["RANK"])), told)
        return True
    return False


def reported_failure(store: Store, rank: int) -> LlmtrainError | None:
    """Why the rank ended, as it told; None where it did not."""
    if not store.check([_key(rank)]):
        return None
    name, message, hint = json.loads(store.get(_key(rank)))
    kind = next(kind for kind in _KINDS if kind.__name__ == name)
    return kind(message, hint=hint)


def _key(rank: int) -> str:
    return f"failure of rank {rank}"
