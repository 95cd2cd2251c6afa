"""How ranks report failures to their launcher: through the launcher's store."""

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
_REPORT_LIMIT = timedelta(seconds=5)
# By name. A class defined elsewhere is reported as its base class in `llmtrain.errors`.
_KINDS: dict[str, type[LlmtrainError]] = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, LlmtrainError)
}


def open_store() -> tuple[Store, int]:
    """Open the launcher's store; return it and the port that the system chose."""
    store = TCPStore(_HOST, 0, is_master=True, wait_for_workers=False, use_libuv=_HAS_LIBUV)
    return store, store.port


def rank_environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    """Return a rank's environment variables, with torchrun's names."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": _HOST,
        "MASTER_PORT": str(port),
    }


def launcher_store(limit: timedelta) -> Store:
    """Connect a rank to its launcher's store. Raises PeerLostError if the launcher has ended."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        store: Store = TCPStore(host, port, is_master=False, timeout=limit, use_libuv=_HAS_LIBUV)
    except DistError as error:
        raise PeerLostError("the launcher has ended", hint="--resume auto continues") from error
    return store


def report_failure(error: LlmtrainError) -> bool:
    """Report why this rank ends; return whether the launcher received it and will print it."""
    kind = next(kind.__name__ for kind in type(error).__mro__ if kind in _KINDS.values())
    report = json.dumps([kind, error.message, error.hint])
    with suppress(DistError, PeerLostError):
        launcher_store(_REPORT_LIMIT).set(_key(int(os.environ["RANK"])), report)
        return True
    return False


def reported_failure(store: Store, rank: int) -> LlmtrainError | None:
    """Return the failure that the rank reported, if any."""
    if not store.check([_key(rank)]):
        return None
    name, message, hint = json.loads(store.get(_key(rank)))
    return _KINDS[name](message, hint=hint)


def _key(rank: int) -> str:
    return f"failure of rank {rank}"
