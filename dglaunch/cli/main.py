"""From the words of the command line to the one function behind a command, and from its errors to an exit code."""

import difflib
import errno
import importlib
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence

from dglaunch import diffgentor
from dglaunch.environment import another_speaks, environment, is_true, tells_of_deaths
from dglaunch.errors import EXIT_BROKEN, EXIT_DONE, EXIT_DRAINED, EXIT_USER, DglaunchError, LostPeer, UserError
from dglaunch.streams import lasting, say

NAMES_AND_RIGHTS = (
    errno.ENAMETOOLONG,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
    errno.EINVAL,
)
"""Errors of the system that are the user's to mend."""
USAGE = """\
usage: dglaunch COMMAND [flags]
       torchrun --nproc_per_node 8 -m dglaunch COMMAND [flags]    (several GPUs)

Make images
  t2i               text to image: a file of prompts to a folder of images
  edit              a table of images and instructions to edited images
  slurm COMMAND     print (or --submit) that command's batch script for Slurm

Before
  plan COMMAND      what it would do: topology, shares, batches, memory, time;
                    --world_size 8 --gpu H100 for machines that are not here
  rehearse COMMAND  run its own code as every rank of a replica at true size,
                    without GPUs and weights: does it crash, does it fit
  tune t2i          measure batch sizes and parallel configurations here;
                    --search: the optimizations, too
  certify           compare all ways to run a model on this machine:
                    replicas, batches, splits, resume; a page and a JSON
  doctor            what is installed here, whether it is fine, and the remedy
  fetch MODEL       bring a model from the hub, where there is a network, for
                    nodes that have none; --to FOLDER

After
  status OUT        how far a job is, while it runs or after it
  redo OUT          make some of its images again: --filter_rows 3,7,11 or
                    --failed, with --seed_offset 100 or --set guidance_scale=5
  score OUT         a score for each image, --with clip or another model, or a
                    function of yours; --best_of N keeps the best ones
  verify OUT        check a folder of results, file by file;
                    --repair queues what is wrong to be made again
  gallery OUT       an HTML page of the results; --contact_sheet: one image;
                    --serve shows it to others
  gallery OUT0 OUT1 ...
                    several runs side by side; --blind to choose blindly
  replay FILE       make one image again from its own text and compare;
                    --set guidance_scale=5 for a variation
  merge OUT0 OUT1 ... --output_dir OUT
                    join the folders of nodes that share no file system

  completion SHELL  what the Tab key needs to know: bash, zsh or fish

dglaunch COMMAND --help lists the usual flags, --help all all of them.
Exit codes: 0 everything done, 1 the run broke off, 2 a mistake in the command
or its input, 3 some items failed or differ, 130 stopped by a signal.
Starting the same command again resumes."""

COMMANDS = {
    "t2i": "dglaunch.cli.jobs:run_job",
    "edit": "dglaunch.cli.jobs:run_job",
    "plan": "dglaunch.cli.plan:plan",
    "rehearse": "dglaunch.cli.rehearse:rehearse",
    "tune": "dglaunch.cli.tune:tune",
    "certify": "dglaunch.cli.certify:certify",
    "slurm": "dglaunch.cli.slurm:slurm",
    "redo": "dglaunch.cli.redo:redo",
    "score": "dglaunch.cli.score:score",
}
"""Commands that run or plan a job: functions of the command line's words and the environment."""
INNER = {"tune-rank": "dglaunch.cli.tune:measure_rank"}
"""What dglaunch starts under torchrun for itself, called as COMMANDS are."""
TOOLS = {
    "verify": "dglaunch.cli.verify:verify",
    "status": "dglaunch.cli.status:status",
    "merge": "dglaunch.cli.merge:merge",
    "gallery": "dglaunch.cli.gallery:gallery",
    "replay": "dglaunch.cli.replay:replay",
    "doctor": "dglaunch.cli.doctor:doctor",
    "fetch": "dglaunch.cli.fetch:fetch",
    "completion": "dglaunch.cli.completion:completion",
}
"""Commands that run no job: functions whose arguments are the flags. All functions of both tables return the exit code."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; a user's error is shown once, by rank 0, without a traceback."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    with lasting():
        environ = environment()
        try:
            command = command_of(words)
            return command(words, environ)
        except DglaunchError as error:
            if _debugs(words, environ) and not isinstance(error, UserError):
                say(traceback.format_exc(), error=True)
            if not _is_told_by_another(error, environ):
                say(f"dglaunch: {error}", error=True)
            return error.exit_code
        except BrokenPipeError:
            raise
        except OSError as error:  # a name that is too long, a folder of somebody else's
            if _debugs(words, environ):
                say(traceback.format_exc(), error=True)
            say(f"dglaunch: {error.filename or 'A file'} cannot be used: {error.strerror or error}.", error=True)
            return EXIT_USER if error.errno in NAMES_AND_RIGHTS else EXIT_BROKEN
        except KeyboardInterrupt as stopped:  # a command may know more of how far it came
            if not another_speaks(environ):
                say(str(stopped) or "Stopped. Start the same command again to go on.", error=True)
            return EXIT_DRAINED


def _is_told_by_another(error: DglaunchError, environ: Mapping[str, str]) -> bool:
    """Whether other ranks have the same to say."""
    if isinstance(error, LostPeer):
        return not tells_of_deaths(environ)
    return isinstance(error, UserError) and another_speaks(environ)


def _debugs(words: Sequence[str], environ: Mapping[str, str]) -> bool:
    """Whether tracebacks are wanted: --debug, or DG_DEBUG without --no_debug."""
    said = [word.replace("-", "_") for word in words if word in ("--debug", "--no_debug", "--no-debug")]
    return said[-1] == "__debug" if said else is_true(environ.get("DG_DEBUG", ""))


def command_of(words: Sequence[str]) -> Callable[[list[str], Mapping[str, str]], int]:
    """Return the function behind a command; its module is imported only now.

    Raises:
        UserError: there is no such command.
    """
    name = words[0] if words else ""
    if name in ("", "-h", "--help", "help"):
        return _help
    if name in ("-V", "--version"):
        return _version
    if name in COMMANDS | TOOLS and any(word in ("-h", "--help") for word in words):
        return _help_of
    if name in TOOLS:
        return _tool
    if name not in COMMANDS | INNER:
        if name in diffgentor.COMMANDS:
            raise UserError(f"There is no command {name!r}: {diffgentor.COMMANDS[name]}")
        near = difflib.get_close_matches(name, [*COMMANDS, *TOOLS], n=1)
        nearest = f" The nearest is {near[0]}." if near else ""
        raise UserError(
            f"There is no command {name!r}.{nearest} Commands: {', '.join([*COMMANDS, *TOOLS])}; dglaunch --help says what "
            "they do."
        )
    command: Callable[[list[str], Mapping[str, str]], int] = imported((COMMANDS | INNER)[name])
    return command


def imported(name: str) -> Callable[..., int]:
    """Return the function that a table names; its module is imported only now."""
    module, _, attribute = name.partition(":")
    function: Callable[..., int] = getattr(importlib.import_module(module), attribute)
    return function


def _help(words: list[str], environ: Mapping[str, str]) -> int:
    say(USAGE)
    return EXIT_DONE if words else EXIT_USER


def _version(words: list[str], environ: Mapping[str, str]) -> int:
    from importlib.metadata import version

    say(version("dglaunch"))
    return EXIT_DONE


def _help_of(words: list[str], environ: Mapping[str, str]) -> int:
    from dglaunch.cli.help import show_job_help, show_tool_help

    if another_speaks(environ):
        return EXIT_DONE
    if words[0] in TOOLS:
        show_tool_help(words[0], imported(TOOLS[words[0]]))
    else:
        show_job_help(words)
    return EXIT_DONE


def _tool(words: list[str], environ: Mapping[str, str]) -> int:
    from dglaunch.cli.flags import call

    return call(imported(TOOLS[words[0]]), words[1:], words[0])()
