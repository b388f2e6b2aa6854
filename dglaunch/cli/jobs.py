"""The commands `t2i` and `edit`: parse the flags, run the job."""

from collections.abc import Mapping

from dglaunch.cli.agent import run_ranks
from dglaunch.cli.flags import parse, without
from dglaunch.config import COMMANDS, RunConfig
from dglaunch.distributed.topology import check_world
from dglaunch.errors import UserError


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

    return runner.run(prepare(config, origins, environ)).exit_code


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
