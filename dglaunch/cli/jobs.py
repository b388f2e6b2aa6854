"""The commands `t2i` and `edit`: parse the flags, run the job."""

import os
import sys
from collections.abc import Mapping

from dglaunch.cli.flags import parse, without
from dglaunch.config import COMMANDS, RunConfig
from dglaunch.distributed.topology import check_world
from dglaunch.errors import UserError
from dglaunch.system import torchrun_command


def run_job(words: list[str], environ: Mapping[str, str]) -> int:
    """Run a job of text to image or of editing on this rank; the exit code is the same on every rank.

    Raises:
        DglaunchError: a mistake of the user's, or the run broke off.
    """
    command = words[0]
    config, origins = parse(COMMANDS[command], words[1:], environ, command)
    if config.num_gpus is not None:
        start_torchrun(config, config.num_gpus, words, environ)
    from dglaunch.planning.job import prepare
    from dglaunch.run import runner

    return runner.run(prepare(config, origins, environ)).exit_code


def start_torchrun(config: RunConfig, num_gpus: int, words: list[str], environ: Mapping[str, str]) -> None:
    """Replace this process by torchrun with as many ranks (--num_gpus), unless it is one of them already.

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
        return
    if config.debug:
        raise UserError("--debug runs in one process; drop --num_gpus.")
    os.execv(sys.executable, torchrun_command(num_gpus, "-m", "dglaunch", *without(words, "num_gpus")))
