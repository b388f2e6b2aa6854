"""Do the machines of a run fit together? Asked in the first second, as a wrong answer otherwise shows as minutes of silence."""

import os
import socket
import time
from collections.abc import Mapping

from dglaunch.distributed.channel import Channel
from dglaunch.distributed.topology import Topology
from dglaunch.errors import UserError
from dglaunch.system import addresses_of_host, are_loopback

COMPARED = ("dglaunch", "torch", "diffusers", "transformers", "xfuser")
"""Packages that shape the images or the messages between ranks."""
CLOCKS_S = 5.0


def check_address(topology: Topology) -> None:
    """Check that, on several machines, this one's name leads to an address that the others can reach: gloo listens there.

    Raises:
        UserError: it leads to the loopback device or nowhere.
    """
    if topology.is_one_machine or "GLOO_SOCKET_IFNAME" in os.environ:
        return
    name = socket.gethostname()
    try:
        addresses = addresses_of_host()
    except OSError as error:
        raise UserError(f"This machine's own name {name} does not resolve ({error}). {_remedy()}") from None
    if are_loopback(addresses):
        raise UserError(
            f"This machine's own name {name} leads to {', '.join(addresses)}, where the other machines cannot reach it. "
            f"{_remedy()}"
        )


def _remedy() -> str:
    return (
        "Give it its network address in /etc/hosts, or name the network's interface in GLOO_SOCKET_IFNAME "
        "(and NCCL_SOCKET_IFNAME), e.g. eth0 or ib0; ip -brief address lists them."
    )


def compare(channel: Channel, versions: Mapping[str, str]) -> list[str]:
    """Compare what is installed where the ranks run, and their clocks; returns things worth a note.

    Raises:
        UserError: two machines have different versions of a package.
    """
    installed = {name: versions.get(name, "not installed") for name in COMPARED}
    everyone = channel.all_of_world((versions["host"], installed, time.time()))
    first_host, first, _ = everyone[0]
    for host, other, _ in everyone:
        differing = [f"{name} {first[name]} and {other[name]}" for name in COMPARED if other[name] != first[name]]
        if differing:
            raise UserError(
                f"The machines {first_host} and {host} have different versions: {', '.join(differing)}. The images would "
                "differ; install the same on both (pip install -c constraints.txt)."
            )
    clocks = [clock for _, _, clock in everyone]
    if max(clocks) - min(clocks) > CLOCKS_S:
        late = everyone[clocks.index(max(clocks))][0]
        return [
            f"The clocks differ by {max(clocks) - min(clocks):.0f} s ({late} is ahead): times in run.json are not exact."
        ]
    return []
