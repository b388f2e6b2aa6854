"""A connection that has broken is noticed without reading from it, as gloo closes it then."""

import os
import socket

import pytest

from dglaunch.distributed.lifelines import VANISHED_S, Lifelines, opened_here


def test_a_closed_connection_is_told_once() -> None:
    sockets: set[int] = set()
    with socket.create_server(("127.0.0.1", 0)) as server:
        before = socket.create_connection(server.getsockname())
        with opened_here(sockets):
            first, second = (socket.create_connection(server.getsockname()) for _ in range(2))
            unrelated = os.open(os.devnull, os.O_RDONLY)
        if not sockets:
            pytest.skip("this system has no /proc")
        assert sockets == {first.fileno(), second.fileno()}
        lines = Lifelines(sockets)
        assert first.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == VANISHED_S * 1000
        before.close()
        assert not lines.have_broken()
        number = first.fileno()
        first.close()
        os.dup2(unrelated, number)  # the next file that is opened has its number
        assert lines.have_broken() and not lines.have_broken()
        second.close()
        assert lines.have_broken()
        os.close(number)
        os.close(unrelated)


def test_looking_leaves_nothing_open() -> None:
    """Files, pipes and sockets of other kinds are no connections; a copy of each stayed open with every channel."""
    kinds = [*os.pipe(), os.open(os.devnull, os.O_RDONLY), *(end.detach() for end in socket.socketpair())]
    before = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
    for _ in range(3):
        with opened_here(set()):
            pass
    assert sorted(os.listdir("/proc/self/fd") if before else []) == sorted(before)
    for number in kinds:
        os.close(number)
