"""Two network namespaces with a slow link between them: a bandwidth and a delay in each direction.

`ip netns` makes the namespaces; the link is two TUN devices whose packets this process passes on
when a wire of that speed would have delivered them. It needs root, and no module of the kernel that
shapes traffic (`tc … netem` is often not there).
"""

from __future__ import annotations

import fcntl
import heapq
import os
import select
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_PACKET_BYTES = 9000  # large, so that passing them on takes little of a core
_LONGEST_QUEUE_S = 0.5  # a router drops what would wait longer


@dataclass(frozen=True, slots=True)
class Side:
    """One machine: its namespace and its address on the link."""

    namespace: str
    address: str

    def command(self, *arguments: str) -> list[str]:
        """Return a command that runs in the namespace."""
        return ["ip", "netns", "exec", self.namespace, *arguments]


@dataclass(slots=True)
class _Wire:
    """One direction: packets on their way, by the time at which they arrive."""

    source: int
    target: int
    bytes_per_s: float
    delay_s: float
    free_at_s: float = 0.0
    on_the_way: list[tuple[float, int, bytes]] = field(default_factory=list)
    carried: int = 0

    def take(self, packet: bytes) -> None:
        now_s = time.monotonic()
        if self.free_at_s - now_s > _LONGEST_QUEUE_S:
            return
        self.free_at_s = max(now_s, self.free_at_s) + len(packet) / self.bytes_per_s
        self.carried += 1
        heapq.heappush(self.on_the_way, (self.free_at_s + self.delay_s, self.carried, packet))

    def deliver(self) -> float:
        """Deliver what has arrived; return the seconds until the next packet does."""
        while self.on_the_way:
            wait_s = self.on_the_way[0][0] - time.monotonic()
            if wait_s > 0:
                return wait_s
            os.write(self.target, heapq.heappop(self.on_the_way)[2])
        return 1.0


@contextmanager
def slow_link(bits_per_s: float, round_trip_s: float) -> Iterator[tuple[Side, Side]]:
    """Within the block there are two machines with such a link; removed afterwards."""
    sides = [Side(f"llmtrain-{os.getpid()}-{i}", f"10.77.0.{i + 1}") for i in range(2)]
    devices = [_tun(f"far{os.getpid() % 10000}x{i}") for i in range(2)]
    closing = threading.Event()
    relay = threading.Thread(
        target=_pass_on, args=(*devices, bits_per_s / 8, round_trip_s / 2, closing)
    )
    try:
        for i, side in enumerate(sides):
            _set_up(side, f"far{os.getpid() % 10000}x{i}")
        relay.start()
        yield sides[0], sides[1]
    finally:
        closing.set()
        if relay.is_alive():
            relay.join()
        for side in sides:
            subprocess.run(["ip", "netns", "del", side.namespace], check=False)
        for device in devices:
            os.close(device)


def _tun(name: str) -> int:
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH", name.encode(), _IFF_TUN | _IFF_NO_PI))
    return device


def _set_up(side: Side, device: str) -> None:
    space = side.namespace
    for words in (
        f"netns add {space}",
        f"link set {device} netns {space}",
        f"-n {space} link set lo up",
        f"-n {space} link set {device} mtu {_PACKET_BYTES}",
        f"-n {space} addr add {side.address}/24 dev {device}",
        f"-n {space} link set {device} up",
    ):
        subprocess.run(["ip", *words.split()], check=True)


def _pass_on(
    first: int, second: int, bytes_per_s: float, delay_s: float, closing: threading.Event
) -> None:
    wires = {
        first: _Wire(first, second, bytes_per_s, delay_s),
        second: _Wire(second, first, bytes_per_s, delay_s),
    }
    while not closing.is_set():
        wait_s = min(wire.deliver() for wire in wires.values())
        for device in select.select(list(wires), [], [], min(wait_s, 0.2))[0]:
            for packet in _packets(device):
                wires[device].take(packet)


def _packets(device: int) -> Iterator[bytes]:
    while True:
        try:
            yield os.read(device, 1 << 16)
        except BlockingIOError:
            return
