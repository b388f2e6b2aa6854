"""From a Job to an exit code: the folder, the groups, the plan, the model, the loop, the report."""

import signal
import sys
import threading
import time
from collections.abc import Collection, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from rich.console import Console

from dglaunch import errors
from dglaunch.backends import base
from dglaunch.backends.registry import create
from dglaunch.config import EditingConfig, RunConfig, settings
from dglaunch.data import edits
from dglaunch.data.task import Result, Task
from dglaunch.distributed import preflight
from dglaunch.distributed.channel import Channel
from dglaunch.errors import DglaunchError, OutputError
from dglaunch.output import layouts, writer
from dglaunch.planning import batches
from dglaunch.planning.job import Job, prepare
from dglaunch.planning.tuned import recall
from dglaunch.run import loop as run
from dglaunch.run import report
from dglaunch.run.collect import Gather
from dglaunch.run.watchdog import STOP_SIGNALS, Watch
from dglaunch.system import Machine, versions


def execute(config: RunConfig, origins: dict[str, str], environ: Mapping[str, str]) -> int:
    """Make the images; the exit code is the same on every rank."""
    return run_job(prepare(config, origins, environ))


def run_job(job: Job, console: Console | None = None) -> int:
    """Run what was prepared; `console` is where rank 0 tells of it, instead of the terminal."""
    stop = threading.Event()
    with _signals(stop):
        return _Run(job, stop, console).run()


@contextmanager
def _signals(stop: threading.Event) -> Any:
    """SIGTERM, SIGINT and SIGUSR2 ask the run to stop after the denoising step under way; a second SIGINT kills it."""

    interrupts = 0

    def handle(number: int, _frame: Any) -> None:
        nonlocal interrupts
        interrupts += number == signal.SIGINT
        if interrupts > 1:
            raise KeyboardInterrupt
        stop.set()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handle) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_Opened = tuple[list[int], int, dict[str, int], Mapping[str, batches.BatchSize], int | None]
"""Numbers of the tasks that are done, damage, limits of the batch size and what `tune` found, rank 0's memory."""


class _Run:
    """One start of a job on one rank."""

    def __init__(self, job: Job, stop: threading.Event, console: Console | None = None) -> None:
        self.job = job
        self.console = console
        self.stop = stop
        self.topology = job.topology
        self.writer = writer.Writer(job.config.output_dir, *job.topology.parts)
        self.report: report.Report | None = None
        self.facts = base.Facts()
        self.load_seconds = 0.0
        saves = isinstance(job.config, EditingConfig) and job.config.save_inputs
        self.inputs = {t.id: edits.saved_names(t) for t in job.tasks} if saves else {}
        self.hopeless: list[Task] = []
        """What is recorded as failed without being run."""
        self.finished = False
        """The end of the run is in run.json."""
        self.began = datetime.now(UTC).isoformat(timespec="seconds")

    def run(self) -> int:
        preflight.check_address(self.topology)
        try:
            watch = Watch(self.topology, self.job.config.stall_timeout, self.stop, self._last_words)
            with watch as self.watch:
                channel = Channel(self.topology, self.job.device)
                # Only now: ranks whose agent died while they joined must not hold the folder against the next start.
                told = self._open_folders(channel)
                watch.meet(channel.attempt)
                code = self._compare_and_make(channel, *told)
            # The other ranks are on their way out and need not wait for it.
            if self.topology.is_main and code != errors.EXIT_DRAINED:
                self._write_layout()
            return code
        finally:
            if self.report is not None:
                self.report.stop()
            self.writer.close()

    def _compare_and_make(self, channel: Channel, *told: Any) -> int:
        try:
            return self._make(channel, preflight.compare(channel, versions()), *told)
        except DglaunchError as error:
            if self.topology.is_main and not self.finished:
                self.writer.write_run(self._run_json({"outcome": run.end_of(error, False, 0), "error": str(error)}))
            raise

    def _open_folders(self, channel: Channel) -> _Opened:
        """On every rank: what is done in the folder that all share, or in those of all writers.

        Rank 0 comes first, as it joins what earlier starts have left. Only --overwrite is the others' first: nobody has
        opened a ledger yet, and they may have folders of their own."""
        job, place = self.job, self.topology
        beside = place.writes and not place.is_main
        anew = job.config.overwrite and not any(channel.all_of_world(place.restarted))
        if anew and place.mode != "main":
            channel.together(lambda: self._start_anew() if beside else None)
        first = channel.together(lambda: self._open_main_folder(anew) if place.is_main else None)
        done, damaged, limits, tuned, memory = channel.broadcast(first)
        if place.mode != "main":
            told = channel.all_of_world(channel.together(lambda: self._open_folder(False, done) if beside else None))
            there = [own for own in told if own is not None]
            done = sorted({*done, *(n for own, _ in there for n in own)})
            damaged += sum(count for _, count in there)
        return done, damaged, limits, tuned, memory

    def _start_anew(self) -> None:
        self.writer.start_anew()

    def _open_main_folder(self, anew: bool) -> _Opened:
        """On rank 0: take the folder; with what is done there, all that the ranks must not each find out for themselves."""
        job, folder = self.job, self.job.config.output_dir
        layouts.check(job.config.layout, folder, job.tasks, job.config.output_format)
        tuned = recall(job.config, job.machine, job.topology.parallel)
        return *self._open_folder(anew), self.writer.folder.out_of_memory_limits(), tuned, job.machine.memory

    def _open_folder(self, anew: bool, known: Collection[int] = ()) -> tuple[list[int], int]:
        """On a writer: take the folder; what is done there beyond what is known, and damage."""
        job = self.job
        ledger = self.writer.open(job.settings, job.tasks, job.config.output_format, anew)
        self.writer.write_run(self._run_json({"outcome": "running", "num_total": len(job.tasks)}))
        done = {n for n, task in enumerate(job.tasks) if task.id in ledger.done}
        return sorted(done.difference(known)), ledger.damaged

    def _make(
        self, channel: Channel, notes: list[str], done: list[int], damaged: int, limits: dict[str, int],
        tuned: Mapping[str, batches.BatchSize], memory: int | None,
    ) -> int:  # fmt: skip
        job = self.job
        job.machine = Machine(name=job.machine.name, memory=memory, dtype=job.machine.dtype)
        bucket_of = job.bucket_of()
        mine = batches.share_of_node(job.makeable, self.topology, bucket_of, job.cost) + job.hopeless
        finished = {job.tasks[n].id for n in done}
        left = [task for task in mine if task.id not in finished]
        pending = [task for task in left if task.error is None]
        self.hopeless = [task for task in left if task.error is not None]
        made = job.make_plan(bucket_of, pending, limits, tuned)
        if self.topology.is_main:
            self.report = report.Report(len(mine), skipped=len(mine) - len(left), console=self.console)
            self._say_plan(made, damaged, len(pending))
            for note in notes:
                self.report.note(note)
        context = base.Context(
            config=job.config, checkpoint=job.checkpoint, topology=self.topology, channel=channel, device=job.device,
            dtype=job.machine.dtype, should_stop=lambda: self._between_steps(channel),
            batches=made.batches[self.topology.replica],
        )  # fmt: skip
        backend = create(context) if pending else None
        if backend is not None:
            self._load(backend, channel)
        try:
            return self._loop(context, backend, made)
        finally:
            if backend is not None:
                backend.close()

    def _load(self, backend: base.Backend, channel: Channel) -> None:
        """All ranks load at the same time and start together, or leave together."""
        start = time.perf_counter()
        with ExitStack() as waiting:  # a download may take hours; waiting for one that hangs must not

            def load() -> base.Facts:
                facts = backend.load()
                self.load_seconds = time.perf_counter() - start - backend.seconds.get("encode_prompts", 0.0)
                waiting.enter_context(self.watch.doing("waiting for the other ranks to load the model"))
                return facts

            self.facts = channel.together(load)

    def _loop(self, context: base.Context, backend: base.Backend | None, made: batches.Plan) -> int:
        channel = context.channel
        if self.report is not None:
            self.report.begin()
            for task in self.hopeless:
                self._deliver(run.failed(task, str(task.error), context, task.content() | task.origin(), 0))
        gather = Gather(self.topology, channel, self._deliver, self.watch, threads=not self.job.config.debug)
        loop = run.Loop(context, backend, self.facts, gather, self.watch) if backend is not None else None
        mine = loop.run(made.batches[self.topology.replica]) if loop else report.LeaderReport(time.time(), 0.0)
        gather.close(mine)
        outcome, error, told = None, gather.error, None
        if self.report is not None:
            leaders = gather.reports
            lost = set(self.topology.leaders) - leaders.keys()
            drained = any(leader.drained for leader in leaders.values()) or bool(lost)
            error = error or next((leader.error for leader in leaders.values() if leader.error is not None), None)
            if error is None and not drained:
                error = self._unaccounted()
            outcome, told = self._finish(leaders, error, drained, made)
            if not lost:
                self._join()
        outcome, error, told = channel.broadcast((outcome, error, told))
        if self.topology.writes and not self.topology.is_main and not self.writer.is_joined():
            self.writer.write_run(told)  # a folder of its own, for dglaunch status and merge
        if error is not None:
            raise error
        codes = {"done": errors.EXIT_DONE, "failed": errors.EXIT_ITEMS_FAILED, "drained": errors.EXIT_DRAINED}
        return codes[outcome]

    def _between_steps(self, channel: Channel) -> bool:
        self.watch.beat()
        return channel.any_of_replica(self.stop.is_set())

    # -- rank 0 ---------------------------------------------------------------------------------------------------

    def _last_words(self, outcome: str, text: str) -> None:
        """Called by the watch when this process is about to be ended from outside of the main thread."""
        if not self.topology.is_main or self.finished:
            return
        counts = asdict(self.report.counts) if self.report is not None else {}
        with suppress(OutputError):
            self.writer.write_run(self._run_json({"outcome": outcome, "reason": text, **counts}))

    def _deliver(self, result: Result) -> None:
        if not result.written:
            if self.inputs and not result.failed:
                self.writer.copy_inputs(self.inputs[result.task_id])
            self.writer.write(result)
        if self.report is not None:
            self.report.update(result)

    def _unaccounted(self) -> DglaunchError | None:
        """ok + failed + skipped = total, or the run is not done, whatever the replicas say."""
        assert self.report is not None
        counts = self.report.counts
        missing = counts.total - counts.num_ok - counts.num_failed - counts.num_skipped
        if not missing:
            return None
        return DglaunchError(
            f"{missing:,} images never arrived, and no replica said why. Start the same command again."
        )

    def _say_plan(self, made: batches.Plan, damaged: int, pending: int) -> None:
        assert self.report is not None
        job, note = self.job, self.report.note
        note(
            f"{job.config.backend.model_name} ({job.checkpoint.pipeline_class}) on {job.machine.name}, {job.machine.dtype}: {self.topology.describe()}"
        )
        for name, reason in job.reasons.items():
            note(f"{name} {reason}")
        if damaged:
            note("The last run left a torn ledger line, or images were removed or damaged; those are made again.")
        skipped = self.report.counts.num_skipped
        note(
            f"{report.number(pending, 'image')} in {report.number(made.num_batches, 'batch')} to make"
            + (f"; {skipped:,} are there already" if skipped else "")
            + (
                f"; without its different sizes and images it would be {made.num_batches - made.lost:,}"
                if job.edits and made.lost
                else ""
            )
        )

    def _finish(
        self, leaders: dict[int, report.LeaderReport], error: DglaunchError | None, drained: bool, made: batches.Plan
    ) -> tuple[str, dict[str, Any]]:
        """The outcome and what run.json says."""
        assert self.report is not None
        summary = self.report.summary(leaders, self.load_seconds)
        summary["outcome"] = run.end_of(error, drained, self.report.counts.num_failed)
        summary["num_batches"] = made.num_batches
        self.report.table(summary, self.job.config.output_dir)
        self.finished = True
        told = self._run_json(summary)
        try:
            self.writer.write_run(told)
        except OutputError as full:
            if error is None:
                raise
            self.report.note(str(full))
        if self.job.config.gallery and not drained:
            self.report.note(self._write_gallery())
        return summary["outcome"], told

    def _join(self) -> None:
        """One ledger of all; where that fails, each is whole by itself, and the next start does it."""
        assert self.report is not None
        try:
            self.writer.join(self.job.tasks)
        except OSError as error:
            self.report.note(f"The ledgers of the ranks were not joined ({error}); the next start does it.")

    def _write_layout(self) -> None:
        """The view of --layout, once every image of the job was made or has failed; of several nodes the last one does it.

        Raises:
            UserError, OutputError: it cannot be written.
        """
        layout, folder = self.job.config.layout, self.job.config.output_dir
        if layout == "indexed" or (self.writer.part.ledger_suffix and not (folder / "metadata.jsonl").exists()):
            return
        assert self.report is not None
        view, count = layouts.write(layout, folder, self.job.tasks)
        missing = len(self.job.tasks) - count
        self.report.note(
            f"{count:,} images for {layout} are in {view}" + (f"; {missing:,} are missing" if missing else "")
        )

    def _write_gallery(self) -> str:
        """The page, or why there is none: the results are safe by now, and looking at them must not cost the run."""
        folder = self.job.config.output_dir
        try:
            from dglaunch.output import gallery

            return f"Look through the results: {gallery.write_page(folder)}"
        except Exception as error:
            return f"The gallery was not written ({error}); later: dglaunch gallery {folder}"

    def _run_json(self, measured: dict[str, Any]) -> dict[str, Any]:
        job, place = self.job, self.topology
        return {
            "num_tasks": len(job.tasks),
            **measured,
            "settings": job.settings,
            "config": {name: {"value": v, "from": job.origins.get(name, "caller")} for name, v in settings(job.config).items()},
            "choices": job.reasons,
            "effects": self.facts.effects,
            "defaults": self.facts.defaults,
            "versions": versions() | self.facts.versions,
            "device": job.machine.name,
            "topology": {
                "world_size": place.world_size, "num_replicas": place.num_replicas, "replica_size": place.replica_size,
                "node": place.node, "num_nodes": place.num_nodes, "degrees": settings(place.parallel),
            },
            "command": sys.argv,
            "started": self.began,
            "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        }  # fmt: skip
