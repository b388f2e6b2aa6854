"""One start of a job on one rank: the folder, the groups, the plan, the model, the loop, the report.

    result = run(prepare(config, origins, environ))

All ranks call it and get the same result. The way down to the model is short: run, _Run.make, Loop.run, Loop.attempt,
backend.generate.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace

from dglaunch.backends.base import Backend, Context, Facts, ItemError
from dglaunch.backends.registry import create
from dglaunch.data.edits import saved_names
from dglaunch.data.many import finder
from dglaunch.data.task import Batch, Record, Result
from dglaunch.distributed import preflight
from dglaunch.distributed.channel import Channel
from dglaunch.distributed.claims import Claims
from dglaunch.distributed.messages import message
from dglaunch.errors import DglaunchError, Drained, OutputError, UserError
from dglaunch.output import layouts
from dglaunch.output.shard_writer import Keeping
from dglaunch.output.writer import Writer
from dglaunch.planning.batches import Plan
from dglaunch.planning.figures import book_of
from dglaunch.planning.job import Job, Schedule
from dglaunch.planning.outlook import planned_peak
from dglaunch.run.attempts import Limits
from dglaunch.run.collect import Collector, Sink
from dglaunch.run.encoding import Encoder
from dglaunch.run.images import ImageQueue
from dglaunch.run.journal import Journal
from dglaunch.run.loop import Loop
from dglaunch.run.memory import MemoryCheck
from dglaunch.run.opening import Opened, open_folders, start_anew
from dglaunch.run.pulse import Pulse, check_metrics_file
from dglaunch.run.record import Recorder
from dglaunch.run.report import LeaderReport, Report
from dglaunch.run.result import Counts, RunResult, outcome_of
from dglaunch.run.rewriting import Stage
from dglaunch.run.signals import stopping
from dglaunch.run.watchdog import PeerWatch, StallWatch
from dglaunch.run.work import Work
from dglaunch.system import versions
from dglaunch.terminal import Terminal


def run(
    job: Job,
    terminal: Terminal | None = None,
    finished: ImageQueue | None = None,
    stop: threading.Event | None = None,
) -> RunResult:
    """Make what is missing of a job's images, on this rank together with the others.

    Args:
        terminal: where rank 0 reports, instead of the terminal.
        finished: gets the images of this rank's replica.
        stop: asks the run to stop as a signal does.

    Raises:
        DglaunchError: the run broke off; what was written is whole.
    """
    stop = stop if stop is not None else threading.Event()
    writer = Writer(job.config.output_dir, *job.topology.ledger_suffix, keeping=_keeping(job))
    journal = Journal(job, writer)
    start = _Run(job, writer, journal, terminal, finished)
    with stopping(stop), start.closing():
        preflight.check_address(job.topology)
        with StallWatch(job.topology, job.config.stall_timeout, stop, journal.last_words) as watch:
            channel = Channel(job.topology, job.device)
            channel.together(start.check)
            # Only now: ranks whose agent died while they joined must not hold the folder against the next start.
            opened = open_folders(job, channel, writer, journal)
            with PeerWatch(watch, channel.attempt, channel.lifelines) as peers, start.errors_in_journal():
                result = start.make(channel, watch, peers, opened)
        # The other ranks are on their way out and need not wait for it.
        if job.topology.is_main and result.outcome != "drained":
            start.write_layout() if job.redo is None else start.refresh_views()
        elif start.report is not None:
            start.report.stopped()
        return result


def _keeping(job: Job) -> Keeping:
    """How the images are kept. Of those that are paid for none may be lost."""
    store = job.config.store
    return Keeping(store if store != "files" else None, job.config.shard_size * 1_000_000, job.profile.costs_money)


class _Run:
    """One start of a job, with what lives as long as it."""

    def __init__(
        self, job: Job, writer: Writer, journal: Journal, terminal: Terminal | None, finished: ImageQueue | None
    ) -> None:
        self.job = job
        self.topology = job.topology
        self.writer = writer
        self.journal = journal
        self.terminal = terminal
        self.finished = finished
        self.report: Report | None = None
        self.pulse: Pulse | None = None
        self.memory: MemoryCheck | None = None
        """On rank 0, where figures say what a batch takes."""
        self.load_seconds = 0.0
        self.task_of = finder(job.tasks) if job.config.saves_inputs else None
        """The task of an image whose input images are saved beside it."""

    def check(self) -> None:
        """Refuse what rank 0 could not write beside the folder.

        Raises:
            UserError: with what to do instead.
        """
        if self.topology.is_main and self.job.config.metrics_file is not None:
            check_metrics_file(self.job.config.metrics_file)

    @contextmanager
    def closing(self) -> Iterator[None]:
        """Give terminal and folder back in the end."""
        try:
            yield
        finally:
            if self.report is not None:
                self.report.stop()
            if self.pulse is not None:
                self.pulse.stop()
                with suppress(OSError):
                    self.pulse.write_metrics(is_running=False)
            self.writer.close()

    @contextmanager
    def errors_in_journal(self) -> Iterator[None]:
        """An error that ends the run stands in run.json, too."""
        try:
            yield
        except DglaunchError as error:
            if self.topology.is_main and not self.journal.is_closed:
                self.journal.close()
                self.journal.write({"outcome": outcome_of(error, False, 0), "error": str(error)})
            raise

    def make(self, channel: Channel, watch: StallWatch, peers: PeerWatch, opened: Opened) -> RunResult:
        """Plan, load, compute, collect and report."""
        notes = preflight.compare(channel, versions())
        known, job = opened.known, opened.job
        if job.rewriting is not None:
            self._tell(len(job.tasks), len(opened.done))
            try:
                job = Stage(job, channel, watch, self.writer, self.terminal).run(opened.done, opened.overwrite)
            except Drained:
                return self._stopped_early(opened)
        book = book_of(job, trace=None, known=known.figures)
        schedule = job.schedule(opened.done, known.limits, known.tuned, known.memory, known.parameters, book)
        if self.topology.is_main and (planned := planned_peak(job, schedule, book)) is not None:
            self.memory = MemoryCheck(job, book, planned)
        self.journal.reasons = schedule.reasons
        self._report_plan(schedule, opened.damaged, notes + known.notes)
        context = self._context(channel, watch, schedule.plan)
        with self._loaded(context, watch, schedule.plan) as backend:
            if opened.overwrite:
                start_anew(self.job, channel, self.writer, self.journal)
            self._begin(context, schedule)
            background = not self.job.config.debug
            collector = Collector(
                self.topology, channel, self._write, watch, peers, background, settle=self.writer.settle
            )
            report = LeaderReport(time.time(), 0.0)
            if backend is not None:
                facts = self.journal.facts
                one = facts.workers == 1 or self.job.config.debug
                with self._encoder(context, collector, watch, background and one) as encoder:
                    limits = Limits(most=facts.most_images)
                    loop = Loop(context, backend, facts, collector.sink, watch, encoder, limits)
                    batches = self._batches(context, schedule.plan)
                    if one:
                        loop.run(batches)
                    else:
                        loop.run_in_threads(batches, min(facts.workers, schedule.plan.num_batches))
                report = loop.report()
            collector.close(report)
            return self._finish(channel, collector.sink, schedule.plan)

    def _stopped_early(self, opened: Opened) -> RunResult:
        """The run was stopped before it was planned: what it did is kept, and the same command goes on."""
        counts = Counts(num_skipped=len(opened.done), num_total=len(opened.job.tasks))
        if self.topology.is_main:
            self.journal.close()
            self.journal.write({"outcome": "drained", **asdict(counts)})
        return RunResult("drained", counts, self.job.config.output_dir)

    # -- before the first batch -----------------------------------------------------------------------------------

    def _tell(self, total: int, skipped: int) -> None:
        """From now on rank 0 says how far the run is."""
        if not self.topology.is_main:
            return
        if self.pulse is not None:
            self.pulse.stop()
        self.report = Report(total, skipped, self.terminal)
        self.report.cost_before = self.journal.cost_before
        self.journal.counts = self.report.counts
        labels = {"output_dir": str(self.job.config.output_dir)}
        self.pulse = Pulse(self.report, self.journal, self.topology.leaders, self.job.config.metrics_file, labels)
        self.pulse.start()

    def _report_plan(self, schedule: Schedule, damaged: int, notes: list[str]) -> None:
        self._tell(schedule.total, schedule.total - schedule.plan.num_tasks - len(schedule.unmakeable))
        if self.report is None:
            return
        self.report.plan(self.job, schedule, damaged)
        for note in notes:
            self.report.note(note)

    def _context(self, channel: Channel, watch: StallWatch, plan: Plan) -> Context:
        def should_stop() -> bool:
            watch.beat()
            return channel.any_of_replica(watch.stop.is_set())

        return Context(
            config=self.job.config,
            checkpoint=self.job.checkpoint,
            topology=self.topology,
            channel=channel,
            device=self.job.device,
            dtype=self.job.machine.dtype,
            should_stop=should_stop,
            batches=plan.batches[self.topology.replica],
        )

    def _batches(self, context: Context, plan: Plan) -> Iterator[Batch]:
        """Its own share, and with --shares claimed what other replicas have not begun when it is through."""
        if (order := self.journal.facts.order) is not None:
            return order(context.batches)
        counters = context.channel.counters("batches") if self.job.config.shares == "claimed" else None
        if counters is None:
            return iter(context.batches)
        claims = Claims(counters, plan.costs)
        work = Work(context.channel, plan.batches, claims, self.journal.facts.seconds_to_take_over)
        context.coming = work.coming
        return work

    @contextmanager
    def _loaded(self, context: Context, watch: StallWatch, plan: Plan) -> Iterator[Backend | None]:
        """The backend, closed afterwards; none where nothing is left to do.

        All ranks load at the same time and start together, or leave together."""
        if not plan.num_tasks:
            yield None
            return
        backend = create(context)
        start = time.perf_counter()
        with ExitStack() as waiting:  # a download may take hours; waiting for one that hangs must not

            def load() -> Facts:
                facts = backend.load()
                self.load_seconds = time.perf_counter() - start - backend.seconds.get("encode_prompts", 0.0)
                waiting.enter_context(watch.doing("waiting for the other ranks to load the model"))
                return facts

            self.journal.facts = context.channel.together(load)
        try:
            yield backend
        finally:
            backend.close()

    def _begin(self, context: Context, schedule: Schedule) -> None:
        """Record what cannot be made."""
        if self.report is None:
            return
        self.report.begin()
        recorder = Recorder(context, Facts())
        for task in schedule.unmakeable:
            self._write(recorder.failure(task, ItemError(str(task.error))))

    # -- during the run -------------------------------------------------------------------------------------------

    @contextmanager
    def _encoder(
        self, context: Context, collector: Collector, watch: StallWatch, background: bool
    ) -> Iterator[Encoder | None]:
        if collector.sender is None:
            yield None
            return
        recorder = Recorder(context, self.journal.facts)
        with Encoder(context, recorder, collector.sender, watch, background, self.finished) as encoder:
            yield encoder

    def _write(self, result: Result) -> None:
        """On rank 0, which counts all results, and on writers."""
        if not result.written:
            if self.task_of is not None and not result.failed:
                self.writer.copy_inputs(saved_names(self.task_of(result.task_id)))
            self.writer.write(result)
            if self.job.profile.costs_money:  # before the next one is asked for
                self.writer.flush()
        if self.report is not None:
            self.report.update(result)
            self._compare_memory(self.report, result)

    def _compare_memory(self, report: Report, result: Result) -> None:
        """A run that is killed before its end has noted what its batches take, too."""
        measured = self.memory.after(result.record) if self.memory is not None and not result.failed else None
        if self.memory is not None and measured is not None:
            self.journal.memory = {"planned_memory_bytes": self.memory.num_bytes, "peak_memory_bytes": measured}
            if text := self.memory.told(measured):
                report.note(text)

    # -- after the last batch -------------------------------------------------------------------------------------

    def _finish(self, channel: Channel, sink: Sink, plan: Plan) -> RunResult:
        """What the run came to, the same on every rank.

        Raises:
            DglaunchError: it broke off.
        """
        ended = channel.broadcast(self._end(self.report, sink, plan) if self.report is not None else None)
        assert ended is not None
        if self.topology.writes and not self.topology.is_main and not self.writer.is_joined():
            self.writer.write_run(ended.record)  # a folder of its own, for dglaunch status and merge
            if ended.result.outcome != "drained" and ended.error is None:
                with suppress(OSError):  # whole as it is
                    self.writer.put_in_order()
        if ended.error is not None:
            raise ended.error
        return ended.result

    def _end(self, report: Report, sink: Sink, plan: Plan) -> "_Ended":
        """On rank 0: judge, report, and leave the folder as it is to stay."""
        lost = set(self.topology.leaders) - sink.reports.keys()
        drained = bool(lost) or any(leader.drained for leader in sink.reports.values())
        errors = [sink.error, *(leader.error for leader in sink.reports.values())]
        error = next((error for error in errors if error is not None), None)
        if error is None and not drained:
            error = _unaccounted(report)
        outcome = outcome_of(error, drained, report.counts.num_failed)
        summary = report.summary(sink.reports, self.load_seconds, outcome, plan.num_batches)
        if self.memory is not None:
            self.memory.compare(summary.peak_memory_bytes)
            summary = replace(summary, planned_memory_bytes=self.memory.num_bytes)
        report.end(summary, self.job.config.output_dir)
        record = self._close_journal(report, asdict(summary), error)
        if self.job.config.gallery and not drained:
            report.note(self._write_gallery())
        if not lost:
            self._join(report, has_ended=outcome in ("done", "failed"))
        return _Ended(RunResult(outcome, report.counts, self.job.config.output_dir), error, record)

    def _close_journal(self, report: Report, summary: Record, error: DglaunchError | None) -> Record:
        self.journal.close()
        record = self.journal.record(summary)
        try:
            self.writer.write_run(record)
        except OutputError as full:
            if error is None:
                raise
            report.note(str(full))
        return record

    def _write_gallery(self) -> str:
        """The page, or why there is none: the results are safe by now, and looking at them must not cost the run."""
        folder = self.job.config.output_dir
        try:
            from dglaunch.output import gallery

            return f"Look through the results: {gallery.write_page(folder)}"
        except Exception as error:  # whatever it is, from templates to pictures: it is no reason to fail
            return f"The gallery was not written ({error}); later: dglaunch gallery {folder}"

    def _join(self, report: Report, has_ended: bool) -> None:
        """One ledger of all, in the order of index; where that fails, each is whole by itself, and the next start does it."""
        try:
            self.writer.join(self.job.tasks)
            self.writer.drop_replaced()
            if has_ended:
                self.writer.put_in_order()
            if has_ended and not report.counts.num_failed:
                self.writer.end_anew()
            self.writer.sync()
        except OSError as error:
            report.note(f"The ledgers were not joined and put in order ({error}); the next start does it.")

    def refresh_views(self) -> None:
        """Of a redo: all views that there are of the folder show the new images, or are told to show the old ones."""
        assert self.report is not None
        folder, page = self.job.config.output_dir, self.job.config.output_dir / "gallery.html"
        for layout in layouts.present(folder):
            try:
                layouts.write(layout, folder, self.job.tasks)
                self.report.note(f"{folder / layout} has the new images, too")
            except (UserError, OutputError) as error:
                self.report.note(
                    f"{folder / layout} still shows the images as they were ({error}). Remove that folder and start the job's "
                    f"command with --layout {layout}."
                )
        if page.exists() and not self.job.config.gallery:
            self.report.note(f"{page} still lists the images as they were; dglaunch gallery {folder} makes it anew.")

    def write_layout(self) -> None:
        """The view of --layout, once every image of the job was made or has failed; of several nodes the last one does it.

        Raises:
            UserError, OutputError: it cannot be written.
        """
        layout, folder = self.job.config.layout, self.job.config.output_dir
        if layout == "indexed" or (self.writer.part.ledger_suffix and not self.writer.is_published):
            return
        assert self.report is not None
        view, count = layouts.write(layout, folder, self.job.tasks)
        missing = len(self.job.tasks) - count
        self.report.note(
            f"{count:,} images for {layout} are in {view}" + (f"; {missing:,} are missing" if missing else "")
        )


@message
@dataclass(frozen=True, slots=True)
class _Ended:
    """What rank 0 lets all ranks know in the end."""

    result: RunResult
    error: DglaunchError | None
    record: Record
    """As it stands in run.json."""


def _unaccounted(report: Report) -> DglaunchError | None:
    """ok + failed + skipped = total, or the run is not done, whatever the replicas say."""
    missing = report.counts.num_total - report.counts.num_settled
    if not missing:
        return None
    return DglaunchError(f"{missing:,} images never arrived, and no replica said why. Start the same command again.")
