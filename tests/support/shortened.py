"""dglaunch with less patience than it has, for tests of what happens at the end of it: `support.shortened:dglaunch`."""

from dglaunch import watch
from dglaunch.__main__ import main

DEADLINE_S = 3.0


def dglaunch(*arguments: str) -> int:
    watch.DEADLINE_S = {True: DEADLINE_S, False: DEADLINE_S}
    return main(arguments)
