"""run.json: what a start was asked, what it chose and measured, and how it ended."""

import os
import sys
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cached_property

from dglaunch.addresses import without_queries
from dglaunch.backends.base import Facts
from dglaunch.config import settings
from dglaunch.data.many import ManyTasks
from dglaunch.data.task import Record
from dglaunch.errors import OutputError
from dglaunch.output.asked import TaskRanges
from dglaunch.output.costs import COST_BEFORE, cost_until_now
from dglaunch.output.image_folders import IMAGE_FOLDERS
from dglaunch.output.resume import FINGERPRINT
from dglaunch.output.writer import Writer
from dglaunch.planning.continued import world_record
from dglaunch.planning.job import Job
from dglaunch.run.result import Counts, last_words
from dglaunch.streams import say
from dglaunch.system import versions

LAST_PATIENCE_S = 2.0
"""For which a process that is about to be ended waits for what it is writing: that may be what hangs."""


class Journal:
    """The Journal of one start on one rank writes run.json, as often as there is something new to say."""

    def __init__(self, job: Job, writer: Writer) -> None:
        self.reasons = dict(job.target.reasons)
        """Every automatic choice so far, and why."""
        self.facts = Facts()
        """What the backend says, once it is loaded."""
        self.counts: Counts | None = None
        """What the report counts, once it does."""
        self.ranks: list[tuple[str, str]] = []
        """Of each rank its machine's name and the identity of torchrun's agent ("" without one), once they have told each other."""
        self.memory: Record = {}
        """What was planned of the peak and what it is, once a batch has shown it."""
        self.is_closed = False
        """The end of the run is written: nothing may come after it."""
        self._job = job
        self._writer = writer
        self._started = _now()

    def write(self, measured: Record) -> None:
        """Replace run.json; before the results of an earlier run are removed, that one's stays.

        Raises:
            OutputError: it cannot be written.
        """
        if self._writer.has_begun:
            self._writer.write_run(self.record(measured))

    def refresh(self, measured: Record) -> None:
        """Say in run.json how far the run is: on a thread beside the one that writes results, and never after its end.

        Raises:
            OutputError: it cannot be written.
        """
        with self._writer.in_use:
            if not self.is_closed:
                self.write(measured)

    def close(self, patience: float = -1) -> None:
        """From now on nothing is refreshed: what is written next is the end.

        Args:
            patience: seconds for which one that is under way is waited for; -1: until it is through.
        """
        self.is_closed = True
        if self._writer.in_use.acquire(timeout=patience):
            self._writer.in_use.release()

    def host_of(self, rank: int) -> str:
        """Return the name of the machine of a rank."""
        return self.ranks[rank][0] if rank < len(self.ranks) else ""

    def last_words(self, outcome: str, text: str) -> None:
        """Called by the watch when this process is about to be ended from outside of the main thread."""
        if not self._job.topology.is_main or self.is_closed:
            return
        self.close(LAST_PATIENCE_S)
        counts = asdict(self.counts) if self.counts is not None else {}
        with suppress(OutputError):
            self.write({"outcome": outcome, "reason": text, **counts})
        if outcome == "drained" and self.counts is not None:
            say(last_words(self.counts), error=True)

    @cached_property
    def _asked(self) -> TaskRanges:
        """The images of the whole job: of one of which some rows are wanted now, also what earlier starts were asked for."""
        asked = TaskRanges.of_tasks(self._job.tasks)
        if self._job.config.is_partial and not self._job.config.overwrite:
            for run in self._writer.folder.all_runs().values():
                asked |= TaskRanges.parse(run.get("tasks")) or TaskRanges()
        return asked

    @cached_property
    def _fingerprint(self) -> str | None:
        """Of a large table: by which the next start knows it again without looking at each of its rows."""
        tasks = self._job.tasks
        return tasks.fingerprint() if isinstance(tasks, ManyTasks) and self._job.redo is None else None

    @cached_property
    def cost_before(self) -> float:
        """US dollars that earlier starts on this folder have paid an API; read before the first run.json of this one."""
        anew = self._job.config.overwrite and not self._job.topology.restarted
        if anew or not self._job.profile.costs_money:
            return 0.0
        return cost_until_now(self._writer.folder, self._writer.part)

    def record(self, measured: Record) -> Record:
        """What run.json says, with what was measured of the run."""
        job, topology = self._job, self._job.topology
        return {
            "num_tasks": self._asked.count,
            "tasks": self._asked.text,
            **self.memory,
            **measured,
            **({} if self._fingerprint is None else {FINGERPRINT: self._fingerprint}),
            **({} if job.image_folders is None else {IMAGE_FOLDERS: job.image_folders.record}),
            **({COST_BEFORE: self.cost_before} if self.cost_before else {}),
            "settings": job.settings,
            **job.columns.record,
            "config": {
                name: {"value": value, "from": job.origins.get(name, "caller")}
                for name, value in settings(job.config).items()
            },
            "choices": self.reasons,
            "effects": self.facts.effects,
            "defaults": self.facts.defaults,
            "versions": {**versions(), **self.facts.versions},
            "device": job.machine.name,
            "topology": {
                "world_size": topology.world_size,
                "num_replicas": topology.num_replicas,
                "replica_size": topology.replica_size,
                "node": topology.node,
                "num_nodes": topology.num_nodes,
                "degrees": settings(topology.parallel),
                **world_record([agent for _, agent in self.ranks]),
            },
            "command": list(map(without_queries, sys.argv)),
            "working_directory": _working_directory(),
            **({} if job.redo is None else {"redo": job.redo.asked}),
            "started": self._started,
            "ended": _now(),
        }


def _working_directory() -> str | None:
    """What the relative paths of the command are relative to."""
    with suppress(OSError):  # it was removed meanwhile
        return os.getcwd()
    return None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
