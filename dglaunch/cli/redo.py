"""`dglaunch redo OUT --filter_rows 3,7,11 --seed_offset 100`: some images of a job again, in its own folder.

run.json says how the job was run: its table is read again, the images that are meant are made anew, as the job's own command
would make them but for what is to be changed, and each takes the place of the old one as soon as it is there. The old ones
go to OUT/replaced (output/replaced.py). The ledger says of a new image which row it is of, so that the job's own command
goes on with the folder as before.
"""

from collections.abc import Mapping
from pathlib import Path

from dglaunch.cli.agent import run_ranks
from dglaunch.cli.flags import read_own, without
from dglaunch.cli.jobs import starts_ranks
from dglaunch.cli.own_flags import RedoFlags
from dglaunch.cli.recorded import differing_versions, recorded_config, recorded_run
from dglaunch.cli.replay import ROW, parse_change
from dglaunch.config import API, IDENTITY, IMAGE, LOCAL, TRUST, RunConfig, flags_that
from dglaunch.data.task import Record
from dglaunch.environment import another_speaks, check_variables
from dglaunch.errors import UserError
from dglaunch.output.asked import TaskRanges
from dglaunch.output.far import opened_to_read
from dglaunch.output.ledger import FAILURES, OutputFolder, object_at
from dglaunch.planning.redo import Redo
from dglaunch.terminal import Terminal

OF_THE_JOB = set(flags_that(IDENTITY | IMAGE))
"""Flags that a job has one value of: another one makes another job."""
OF_THE_START = tuple(
    name for name in (*flags_that(LOCAL | API | TRUST), "backend", "batch_size") if name not in OF_THE_JOB
)
"""Flags that --set may change for this start."""


def redo(words: list[str], environ: Mapping[str, str]) -> int:
    """Make some images of a job again.

    Raises:
        DglaunchError: a mistake of the user's, or the run broke off.
    """
    flags = read_own(RedoFlags, words[1:], "redo")
    check_variables(environ)
    asked, settings = asked_by(flags)
    folder = opened_to_read(flags.folder, only_runs=True)
    name, run = recorded_run(OutputFolder(folder))
    config, origins = config_to_redo(folder, name, run, {**settings, "output_dir": flags.folder})
    if flags.num_gpus is not None and starts_ranks(config, flags.num_gpus, environ):
        return run_ranks(flags.num_gpus, without(words, "num_gpus"))
    from dglaunch.planning.job import prepare
    from dglaunch.run import runner

    job = prepare(config, origins, environ, redo=asked)
    if not another_speaks(environ):
        for note in notes(job.config.output_dir, run, asked, can_be_same=job.profile.can_replay):
            Terminal(stderr=True).print(note)
    return runner.run(job).exit_code


def asked_by(flags: RedoFlags) -> tuple[Redo, dict[str, object]]:
    """Return what is asked, and the flags that have other values in this start.

    Raises:
        UserError: it is nothing, too much, or no value of a row.
    """
    if (flags.filter_rows is None) != flags.failed:
        raise UserError(
            "Name the images to make again, either with --filter_rows (3,7,11 or 0:100 or 'style == \"oil\"') or with "
            "--failed for those that failed."
        )
    values: dict[str, object] = {}
    settings: dict[str, object] = {}
    for change in flags.changes:
        name, value = parse_change(change, (*ROW, *OF_THE_START, *OF_THE_JOB))
        if name in OF_THE_JOB:
            raise UserError(
                f"--set {change}: a job has one {name} for all its images, so this makes another job. Make them in another "
                f"folder: dglaunch t2i --{name} ... --filter_rows ... --output_dir ANOTHER."
            )
        (values if name in ROW else settings)[name] = value
    if "seed" in values and flags.seed_offset:
        raise UserError(
            "--seed_offset is added to the seed that a row has, and --set seed gives it another. Drop one of them."
        )
    asked = Redo(
        filter_rows=flags.filter_rows, failed=flags.failed, seed_offset=flags.seed_offset, values=values
    )  # fmt: skip
    return asked, {name: value for name, value in settings.items() if value is not None}


def config_to_redo(
    folder: Path, name: str, run: Record, settings: Mapping[str, object]
) -> tuple[RunConfig, dict[str, str]]:
    """Return the job's configuration as it was recorded, and where its values came from.

    Args:
        folder: its folder as it lies here.
        name: of its run.json.
        run: what that says.
        settings: what is other than recorded, and --output_dir.
    """
    changed = dict(settings)
    said = object_at(run, "config")
    if any(object_at(said, flag).get("value") for flag in ("filter_rows", "limit")):
        # What the last start wanted may be less than what the job has by now.
        told = TaskRanges.parse(run.get("tasks"))
        rows = told and ",".join(f"{part.first}:{part.stop}" for part in told.ranges)
        changed |= {"filter_rows": rows or None, "limit": None}
    return recorded_config(OutputFolder(folder), name, run, changed)


def notes(folder: Path, run: Record, asked: Redo, can_be_same: bool) -> list[str]:
    """Return what is known beforehand about what is made, and how it relates to the others."""
    found = []
    if asked.failed and not OutputFolder(folder).files(FAILURES):
        found.append(f"In {folder} nothing failed.")
    if differing := differing_versions(run):
        found.append(f"Other versions made the rest: {', '.join(differing)}.")
    if not asked.changes and not asked.failed and can_be_same:
        found.append(
            "Nothing is changed about them, so they come out as they were; --seed_offset 1000 makes other ones."
        )
    return found
