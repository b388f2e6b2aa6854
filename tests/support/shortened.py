"""dglaunch with less patience than it has, for tests of what happens at the end of it: `support.shortened:dglaunch`."""

from dglaunch.cli.main import main
from dglaunch.run import watchdog

DEADLINE_S = 3.0


def dglaunch(*arguments: str) -> int:
    watchdog.DEADLINE_S = {True: DEADLINE_S, False: DEADLINE_S}
    return main(arguments)
