"""The processes that train together: a single one, or the ranks started by a launcher."""

from __future__ import annotations

import datetime
import gc
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Literal

import psutil
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import DistError
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from llmtrain.errors import PeerLostError, UsageError
from llmtrain.files import LAUNCHED_VARIABLE
from llmtrain.machine.process_identity import identity_of
from llmtrain.train.distributed.failures import launcher_store
from llmtrain.train.distributed.interface import require_reachable, set_interface
from llmtrain.units import HIGHEST_PORT, format_duration

Launcher = Literal["llmtrain", "torchrun", "environment"]
_POLL_EVERY_S = 0.02
_RENDEZVOUS_LIMIT = datetime.timedelta(minutes=10)
_RANK_VARIABLES, _ADDRESS_VARIABLES = ("RANK", "WORLD_SIZE"), ("MASTER_ADDR", "MASTER_PORT")
_MOST_RANKS = 1 << 20
_READY, _FAILED = "ready", "failed"  # the first word of rank 0's messages
_TIMED_OUT = "Timed out"
# Parts of gloo's messages, in a plain RuntimeError, when another process has ended or hangs.
_PEER_ERRORS = (
    _TIMED_OUT,
    "gloo/transport",
    "Connection closed",
    "Connection reset",
    "Broken pipe",
)


@dataclass(frozen=True, slots=True)
class World:
    """This process's rank among all. Through `store` ranks exchange messages."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    store: Store | None = None
    has_equal_machines: bool = True  # each has as many ranks, one after the other; rank 0 knows

    @property
    def is_main(self) -> bool:
        """True if this process writes files and reports."""
        return self.rank == 0

    @property
    def has_several_machines(self) -> bool:
        """True if there are ranks on other machines."""
        return self.local_size < self.size

    @contextmanager
    def process_group(
        self, backend: str, timeout_s: float, limit: str = "device.collective_timeout"
    ) -> Iterator[None]:
        """Within the block, make collectives available; does nothing for a single process.

        `limit`: the settings that the timeout follows from. Raises PeerLostError if another rank
        has ended or did not answer for `timeout_s`.
        """
        if self.store is None:
            yield
            return
        if self.has_several_machines:
            set_interface(backend, os.environ.get("MASTER_ADDR", ""), os.environ)
        with self._peer_errors_mapped(timeout_s, limit):
            try:
                dist.init_process_group(
                    backend,
                    store=self.store,
                    rank=self.rank,
                    world_size=self.size,
                    timeout=datetime.timedelta(seconds=timeout_s),
                )
                yield
            finally:
                if dist.is_initialized():
                    dist.destroy_process_group()
                # DDP is in reference cycles that keep the group alive; gloo's threads would outlive
                # Python and free their last tensors in it, which aborts the process at its end.
                gc.collect()

    @contextmanager
    def _peer_errors_mapped(self, timeout_s: float, limit: str = "") -> Iterator[None]:
        """Map torch's errors about another rank to PeerLostError."""
        try:
            yield
        except RuntimeError as error:
            text = str(error)
            if not isinstance(error, DistError) and not any(part in text for part in _PEER_ERRORS):
                raise
            raise self._lost(text, timeout_s, limit) from error

    def _lost(self, message: str, timeout_s: float, limit: str) -> PeerLostError:
        """Return the error for the loss of another rank."""
        hint = "--resume auto continues from the last checkpoint"
        if _TIMED_OUT not in message:
            return PeerLostError(f"rank {self.rank} lost another rank", hint=hint)
        stopped = [rank for rank in _stopped_ranks() if rank != self.rank]
        peer = f"rank {stopped[0]}, which is suspended" if stopped else "another rank"
        return PeerLostError(
            f"rank {self.rank} waited {format_duration(timeout_s)} for {peer} ({limit})",
            hint=hint,
        )

    def broadcast_from_main(
        self, key: str, produce: Callable[[], str], check: Callable[[], None] = lambda: None
    ) -> str:
        """Return on every rank what `produce` returns on rank 0. Uses the store, not a collective.

        If it raises, every rank fails: rank 0 with that error, the others with PeerLostError. While
        they wait, ranks call `check`, which may raise.
        """
        if self.store is None:
            return produce()
        if self.is_main:
            self._publish(key, produce)
        with self._peer_errors_mapped(0.0):
            while not self.store.check([key]):  # wait() would delay signals
                check()
                time.sleep(_POLL_EVERY_S)
            state, _, message = self.store.get(key).decode().partition(" ")
        if state != _READY:
            raise PeerLostError("rank 0 failed", hint="see its error message")
        return message

    def _publish(self, key: str, produce: Callable[[], str]) -> None:
        assert self.store is not None
        try:
            self.store.set(key, f"{_READY} {produce()}")
        except BaseException:
            self.store.set(key, _FAILED)  # otherwise the others would wait until the limit
            raise

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum the tensor over all ranks, in place; return it."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def sum_values(self, values: Sequence[float], device: torch.device) -> list[float]:
        """Return each value's sum over all ranks; `device` is the backend's."""
        if self.size == 1:
            return [float(value) for value in values]
        tensor = torch.tensor(values, dtype=torch.float64, device=device)
        summed: list[float] = self.sum(tensor).tolist()
        return summed

    def processes_of_machines(self, device: torch.device) -> list[int] | None:
        """Return how many processes each machine has, in the order of ranks.

        None where the launcher did not say. Every rank has to call it.
        """
        own = [0] * self.size
        own[self.rank] = self.local_size if self.local_rank == 0 else 0
        found = [int(number) for number in self.sum_values(own, device) if number]
        return found if sum(found) == self.size else None


def world_from_environment() -> World:
    """Return the world by torchrun's environment variables, or a single process.

    Raises UsageError where only some of them are set, or to what no launcher sets.
    """
    if not any(name in os.environ for name in _RANK_VARIABLES):
        return World()
    needed = _RANK_VARIABLES if is_launched() else (*_RANK_VARIABLES, *_ADDRESS_VARIABLES)
    missing = [name for name in needed if not os.environ.get(name)]
    if missing:
        given = ", ".join(name for name in needed if name not in missing)
        raise _wrong_variables(f"{given} is set, but {', '.join(missing)} is not")
    size = _number("WORLD_SIZE", 1, _MOST_RANKS)
    rank = _number("RANK", 0, size - 1)
    local_size = _number("LOCAL_WORLD_SIZE", 1, size, default=size)
    if not is_launched() and rank >= local_size:  # on another machine than rank 0
        require_reachable(os.environ["MASTER_ADDR"], _number("MASTER_PORT", 1, HIGHEST_PORT))
    local_rank = _number("LOCAL_RANK", 0, local_size - 1, default=0)
    store = rendezvous_store(_launch_store(), rank, size)
    is_regular = size % local_size == 0 and rank % local_size == local_rank
    return World(
        rank=rank,
        size=size,
        local_rank=local_rank,
        local_size=local_size,
        store=store,
        has_equal_machines=_are_equal(store, rank, size, local_size if is_regular else 0),
    )


def _number(name: str, least: int, most: int, default: int | None = None) -> int:
    """Return an environment variable as a number. Raises UsageError."""
    text = os.environ.get(name)
    if text is None and default is not None:
        return default
    if text is None or not text.isascii() or not text.isdecimal() or not least <= int(text) <= most:
        raise _wrong_variables(f"{name} is {text!r}, not a number from {least} to {most}")
    return int(text)


def _wrong_variables(problem: str) -> UsageError:
    return UsageError(
        f"the environment describes a rank of several processes: {problem}",
        hint=f"unset {' '.join(_RANK_VARIABLES)}; or start the ranks with --nproc or torchrun, "
        "which set all of them",
    )


def rendezvous_store(
    store: Store, rank: int, size: int, limit: datetime.timedelta = _RENDEZVOUS_LIMIT
) -> Store:
    """Return a prefix of the store that only the current ranks use. Raises PeerLostError.

    torchrun gives restarted ranks the store of those that failed, with all their messages. Rank 0
    chooses a new prefix and waits there for the others; each accepts it only after rank 0 has seen
    its token, and not that of an earlier process with the same rank.
    """
    own, end_s = secrets.token_hex(8), time.monotonic() + limit.total_seconds()
    if rank == 0:
        store.set("part", own)
    while True:
        name = own if rank == 0 else _read(store, "part") or ""
        part = PrefixStore(f"llmtrain {name}", store)
        if rank == 0 and part.check([str(other) for other in range(1, size)]):
            seen = [_read(part, str(other)) for other in range(1, size)]
            part.set("seen", json.dumps([own, *seen]))
        elif name:
            part.set(str(rank), own)
        if own in json.loads(_read(part, "seen") or "[]"):
            return part
        if time.monotonic() > end_s:
            raise PeerLostError(
                f"rank {rank} waited {limit} for other ranks to start", hint=_hint_of_agents()
            )
        time.sleep(_POLL_EVERY_S)


def _are_equal(store: Store, rank: int, size: int, local_size: int) -> bool:
    """Return on rank 0 whether every rank's machine has as many ranks, in order; else True.

    `local_size`: how many this rank's machine has; 0: they are in another order. Every rank has to
    call it, with a store that `rendezvous_store` returned. Raises PeerLostError.
    """
    store.set(_machine_key(rank), str(local_size))
    if rank > 0:
        return True
    keys = [_machine_key(other) for other in range(size)]
    end_s = time.monotonic() + _RENDEZVOUS_LIMIT.total_seconds()
    while not store.check(keys):
        if time.monotonic() > end_s:
            raise PeerLostError("another rank ended before it was known where it runs")
        time.sleep(_POLL_EVERY_S)
    return local_size > 0 and {store.get(key).decode() for key in keys} == {str(local_size)}


def _machine_key(rank: int) -> str:
    return f"ranks on the machine of rank {rank}"


def _hint_of_agents() -> str | None:
    """Return what torchrun's agents need where one of them comes later; None without them.

    They remember the store of their first meeting, so that ranks wait at two of them.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    return "where machines may come later, export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 on all"


def _read(store: Store, key: str) -> str | None:
    return store.get(key).decode() if store.check([key]) else None


def _launch_store() -> Store:
    """Return the store that all ranks of this launch share. Raises PeerLostError."""
    if LAUNCHED_VARIABLE in os.environ:
        return launcher_store(_RENDEZVOUS_LIMIT)
    store: Store = next(rendezvous("env://", timeout=_RENDEZVOUS_LIMIT))[0]
    return store


def is_launched() -> bool:
    """Return whether this process is a rank whose parent launched this machine's ranks."""
    return LAUNCHED_VARIABLE in os.environ or "TORCHELASTIC_RUN_ID" in os.environ


def launcher_name() -> Launcher | None:
    """Return what started this process as one of several ranks; None: nothing did."""
    if LAUNCHED_VARIABLE in os.environ:
        return "llmtrain"
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return "torchrun"
    return "environment" if any(name in os.environ for name in _RANK_VARIABLES) else None


def launcher_identity() -> str | None:
    """Return the identity of the torchrun that started this process; None without one."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    return identity_of(os.getppid())


def run_process_identity() -> str:
    """Return the identity of the process whose tree is this machine's part of the run."""
    return identity_of(os.getppid() if is_launched() else os.getpid())


def was_restarted() -> bool:
    """Return whether torchrun restarted these ranks after a failure."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def _stopped_ranks() -> list[int]:
    """Return the ranks of the same launcher that are suspended now."""
    found = []
    for process in psutil.Process(os.getppid()).children():
        with suppress(psutil.Error, KeyError, ValueError):
            if process.status() == psutil.STATUS_STOPPED:
                found.append(int(process.environ()["RANK"]))
    return found


def device_of(kind: str, world: World) -> torch.device:
    """Return the device that this rank computes on."""
    return torch.device("cuda", world.local_rank) if kind == "cuda" else torch.device(kind)
