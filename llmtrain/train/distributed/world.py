"""The processes that train together: one alone, or the ranks that torchrun started."""

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

import psutil
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import DistError
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from llmtrain.errors import PeerLostError
from llmtrain.files import LAUNCHED_VARIABLE
from llmtrain.train.distributed.failures import launchers_store
from llmtrain.units import format_duration

_LOOK_EVERY_S = 0.02
_CLOCK_SLACK_S = 2.0  # a clock that was set moves all that started before
_MEETING_LIMIT = datetime.timedelta(minutes=10)
_READY, _FAILED = "ready", "failed"  # how a message of rank 0 begins
_TIMED_OUT = "Timed out"
# What gloo says, in a plain RuntimeError, where another process is gone or silent.
_PEER_WORDS = (_TIMED_OUT, "gloo/transport", "Connection closed", "Connection reset", "Broken pipe")


@dataclass(frozen=True, slots=True)
class World:
    """This process's place among all. `store` is what ranks leave messages in."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    store: Store | None = None

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    @contextmanager
    def together(self, backend: str, timeout_s: float) -> Iterator[None]:
        """Within the block ranks can add up tensors. Alone there is nothing to do.

        Raises PeerLostError where another rank ended, or left one waiting for `timeout_s`.
        """
        if self.store is None:
            yield
            return
        with self._answering(timeout_s):
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
                # DDP lies in reference cycles and holds the group; gloo's threads would outlive
                # Python, and free their last tensors in it: the process then aborts at its end.
                gc.collect()

    @contextmanager
    def _answering(self, timeout_s: float) -> Iterator[None]:
        """What torch raises where another rank does not answer is a PeerLostError."""
        try:
            yield
        except RuntimeError as error:
            text = str(error)
            if not isinstance(error, DistError) and not any(word in text for word in _PEER_WORDS):
                raise
            raise self._lost(text, timeout_s) from error

    def _lost(self, words: str, timeout_s: float) -> PeerLostError:
        """What this rank knows of the end of another."""
        hint = "--resume auto goes on from the last checkpoint"
        if _TIMED_OUT not in words:
            return PeerLostError(f"rank {self.rank} lost another rank", hint=hint)
        stopped = [rank for rank in _stopped_ranks() if rank != self.rank]
        whom = f"rank {stopped[0]}, which is suspended" if stopped else "another rank in vain"
        return PeerLostError(
            f"rank {self.rank} waited {format_duration(timeout_s)} for {whom} "
            "(device.collective_timeout)",
            hint=hint,
        )

    def from_main(
        self, key: str, produce: Callable[[], str], check: Callable[[], None] = lambda: None
    ) -> str:
        """What `produce` returns on rank 0, on every rank; the others wait without a collective.

        Where it raises, every rank fails: rank 0 with that error, the others with PeerLostError.
        Those that wait are also ended by what `check` raises.
        """
        if self.store is None:
            return produce()
        if self.is_main:
            self._publish(key, produce)
        with self._answering(0.0):
            while not self.store.check([key]):  # wait() would hold signals off
                check()
                time.sleep(_LOOK_EVERY_S)
            state, _, message = self.store.get(key).decode().partition(" ")
        if state != _READY:
            raise PeerLostError("rank 0 failed, and says why", hint="see its messages")
        return message

    def _publish(self, key: str, produce: Callable[[], str]) -> None:
        assert self.store is not None
        try:
            self.store.set(key, f"{_READY} {produce()}")
        except BaseException:
            self.store.set(key, _FAILED)  # or the others would wait for the limit
            raise

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def sum_values(self, values: Sequence[float], device: torch.device) -> list[float]:
        """Each value's sum over all ranks; `device` is what the backend talks through."""
        if self.size == 1:
            return [float(value) for value in values]
        together = torch.tensor(values, dtype=torch.float64, device=device)
        summed: list[float] = self.sum(together).tolist()
        return summed


def world_from_environment() -> World:
    """The place that torchrun's variables give this process, or a world of one."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return World()
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    return World(
        rank=rank,
        size=size,
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
        local_size=int(os.environ.get("LOCAL_WORLD_SIZE", str(size))),
        store=meet(_meeting_point(), rank, size),
    )


def meet(store: Store, rank: int, size: int, limit: datetime.timedelta = _MEETING_LIMIT) -> Store:
    """The part of a store that belongs to the ranks that live now. Raises PeerLostError.

    torchrun gives ranks that it starts again the store of those that failed, with all that they
    left in it. Rank 0 names a part anew and waits there for all the others; each of these believes
    the name only where rank 0 has seen it, and not one before it that had its number.
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
            raise PeerLostError(f"rank {rank} waited for others to start, for {limit}")
        time.sleep(_LOOK_EVERY_S)


def _read(store: Store, key: str) -> str | None:
    return store.get(key).decode() if store.check([key]) else None


def _meeting_point() -> Store:
    """The store that all ranks of this launch know. Raises PeerLostError."""
    if LAUNCHED_VARIABLE in os.environ:
        return launchers_store(_MEETING_LIMIT)
    found: Store = next(rendezvous("env://", timeout=_MEETING_LIMIT))[0]
    return found


def is_launched() -> bool:
    """Whether this process is a rank whose parent started all ranks of this machine."""
    return LAUNCHED_VARIABLE in os.environ or "TORCHELASTIC_RUN_ID" in os.environ


def launcher_identity() -> str | None:
    """What names the torchrun that started this process, on this machine; None without one."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    return _identity(os.getppid())


def run_process_identity() -> str:
    """What names the process whose tree is this machine's part of the run."""
    return _identity(os.getppid() if is_launched() else os.getpid())


def running_process(identity: str) -> int | None:
    """The id of the process that `identity` names; None where it has ended."""
    pid, _, created_s = identity.partition(" ")
    try:
        process = psutil.Process(int(pid))
        is_the_same = abs(process.create_time() - float(created_s)) < _CLOCK_SLACK_S
        return process.pid if is_the_same and process.is_running() else None
    except (psutil.Error, ValueError):
        return None


def _identity(pid: int) -> str:
    return f"{pid} {psutil.Process(pid).create_time():.2f}"


def was_restarted() -> bool:
    """Whether torchrun started these ranks again, after others had failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def _stopped_ranks() -> list[int]:
    """Ranks that the same launcher started and that are suspended now."""
    found = []
    for process in psutil.Process(os.getppid()).children():
        with suppress(psutil.Error, KeyError, ValueError):
            if process.status() == psutil.STATUS_STOPPED:
                found.append(int(process.environ()["RANK"]))
    return found


def device_of(kind: str, world: World) -> torch.device:
    """The device that this rank computes on."""
    return torch.device("cuda", world.local_rank) if kind == "cuda" else torch.device(kind)
