"""`dglaunch status OUT`: how far a job is. Needs no torch."""

from collections import Counter
from pathlib import Path

from dglaunch.cli.holes import describe
from dglaunch.errors import EXIT_BROKEN, EXIT_DONE, EXIT_DRAINED, EXIT_ITEMS_FAILED, UserError
from dglaunch.output import scores
from dglaunch.output.batch_jobs import BatchJob
from dglaunch.output.far import opened_to_read, read_again
from dglaunch.output.holes import holes_of
from dglaunch.output.ledger import OutputFolder
from dglaunch.output.status import JobStatus, RunStatus, read_status
from dglaunch.terminal import Terminal

STARTS_AGAIN = {"drained", "lost"}
"""Outcomes after which the same command goes on without anybody's help."""
ENDED = {"done", "failed"}
EVERY_S = 10.0
MOST_INTERVAL_S = 86_400


def status(folder: Path, /, node_rank: int | None = None, watch: bool = False, interval: float | None = None) -> int:
    """Tell how far a job is, from another shell while it runs or after it.

    Exit code 0: nothing is left to do; 3: only images that failed; 130: work is left and the same command goes on (a
    signal drained it, or a rank was lost); 1: it is running, or broke off in a way that needs someone.

    Args:
        folder: what --output_dir is.
        node_rank: with --num_nodes: answer for this node's share alone.
        watch: show again and again what the running job says of its nodes, replicas, failures and storage, until it ends.
        interval: seconds between two looks of --watch. Default: 10; the job itself speaks every 30 s.
    """
    terminal = Terminal()
    output_folder = OutputFolder(opened_to_read(folder))
    output_folder.require_results()
    if interval is not None and not watch:
        raise UserError("--interval is how often --watch looks; add --watch, or drop it.")
    if watch:
        if not _watched_to_its_end(output_folder, node_rank, EVERY_S if interval is None else interval, terminal):
            return EXIT_DRAINED
        read_again(output_folder.path)
    job = read_status(output_folder, node_rank)
    for run in job.runs:
        terminal.print(_describe(run))
    terminal.print(
        f"{job.num_done:,} of {job.total:,} images done, {job.num_failed:,} failed, "
        f"{job.num_left - job.num_failed:,} to make"
    )
    if job.images_per_s is not None:
        terminal.print(f"{job.images_per_s:.3g} images/s over the last {job.num_recent} images")
    if node_rank is None and job.num_left and (holes := holes_of(output_folder.runs().values())) is not None:
        terminal.print(describe(holes))
    for line in _describe_scores(output_folder):
        terminal.print(line)
    for batch_job, num_images in job.waits_for:
        terminal.print(_describe_job(batch_job, num_images))
    return _exit_code(job, one_node=node_rank is not None)


def _watched_to_its_end(folder: OutputFolder, node_rank: int | None, interval: float, terminal: Terminal) -> bool:
    """Whether the job has ended; else Ctrl-C ended the watching.

    Raises:
        UserError: what is asked does not go together.
    """
    from dglaunch.cli.watch import watch

    if node_rank is not None:
        raise UserError("--watch shows all nodes together; drop --node_rank.")
    if not 0 < interval < MOST_INTERVAL_S:
        raise UserError(f"--interval {interval:g} is no number of seconds above 0 and below {MOST_INTERVAL_S:,}.")
    return watch(folder, interval, terminal)


def _describe(run: RunStatus) -> str:
    outcome = "killed (it says running, but nothing holds the folder)" if run.was_killed else run.outcome
    return f"{run.name}: {outcome}, started {run.started}" + (", running now" if run.is_running else "")


def _describe_scores(folder: OutputFolder) -> list[str]:
    """How many images have each score, of those that are there."""
    found = scores.read_all(folder)
    counts = Counter(name for record in folder.records() for name in found if found[name].of(record) is not None)
    return [f"{name}: {counts[name]:,} images scored" for name in found]


def _describe_job(job: BatchJob, num_images: int) -> str:
    """As far as the last start saw it: nobody is asked here."""
    name = f"batch job {job.id}" if job.id else "a batch job whose order was not answered"
    state = f"{job.state} when it was last looked at, " if job.state else ""
    return f"{name} ({job.backend}): {state}{num_images:,} images to come, ordered {job.ordered[:19]}; --api_batch takes them"


def _exit_code(job: JobStatus, one_node: bool) -> int:
    """The code that a batch script acts on. What is left of the whole job is not asked of one node."""
    outcomes = {"lost" if run.was_killed else run.outcome for run in job.runs}
    if not job.num_left or (one_node and outcomes == {"done"}):
        return EXIT_DONE
    if outcomes & STARTS_AGAIN and outcomes <= STARTS_AGAIN | ENDED:
        return EXIT_DRAINED
    if not outcomes or not outcomes <= ENDED:
        return EXIT_BROKEN
    return EXIT_DRAINED if job.num_left > job.num_failed and not one_node else EXIT_ITEMS_FAILED
