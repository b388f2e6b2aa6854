"""From a configuration to an exit code: what `t2i`, `edit` and `plan` do, in the order in which they do it.

prepare()     checkpoint, tasks, topology, rules: the same on every rank, no model, nothing written
run()         the folder, the groups, the plan, the model, the loop, the report
show_plan()   what run() would do, without it
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from rich.console import Console

from dglaunch import (
    backends,
    edit_tasks,
    editing,
    errors,
    estimate,
    hosts,
    plan,
    report,
    rules,
    run,
    tasks,
    topology,
    writer,
)  # fmt: skip
from dglaunch.backends import remote
from dglaunch.config import (
    EditingConfig,
    RunConfig,
    T2IConfig,
    check_flags_of_backend,
    parallel_from_environment,
    settings,
)
from dglaunch.errors import DglaunchError, OutputError, UserError
from dglaunch.gather import Gather
from dglaunch.models import OTHER, Checkpoint, resolve, token_lengths
from dglaunch.topology import Channel, Topology
from dglaunch.watch import STOP_SIGNALS, Watch

IMAGE_SETTINGS = (
    "model_name", "revision", "max_sequence_length", "enable_vae_tiling", "cache_type", "output_format",
)  # fmt: skip
"""Flags that change the images or their names: a run with others is another job."""
SHOWN_SIZES = 8
SHOWN_ERRORS = 5


@dataclass(slots=True, kw_only=True)
class Job:
    """All that is known before anything is written or loaded."""

    config: RunConfig
    origins: dict[str, str]
    topology: Topology
    checkpoint: Checkpoint
    tasks: list[tasks.Task]
    device: str
    machine: estimate.Machine
    reasons: dict[str, str] = field(default_factory=dict)
    """Every automatic choice, and why."""

    @property
    def settings(self) -> dict[str, Any]:
        """What must not change between two starts on one folder."""
        flat = settings(self.config)
        chosen: dict[str, Any] = {name: flat[name] for name in IMAGE_SETTINGS}
        kind = self.config.backend.backend
        stands_alone = kind == "fake" or self.config.backend.is_remote
        edits = {"editing_pipeline": self.checkpoint.pipeline_class} if self.edits else {}
        return chosen | {"torch_dtype": self.machine.dtype} | ({"backend": kind} if stands_alone else {}) | edits

    @property
    def edits(self) -> bool:
        return isinstance(self.config, EditingConfig)

    @property
    def makeable(self) -> list[tasks.Task]:
        """The tasks with no error that was found while reading them."""
        return [task for task in self.tasks if task.error is None]

    @property
    def hopeless(self) -> list[tasks.Task]:
        """The others: told and recorded, never run. Of several nodes without a rendezvous the first one has them."""
        return [task for task in self.tasks if task.error is not None and self.topology.node == 0]

    def bucket_of(self) -> Callable[[tasks.Task], plan.Bucket]:
        """What must be equal in a batch; for some families under xDiT also the number of tokens."""
        if self.config.backend.is_remote:  # a request makes samples of one row
            return lambda task: (*plan.default_bucket(task), task.index)
        base = editing.bucket_of(self.checkpoint) if self.edits else plan.default_bucket
        unit = self.checkpoint.family.text_bucket
        if self.config.backend.backend != "xdit" or not unit:
            return base
        texts = sorted({t.prompt for t in self.tasks} | {t.negative_prompt or "" for t in self.tasks})
        lengths = dict(zip(texts, token_lengths(self.checkpoint, texts)))

        def bucket(task: tasks.Task) -> plan.Bucket:
            tokens = (lengths[task.prompt], lengths[task.negative_prompt or ""])
            return (*base(task), *(-(-count // unit) for count in tokens))

        return bucket

    @property
    def one_kind(self) -> str:
        """The condition under which no batch would be lost."""
        return "all rows had one size and the same input images" if self.edits else "all images had one shape"

    def make_plan(
        self, bucket_of: Callable[[tasks.Task], plan.Bucket], pending: Sequence[tasks.Task], limits: dict[str, int]
    ) -> plan.Plan:
        choose = (
            remote.request_size(self.config)
            if self.config.backend.is_remote
            else estimate.chooser(self.checkpoint, self.config, self.topology, self.machine, limits)
        )
        made = plan.build(pending, self.topology.num_replicas, choose, bucket_of, plan.cost_of(self.checkpoint))
        self.reasons |= _size_reasons(self.checkpoint, made)
        return made


def _size_reasons(checkpoint: Checkpoint, made: plan.Plan) -> dict[str, str]:
    """Why the images of each size come in such batches; a table of photographs may have hundreds of sizes."""
    reasons: dict[str, str] = {}
    for bucket, size in made.sizes.items():
        shape = f"{checkpoint.size('height', bucket[0])}x{checkpoint.size('width', bucket[1])}"  # type: ignore[arg-type]
        reasons[f"batch_size {shape}"] = f"{size.size}: {size.reason}"
    if not checkpoint.family.batch:
        return dict(zip(["batch_size"], reasons.values()))
    more = len(reasons) - SHOWN_SIZES
    return dict(list(reasons.items())[:SHOWN_SIZES]) | ({"batch_size": f"for {more:,} more sizes"} if more > 0 else {})


# -- before the run -----------------------------------------------------------------------------------------------


def prepare(
    config: RunConfig, origins: dict[str, str], environ: Mapping[str, str], world_size: int | None = None
) -> Job:
    """Read and check everything that can be checked without loading a model.

    Raises:
        UserError: with the remedy.
    """
    check_flags_of_backend(config, origins)
    place = topology.from_environment(config, parallel_from_environment(environ), environ, world_size)
    if config.debug and place.world_size > 1 and world_size is None:
        raise UserError(
            "--debug runs in one process; start it without torchrun: python -m dglaunch COMMAND --debug ..."
        )
    stand_ins = _stand_ins(config, place)
    checkpoint, all_tasks = _read(config, stand_ins[0] if stand_ins else resolve(config.backend))
    device, machine, reasons = ("cpu", *stand_ins[1:]) if stand_ins else _machine(config, place)
    job = Job(
        config=config, origins=origins, topology=place, checkpoint=checkpoint, tasks=all_tasks, device=device,
        machine=machine, reasons=reasons,
    )  # fmt: skip
    rules.check(checkpoint, config, place, job.makeable, device)
    return job


def _stand_ins(config: RunConfig, place: Topology) -> tuple[Checkpoint, estimate.Machine, dict[str, str]] | None:
    """In place of a checkpoint and a device, for the backends that have none here. torch is not needed then."""
    name, any_size = config.backend.backend, replace(OTHER, size_multiple=1)
    if name == "fake":
        checkpoint = Checkpoint(
            "fake", "fake", any_size, {"height": 64, "width": 64, "edit": {"_auto_resize": False}}, {}, False
        )
        return checkpoint, estimate.Machine(name="fake", memory=None, dtype="float32"), {}
    if config.backend.is_remote:
        checkpoint = Checkpoint(config.backend.model_name, remote.api_of(config).name, any_size, {}, {}, False)
        machine = estimate.Machine(name=config.remote.api_base or "its servers", memory=None, dtype="remote")
        return checkpoint, machine, remote.reasons(config, place)
    return None


def _read(config: RunConfig, checkpoint: Checkpoint) -> tuple[Checkpoint, list[tasks.Task]]:
    """The tasks of either command, and the checkpoint as that command uses it."""
    if isinstance(config, EditingConfig):
        if config.backend.is_remote:
            raise UserError(
                f"--backend {config.backend.backend} does not edit here; edit runs with diffusers and xdit. Drop --backend."
            )
        editor = editing.as_editor(checkpoint, config.model_type)
        return editor, edit_tasks.read_edits(config, editor)
    assert isinstance(config, T2IConfig)
    if checkpoint.family.only_edits:
        raise UserError(
            f"{checkpoint.source} is a {checkpoint.pipeline_class}, which edits images: dglaunch edit --input TABLE."
        )
    return checkpoint, tasks.read_prompts(config, checkpoint.family.size_multiple)


def _machine(config: RunConfig, place: Topology) -> tuple[str, estimate.Machine, dict[str, str]]:
    """Device and type of the weights, chosen where they were not given."""
    rules.need("torch", "Running a model", "pip install torch")
    import torch

    reasons: dict[str, str] = {}
    found = torch.cuda.is_available()
    device = config.backend.device
    if device is None:
        device = "cuda" if found else "cpu"
        reasons["device"] = f"{device}: torch {'finds a GPU' if found else 'finds no GPU'}"
    if device == "cuda" and not found:
        raise UserError(
            "--device cuda, but torch finds no GPU here. Check nvidia-smi and the torch build, or use --device cpu."
        )
    if device == "cuda" and place.distributed and place.local_world_size > torch.cuda.device_count():
        raise UserError(
            f"{place.local_world_size} ranks on this machine, but torch finds {torch.cuda.device_count()} GPUs. Start one "
            "rank a GPU (--nproc_per_node)."
        )
    dtype = config.backend.torch_dtype
    if dtype is None:
        dtype = "bfloat16" if device == "cuda" else "float32"
        reasons["torch_dtype"] = f"{dtype}: the default on a {'GPU' if device == 'cuda' else 'CPU'}"
    if device == "cuda":
        properties = torch.cuda.get_device_properties(place.local_rank)
        return device, estimate.Machine(name=properties.name, memory=properties.total_memory, dtype=dtype), reasons
    if place.world_size > 1 and not place.distributed:
        return device, estimate.Machine(name="CPU", memory=None, dtype=dtype), reasons  # a plan for other machines
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return device, estimate.Machine(name="CPU", memory=host // max(place.local_world_size, 1), dtype=dtype), reasons


# -- the run ------------------------------------------------------------------------------------------------------


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


class _Run:
    """One start of a job on one rank."""

    def __init__(self, job: Job, stop: threading.Event, console: Console | None = None) -> None:
        self.job = job
        self.console = console
        self.stop = stop
        self.topology = job.topology
        self.writer = writer.Writer(job.config.output_dir, job.topology.node, job.topology.num_nodes)
        self.report: report.Report | None = None
        self.facts = backends.Facts()
        self.load_seconds = 0.0
        saves = isinstance(job.config, EditingConfig) and job.config.save_inputs
        self.inputs = {(t.index, t.sample): edit_tasks.saved_names(t) for t in job.tasks} if saves else {}
        self.hopeless: list[tasks.Task] = []
        """What is recorded as failed without being run."""
        self.finished = False
        """The end of the run is in run.json."""
        self.began = datetime.now(UTC).isoformat(timespec="seconds")

    def run(self) -> int:
        hosts.check_address(self.topology)
        try:
            watch = Watch(self.topology, self.job.config.stall_timeout, self.stop, self._last_words)
            with watch as self.watch:
                channel = Channel(self.topology, self.job.device)
                # Only now: ranks whose agent died while they joined must not hold the folder against the next start.
                told = channel.broadcast(self._open_folder() if self.topology.is_main else None)
                if isinstance(told, DglaunchError):
                    raise told
                watch.meet(channel.attempt)
                return self._compare_and_make(channel, *told)
        finally:
            if self.report is not None:
                self.report.stop()
            self.writer.close()

    def _compare_and_make(self, channel: Channel, *told: Any) -> int:
        try:
            return self._make(channel, hosts.compare(channel, report.versions()), *told)
        except DglaunchError as error:
            if self.topology.is_main and not self.finished:
                self.writer.write_run(self._run_json({"outcome": run.end_of(error, False, 0), "error": str(error)}))
            raise

    def _open_folder(self) -> Any:
        """On rank 0: take the folder; what is pending, or the error that all ranks leave with."""
        job = self.job
        try:
            ledger = self.writer.open(job.settings, job.tasks, job.config.output_format, job.config.overwrite)
            self.writer.write_run(self._run_json({"outcome": "running", "num_total": len(job.tasks)}))
        except DglaunchError as error:
            return error
        done = [n for n, task in enumerate(job.tasks) if (task.index, task.sample) in ledger.done]
        return done, ledger.damaged, writer.out_of_memory_limits(job.config.output_dir), job.machine.memory

    def _make(
        self, channel: Channel, notes: list[str], done: list[int], damaged: int, limits: dict[str, int],
        memory: int | None,
    ) -> int:  # fmt: skip
        job = self.job
        job.machine = estimate.Machine(name=job.machine.name, memory=memory, dtype=job.machine.dtype)
        bucket_of = job.bucket_of()
        mine = plan.share_of_node(job.makeable, self.topology, bucket_of, plan.cost_of(job.checkpoint)) + job.hopeless
        finished = {(job.tasks[n].index, job.tasks[n].sample) for n in done}
        left = [task for task in mine if (task.index, task.sample) not in finished]
        pending = [task for task in left if task.error is None]
        self.hopeless = [task for task in left if task.error is not None]
        made = job.make_plan(bucket_of, pending, limits)
        if self.topology.is_main:
            self.report = report.Report(len(mine), skipped=len(mine) - len(left), console=self.console)
            self._say_plan(made, damaged, len(pending))
            for note in notes:
                self.report.note(note)
        context = backends.Context(
            config=job.config, checkpoint=job.checkpoint, topology=self.topology, channel=channel, device=job.device,
            dtype=job.machine.dtype, should_stop=lambda: self._between_steps(channel),
        )  # fmt: skip
        backend = backends.create(context) if pending else None
        if backend is not None:
            start = time.perf_counter()
            self.facts = backend.load()
            self.load_seconds = time.perf_counter() - start
            with self.watch.doing("waiting for the other ranks to load the model"):
                channel.all_of_world(None)  # all start together, so that the shares of the time mean what they say
        try:
            return self._loop(context, backend, made)
        finally:
            if backend is not None:
                backend.close()

    def _loop(self, context: backends.Context, backend: backends.Backend | None, made: plan.Plan) -> int:
        channel = context.channel
        if self.report is not None:
            self.report.begin()
            for task in self.hopeless:
                self._deliver(run.failed(task, str(task.error), context, task.content() | task.origin(), 0))
        gather = Gather(self.topology, channel, self._deliver, self.watch, threads=not self.job.config.debug)
        loop = run.Loop(context, backend, self.facts, gather, self.watch) if backend is not None else None
        mine = loop.run(made.batches[self.topology.replica]) if loop else report.LeaderReport(time.time(), 0.0)
        gather.close({"report": mine})
        outcome, error = None, gather.error
        if self.report is not None:
            leaders = {rank: told["report"] for rank, told in gather.reports.items()}
            lost = set(self.topology.leaders) - leaders.keys()
            drained = any(leader.drained for leader in leaders.values()) or bool(lost)
            error = error or next((leader.error for leader in leaders.values() if leader.error is not None), None)
            if error is None and not drained:
                error = self._unaccounted()
            outcome = self._finish(leaders, error, drained, made)
        outcome, error = channel.broadcast((outcome, error))
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

    def _deliver(self, result: writer.Result) -> None:
        assert self.report is not None
        if self.inputs and not result.failed:
            self.writer.copy_inputs(self.inputs[result.task_id])
        self.writer.write(result)
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

    def _say_plan(self, made: plan.Plan, damaged: int, pending: int) -> None:
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
            f"{pending:,} images in {made.num_batches:,} batches to make"
            + (f"; {skipped:,} are there already" if skipped else "")
            + (
                f"; without its different sizes and images it would be {made.num_batches - made.lost:,}"
                if job.edits and made.lost
                else ""
            )
        )

    def _finish(
        self, leaders: dict[int, report.LeaderReport], error: DglaunchError | None, drained: bool, made: plan.Plan
    ) -> str:
        assert self.report is not None
        summary = self.report.summary(leaders, self.load_seconds)
        summary["outcome"] = run.end_of(error, drained, self.report.counts.num_failed)
        summary["num_batches"] = made.num_batches
        self.report.table(summary, self.job.config.output_dir)
        self.finished = True
        try:
            self.writer.write_run(self._run_json(summary))
            self.writer.join_nodes(self.job.tasks)
        except OutputError as full:
            if error is None:
                raise
            self.report.note(str(full))
        if self.job.config.gallery and not drained:
            self.report.note(self._write_gallery())
        return summary["outcome"]

    def _write_gallery(self) -> str:
        """The page, or why there is none: the results are safe by now, and looking at them must not cost the run."""
        folder = self.job.config.output_dir
        try:
            from dglaunch import gallery

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
            "versions": report.versions() | self.facts.versions,
            "device": job.machine.name,
            "topology": {
                "world_size": place.world_size, "num_replicas": place.num_replicas, "replica_size": place.replica_size,
                "node": place.node, "num_nodes": place.num_nodes, "degrees": settings(place.parallel),
            },
            "command": sys.argv,
            "started": self.began,
            "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        }  # fmt: skip


# -- the plan alone -----------------------------------------------------------------------------------------------

SHOWN_REPLICAS = 16


def show_plan(config: RunConfig, origins: dict[str, str], environ: Mapping[str, str], world_size: int | None) -> int:
    """Print what a run would do: topology, shards, batches, memory and time."""
    from rich.table import Table

    job = prepare(config, origins, environ, world_size)
    if not job.topology.is_main:
        return errors.EXIT_DONE
    bucket_of = job.bucket_of()
    mine = plan.share_of_node(job.makeable, job.topology, bucket_of, plan.cost_of(job.checkpoint))
    made = job.make_plan(bucket_of, mine, writer.out_of_memory_limits(config.output_dir))
    console = Console(soft_wrap=True, highlight=False)
    console.print(
        f"{config.backend.model_name} ({job.checkpoint.pipeline_class}), {job.machine.dtype}: {job.topology.describe()}"
    )
    console.print(
        f"{made.num_tasks:,} images in {made.num_batches:,} batches; {made.lost:,} more than if {job.one_kind}"
    )
    for task in job.hopeless[:SHOWN_ERRORS]:
        console.print(f"cannot be made: {task.error}")
    if len(job.hopeless) > SHOWN_ERRORS:
        console.print(f"... and {len(job.hopeless) - SHOWN_ERRORS:,} more rows that cannot be made")
    for name, reason in job.reasons.items():
        console.print(f"{name} {reason}")
    table = Table("replica", "ranks", "images", "batches", "batch sizes")
    for number, share in enumerate(made.batches[:SHOWN_REPLICAS]):
        size = job.topology.replica_size
        ranks = f"{number * size}" if size == 1 else f"{number * size}-{number * size + size - 1}"
        sizes = [len(batch) for batch in share]
        table.add_row(str(number), ranks, str(sum(sizes)), str(len(sizes)), _sizes(sizes))
    console.print(table)
    images = made.images_by_replica
    if len(images) > SHOWN_REPLICAS:
        console.print(
            f"... {len(images) - SHOWN_REPLICAS:,} more replicas; {min(images):,} to {max(images):,} images each"
        )
    _print_estimates(console, job, made)
    return errors.EXIT_DONE


def _sizes(sizes: Sequence[int]) -> str:
    return ", ".join(f"{sizes.count(size)} of {size}" for size in sorted(set(sizes), reverse=True))


def _print_estimates(console: Console, job: Job, made: plan.Plan) -> None:
    for bucket, size in list(_by_size(made).items())[:SHOWN_SIZES]:
        height, width = job.checkpoint.size("height", bucket[0]), job.checkpoint.size("width", bucket[1])  # type: ignore[arg-type]
        memory = estimate.memory_of(
            job.checkpoint, job.config, job.topology, job.machine.dtype, height, width, bucket[5]
        )  # type: ignore[arg-type]
        if memory is None:
            console.print("memory and time: not estimated, the weights are not on this machine")
            return
        gib = 2**30
        console.print(
            f"memory a rank at {height}x{width}, batch {size.size}: about {memory.needed(size.size) / gib:.2f} GiB "
            f"({memory.weights / gib:.2f} weights + {size.size} x {memory.image / gib:.2f})"
        )
    seconds = estimate.seconds_of(job.checkpoint, job.config, job.topology, made)
    if seconds is not None:
        console.print(
            f"time: about {report.duration(seconds)} on H100s at {estimate.ASSUMED_TFLOPS:.0f} TFLOP/s each, start-up left "
            "out (arithmetic, not a measurement)"
        )


def _by_size(made: plan.Plan) -> dict[plan.Bucket, plan.BatchSize]:
    """One bucket of each output size."""
    return {bucket: made.sizes[bucket] for bucket in {bucket[:2]: bucket for bucket in made.sizes}.values()}
