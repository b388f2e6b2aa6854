"""`python -m dglaunch COMMAND ...`: parse, run the one function behind the command, leave with its exit code."""

import importlib
import os
import sys
import traceback
from collections.abc import Mapping, Sequence

from dglaunch.errors import EXIT_DRAINED, EXIT_USER, DglaunchError, UserError

USAGE = """\
usage: dglaunch COMMAND [flags]      (several GPUs: torchrun --nproc_per_node 8 -m dglaunch COMMAND [flags])

  t2i            text to image: a file of prompts to a folder of images
  edit           a table of images and instructions to a folder of edited images
  plan COMMAND   print what that command would do (topology, shards, batches, memory, time) and stop
  tune t2i       measure batch sizes and parallel configurations on the real model; --batch_size auto then uses it
  slurm COMMAND  print (or --submit) the batch script that runs that command on a Slurm cluster
  verify OUT     check a folder of results, file by file; --repair queues what is wrong to be made again
  status OUT     how far a job is, while it runs or after it
  merge OUT0 OUT1 ... --output_dir OUT    join the folders of nodes that share no file system
  gallery OUT    an HTML page to look through the results; --contact_sheet for one image of them
  replay FILE    make one image again from its own PNG text and compare; --set guidance_scale=5 for a variation
  doctor         what is installed here, whether it is fine, and the remedy

dglaunch COMMAND --help lists the flags. Exit codes: 0 everything done, 1 the run broke off, 2 a mistake in the command
or its input, 3 some items failed, 130 stopped by a signal. Starting the same command again resumes."""


TOOLS = {
    "verify": "dglaunch.cli.verify:verify",
    "status": "dglaunch.cli.status:status",
    "merge": "dglaunch.cli.merge:merge",
    "gallery": "dglaunch.cli.gallery:gallery",
    "replay": "dglaunch.cli.replay:replay",
    "doctor": "dglaunch.cli.doctor:doctor",
}
"""Commands that run no job: functions whose arguments are the flags and whose result is the exit code."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; a user's error is told once, by rank 0, without a traceback."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    from dglaunch.environment import environment

    environ = environment()
    main_rank = environ.get("RANK", "0") == "0"
    try:
        return _dispatch(words, environ, main_rank)
    except DglaunchError as error:
        if "--debug" in words and not isinstance(error, UserError):
            traceback.print_exc()
        if main_rank or not isinstance(error, UserError):
            print(f"dglaunch: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_DRAINED


def _dispatch(words: list[str], environ: Mapping[str, str], main_rank: bool) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0 if words else EXIT_USER
    if words[0] in ("-V", "--version"):
        from importlib.metadata import version

        print(version("dglaunch"))
        return 0
    if words[0] in TOOLS:
        return _tool(words[0], words[1:])
    if words[0] == "slurm":
        from dglaunch.cli import slurm

        return slurm.main(words[1:], environ)
    if words[0] == "tune":
        from dglaunch.cli import tune

        return tune.main(words[1:], environ)
    from dglaunch.cli.flags import COMMANDS, parse, take_world_size

    planned = words[0] == "plan"
    command, rest = (words[1] if len(words) > 1 else "", words[2:]) if planned else (words[0], words[1:])
    if command not in COMMANDS:
        raise UserError(
            f"There is no command {' '.join(words[: 2 if planned else 1])!r}. Commands: {', '.join(COMMANDS)}, "
            f"plan COMMAND, tune t2i, {', '.join(TOOLS)}; dglaunch --help."
        )
    prog = f"dglaunch {'plan ' if planned else ''}{command}"
    world_size = take_world_size(rest) if planned else None
    config, origins = parse(COMMANDS[command], rest, environ, prog, quiet=not main_rank)
    if config.num_gpus is not None and not planned:
        _under_torchrun(config.num_gpus, words, environ, config.debug)
    if planned:
        from dglaunch.cli import plan

        return plan.show_plan(config, origins, environ, world_size)
    from dglaunch.run import runner

    return runner.execute(config, origins, environ)


def _tool(command: str, rest: list[str]) -> int:
    import tyro

    module, _, name = TOOLS[command].partition(":")
    function = getattr(importlib.import_module(module), name)
    return tyro.cli(function, prog=f"dglaunch {command}", args=rest, use_underscores=True)


def _under_torchrun(num_gpus: int, words: list[str], environ: Mapping[str, str], debug: bool) -> None:
    """--num_gpus: replace this process by torchrun with as many ranks."""
    from dglaunch.cli.flags import torchrun_words
    from dglaunch.system import torchrun_command

    if "RANK" in environ:
        if environ.get("LOCAL_WORLD_SIZE") != str(num_gpus):
            raise UserError(
                f"--num_gpus {num_gpus} under torchrun, which started {environ.get('LOCAL_WORLD_SIZE')} ranks on this "
                "machine; drop --num_gpus."
            )
        return
    if debug:
        raise UserError("--debug runs in one process; drop --num_gpus.")
    os.execv(sys.executable, torchrun_command(num_gpus, "-m", "dglaunch", *torchrun_words(words)))


def console_script() -> None:
    """Entry point of the `dglaunch` command and of torchrun's workers."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        sys.exit(main())
    # Under torchrun, leave the root cause where its summary finds it.
    from torch.distributed.elastic.multiprocessing.errors import record

    from dglaunch.distributed.channel import leave

    code = record(main)()
    leave()
    sys.exit(code)


if __name__ == "__main__":
    console_script()
