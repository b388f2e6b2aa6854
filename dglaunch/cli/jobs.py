"""The commands `t2i` and `edit`: parse the flags, run the job."""

import os
import time
from collections.abc import Mapping

from dglaunch.cli.agent import run_ranks
from dglaunch.cli.flags import parse, without
from dglaunch.config import COMMANDS, RunConfig
from dglaunch.distributed.topology import UnfitWorld, check_world
from dglaunch.environment import another_speaks
from dglaunch.errors import UserError
from dglaunch.streams import say

LOOK_AGAIN_S = 1.0


def run_job(words: list[str], environ: Mapping[str, str]) -> int:
    """Run a job of text to image or of editing on this rank; the exit code is the same on every rank.

    Raises:
        DglaunchError: a mistake of the user's, or the run broke off.
    """
    command = words[0]
    config, origins = parse(COMMANDS[command], words[1:], environ, command)
    if config.num_gpus is not None and starts_ranks(config, config.num_gpus, environ):
        return run_ranks(config.num_gpus, without(words, "num_gpus"))
    from dglaunch.planning.job import prepare
    from dglaunch.run import runner

    try:
        job = prepare(config, origins, environ)
    except UnfitWorld as unfit:
        _wait_for_nodes(unfit, config.stall_timeout, environ)
        raise
    return runner.run(job).exit_code


def _wait_for_nodes(unfit: UnfitWorld, seconds: float, environ: Mapping[str, str]) -> None:
    """Where torchrun may still bring the nodes that are missing, wait for the signal with which it ends this world."""
    if not unfit.may_change:
        return
    until = f"up to {seconds:,.0f} s (--stall_timeout)" if seconds else "without limit (--stall_timeout 0)"
    if not another_speaks(environ):
        say(f"dglaunch: {unfit} Waiting {until} for another node to join.", error=True)
    parent, deadline = os.getppid(), time.monotonic() + seconds
    while os.getppid() == parent and (not seconds or time.monotonic() < deadline):
        time.sleep(LOOK_AGAIN_S)


def starts_ranks(config: RunConfig, num_gpus: int, environ: Mapping[str, str]) -> bool:
    """Return whether this process is to start so many ranks (--num_gpus): it is not one of them already.

    Raises:
        UserError: torchrun started another number of ranks, or --debug wants one process.
    """
    if "RANK" in environ:
        check_world(environ)
        if environ.get("LOCAL_WORLD_SIZE") != str(num_gpus):
            raise UserError(
                f"--num_gpus {num_gpus} under torchrun, which started {environ.get('LOCAL_WORLD_SIZE')} ranks on this "
                "machine; drop --num_gpus."
            )
        return False
    if config.debug:
        raise UserError("--debug runs in one process; drop --num_gpus.")
    return True
