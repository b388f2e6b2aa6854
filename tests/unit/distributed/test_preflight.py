"""Machines that do not fit together: told in the first seconds, with their names, instead of silence or other images."""

import socket
from typing import Any

import pytest

from dglaunch.distributed import preflight
from dglaunch.distributed.topology import Topology
from dglaunch.errors import UserError

NODES = Topology(world_size=4, local_world_size=2, distributed=True)


@pytest.mark.parametrize(
    ("addresses", "text"),
    [
        (["127.0.1.1"], "leads to 127.0.1.1"),
        (["::1", "127.0.0.1"], "leads to 127.0.0.1, ::1"),
        ([], "does not resolve"),
    ],
)
def test_an_own_name_that_others_cannot_use(monkeypatch: pytest.MonkeyPatch, addresses: list[str], text: str) -> None:
    def look_up(*_: Any) -> list[Any]:
        if not addresses:
            raise socket.gaierror("Name or service not known")
        return [(0, 0, 0, "", (address, 0)) for address in addresses]

    monkeypatch.setattr(socket, "gethostname", lambda: "node7")
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    with pytest.raises(UserError, match=f"own name node7 {text}"):
        preflight.check_address(NODES)
    preflight.check_address(
        Topology(world_size=2, local_world_size=2, distributed=True)
    )  # one machine: it does not matter
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib0")
    preflight.check_address(NODES)


class OtherClock:
    """A channel whose second rank's clock is an hour ahead."""

    def all_of_world(self, value: tuple[str, Any, float]) -> list[Any]:
        return [value, ("node8", value[1], value[2] + 3600)]


def test_clocks_that_differ_are_told() -> None:
    channel: Any = OtherClock()
    (note,) = preflight.compare(channel, {"host": "node7"})
    assert note.startswith("The clocks differ by 3600 s (node8 is ahead)")
