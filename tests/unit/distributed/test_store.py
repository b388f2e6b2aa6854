"""What ranks ask each other before there are groups, over a store in this process."""

import threading
from datetime import timedelta

import pytest

from dglaunch.distributed import store
from dglaunch.errors import LostPeer


class Lonely:
    """A store in which nobody else counts, or sets anything."""

    def __init__(self) -> None:
        self.heard = 0

    def add(self, key: str, amount: int) -> int:
        if key == "at work":
            self.heard += amount
            return self.heard
        return 1

    def set(self, key: str, value: object) -> None:
        return

    def check(self, keys: list[str]) -> bool:
        return False


def test_a_rank_that_died_while_it_was_asked_is_not_waited_for_without_end() -> None:
    with pytest.raises(RuntimeError, match="not all 2 ranks answered within 0 s"):
        store._until_all(Lonely(), "said", 2, timedelta(seconds=0))  # type: ignore[arg-type]
    store._until_all(Lonely(), "said", 1, timedelta(seconds=0))  # type: ignore[arg-type]


def test_what_nobody_takes_or_gives_is_waited_for_no_longer_than_others_are() -> None:
    none = timedelta(seconds=0)
    with pytest.raises(RuntimeError, match="not all 2 ranks answered"):
        store._give(Lonely(), lambda: b"prompts", 2, none)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="the rank that reads was not heard of for 0 s"):
        store._wait_for(Lonely(), "pieces", none)  # type: ignore[arg-type]


def test_a_rank_that_reads_for_long_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "HEARD_EVERY_S", 0.01)
    lonely = Lonely()
    with pytest.raises(RuntimeError, match="not all 2"):
        store._give(lonely, lambda: bytes(threading.Event().wait(0.2)), 2, timedelta(seconds=0))  # type: ignore[arg-type]
    assert lonely.heard > 2


def test_the_connection_that_broke_names_what_is_meant() -> None:
    with pytest.raises(LostPeer, match="one of them has died: the rank that reads was not heard of"), store.connected():
        store._wait_for(Lonely(), "pieces", timedelta(seconds=0))  # type: ignore[arg-type]
