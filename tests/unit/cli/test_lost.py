"""What the ranks of a large job say when one of them has died: not each of them the same."""

import pytest

from dglaunch.errors import LostPeer, OutputError
from support.commands import dglaunch

WORLD = {"WORLD_SIZE": "512", "LOCAL_WORLD_SIZE": "8", "MASTER_ADDR": "x", "MASTER_PORT": "1"}


@pytest.mark.parametrize("error", [LostPeer, OutputError])
def test_two_ranks_of_each_machine_tell_of_a_death(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error("it is gone")

    monkeypatch.setattr("dglaunch.planning.job.prepare", fail)
    said = [
        dglaunch("t2i", "--prompt", "a", RANK=str(8 + rank), LOCAL_RANK=str(rank), **WORLD).output for rank in range(8)
    ]
    assert [bool(text) for text in said] == [True] * 2 + [error is not LostPeer] * 6
