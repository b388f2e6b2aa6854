"""torchrun's agent in this process, for --num_gpus: it starts the ranks, hands signals on and waits for them.

torchrun, the command, ends a run that was stopped with a traceback of its own, below the words of rank 0, and turns every
exit code into 1. Here the ranks have the last word, and their code is the command's.
"""

import logging
import os
import signal
from collections.abc import Sequence

from dglaunch.cli.children import descendants, kill
from dglaunch.environment import environment
from dglaunch.errors import EXIT_BROKEN, EXIT_DONE, EXIT_DRAINED, EXIT_ITEMS_FAILED, EXIT_USER
from dglaunch.streams import say
from dglaunch.system import torchrun_options

TOLD = (EXIT_USER, EXIT_ITEMS_FAILED, EXIT_DRAINED)
"""Exit codes of which rank 0 has said all that there is to say."""
LOGS = (
    "torch.distributed.run",
    "torch.distributed.elastic.agent.server.api",
    "torch.distributed.elastic.multiprocessing.api",
)
"""Which of its loggers tell of signals and exit codes; what they say of a crash stands in its summary, too."""


def run_ranks(num_ranks: int, words: Sequence[str]) -> int:
    """Run `dglaunch WORDS` on so many ranks of this machine and return its exit code: that of the ranks, 130 after a signal."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    if "LOGLEVEL" not in environment():  # by which torch is told how much it says
        for name in LOGS:
            logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        options = parse_args([*torchrun_options(num_ranks), "-m", "dglaunch", *words])  # type: ignore[no-untyped-call]
        run(options)  # type: ignore[no-untyped-call]
    except SignalException:
        return EXIT_DRAINED
    except ChildFailedError as failed:
        return _exit_code(failed, [failure.exitcode for failure in failed.failures.values()])
    finally:
        kill(descendants(os.getpid()))  # what is left after a second signal, which breaks off the waiting for the ranks
    return EXIT_DONE


def _exit_code(failed: Exception, codes: Sequence[int]) -> int:
    """The ranks' own code. One that leaves a moment after another (a GPU's memory is given back) is stopped by torchrun meanwhile:
    that says nothing beside the other's."""
    own = [code for code in codes if code != -signal.SIGTERM]
    if own and all(code in TOLD for code in own):
        return min(own)
    say(str(failed), error=True)
    return EXIT_BROKEN
