from __future__ import annotations

import socket
from functools import partial
from typing import Any, NamedTuple

import psutil
import pytest

from llmtrain.errors import UsageError
from llmtrain.train.distributed import interface, world
from llmtrain.train.distributed.interface import interface_to, require_reachable, set_interface


class Address(NamedTuple):
    """One address of an interface, as psutil gives it."""

    address: str


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a loopback, a bridge, and a network on which 10.0.0.1 is."""
    interfaces = {
        "lo": [Address("127.0.0.1")],
        "docker0": [Address("172.17.0.1")],
        "eth1": [Address("fe80::1"), Address("10.0.0.7")],
    }
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: interfaces)
    own = {"10.0.0.1": "10.0.0.7", "first": "127.0.1.1", "192.0.2.1": "10.0.0.7"}
    monkeypatch.setattr(interface, "_own_address_to", own.get)


@pytest.mark.usefixtures("network")
def test_the_interface_that_leads_to_rank_0_is_taken() -> None:
    for backend, variable in (("gloo", "GLOO_SOCKET_IFNAME"), ("nccl", "NCCL_SOCKET_IFNAME")):
        environment: dict[str, str] = {}
        set_interface(backend, "10.0.0.1", environment)
        assert environment == {variable: "eth1"}


@pytest.mark.usefixtures("network")
def test_what_the_user_named_stays_and_the_unknown_is_left_to_the_backend() -> None:
    named = {"GLOO_SOCKET_IFNAME": "ib0"}
    set_interface("gloo", "10.0.0.1", named)
    assert named == {"GLOO_SOCKET_IFNAME": "ib0"}
    nothing: dict[str, str] = {}
    set_interface("gloo", "10.9.9.9", nothing)
    assert nothing == {}


@pytest.mark.usefixtures("network")
def test_the_machine_of_rank_0_takes_the_one_that_leads_elsewhere() -> None:
    """On Debian its own name is a loopback address."""
    assert interface_to("first") == "eth1"


@pytest.mark.parametrize("address", ["localhost", "127.0.0.1"])
def test_an_address_that_means_each_machine_itself_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match="only itself") as refused:
        require_reachable(address, 1, limit_s=0.0)
    assert "MASTER_ADDR" in (refused.value.hint or "")


def test_one_machine_may_stand_for_several() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        require_reachable("127.0.0.1", server.getsockname()[1], limit_s=0.0)


def test_an_unknown_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fails)
    with pytest.raises(UsageError, match="nowhere is unknown here"):
        require_reachable("nowhere", 1)


def test_ranks_of_other_machines_do_not_wait_for_a_loopback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    variables = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    for name, value in (variables | {"MASTER_ADDR": "localhost", "MASTER_PORT": "1"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(world, "require_reachable", partial(require_reachable, limit_s=0.0))
    with pytest.raises(UsageError, match="MASTER_ADDR localhost"):
        world.world_from_environment()
