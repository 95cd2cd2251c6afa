"""Choose the network interface over which ranks of several machines meet.

gloo takes the interface that this machine's own name resolves to. That is often the loopback, or a
bridge of containers, which other machines cannot reach: ranks then wait for each other until they
give up. The interface that leads to rank 0's machine is the one that they already share.
"""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import MutableMapping
from contextlib import suppress

import psutil

from llmtrain.errors import UsageError

_VARIABLES = {"gloo": "GLOO_SOCKET_IFNAME", "nccl": "NCCL_SOCKET_IFNAME"}
_ELSEWHERE = "192.0.2.1"  # for documentation (RFC 5737); only the route to it matters
_POLL_EVERY_S = 0.2
_ANY_PORT = 9  # a datagram socket sends nothing when it is connected


def require_reachable(address: str, port: int, limit_s: float = 30.0) -> None:
    """Raise UsageError where rank 0's address means this machine, on which nothing listens.

    For ranks of another machine than rank 0's, which would wait in vain. Waits up to `limit_s`: on
    one machine that stands for several, rank 0 may only be late.
    """
    hint = "export MASTER_ADDR=ADDRESS on every machine: that of rank 0's, on their common network"
    found = _addresses(address, hint)
    if not all(ipaddress.ip_address(each).is_loopback for each in found):
        return
    end_s = time.monotonic() + limit_s
    while True:
        with suppress(OSError), socket.create_connection((address, port), timeout=1.0):
            return
        if time.monotonic() > end_s:
            raise UsageError(
                f"MASTER_ADDR {address} is {found[0]}, by which this machine reaches only itself, "
                "and rank 0 is on another",
                hint=hint,
            )
        time.sleep(_POLL_EVERY_S)


def set_interface(backend: str, address: str, environment: MutableMapping[str, str]) -> None:
    """Let the backend use the interface that leads to rank 0, unless the user has named one."""
    variable = _VARIABLES.get(backend)
    if variable is None or environment.get(variable):
        return
    name = interface_to(address)
    if name is not None:
        environment[variable] = name


def interface_to(address: str) -> str | None:
    """Return the name of the interface by which this machine reaches an address; None: unknown.

    For an address of its own, which rank 0's machine may have under its name, it is the one that
    leads to everywhere else.
    """
    own = _own_address_to(address)
    if own is not None and ipaddress.ip_address(own).is_loopback:
        own = _own_address_to(_ELSEWHERE)
    for name, known in psutil.net_if_addrs().items():
        if any(each.address == own for each in known):
            return str(name)
    return None


def _own_address_to(address: str) -> str | None:
    """Return this machine's address on the network that leads to another."""
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(
            address, _ANY_PORT, type=socket.SOCK_DGRAM
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(target)
            return str(probe.getsockname()[0])
    except OSError:
        return None


def _addresses(address: str, hint: str) -> list[str]:
    try:
        found = socket.getaddrinfo(address, _ANY_PORT, type=socket.SOCK_DGRAM)
    except OSError as error:
        raise UsageError(
            f"MASTER_ADDR {address} is unknown here: {error.strerror or error}", hint=hint
        ) from None
    return [str(entry[4][0]).partition("%")[0] for entry in found]
