"""What ranks ask each other before there are groups, over a store in this process."""

from datetime import timedelta

import pytest

from dglaunch.distributed import store


class Lonely:
    """A store in which nobody else counts."""

    def add(self, key: str, amount: int) -> int:
        return 1


def test_a_rank_that_died_while_it_was_asked_is_not_waited_for_without_end() -> None:
    with pytest.raises(RuntimeError, match="not all 2 ranks answered within 0 s"):
        store._until_all(Lonely(), "said", 2, timedelta(seconds=0))  # type: ignore[arg-type]
    store._until_all(Lonely(), "said", 1, timedelta(seconds=0))  # type: ignore[arg-type]
