"""From a configuration to a Job: all that can be read and checked before anything is written or loaded.

job = prepare(config, origins, environ)         # every mistake of the user's is raised here
schedule = job.schedule(done=(), limits={}, tuned={}, memory=job.machine.memory)
schedule.plan.batches[topology.replica]         # what this replica computes, in this order
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial, singledispatch

from dglaunch.backends.profiles import ExpectedCost, Profile, Target, profile_of
from dglaunch.backends.rewriting.base import check_model
from dglaunch.config import IDENTITY, IMAGE, EditingConfig, RunConfig, T2IConfig, flags_that, settings, settings_that
from dglaunch.data import evaluations
from dglaunch.data.columns import Columns, Past
from dglaunch.data.edits import checks_of_edits, read_edits
from dglaunch.data.many import ManyTasks, kinds_of, without
from dglaunch.data.prompt_inputs import CHECKS, InputReader
from dglaunch.data.prompts import checks_of_fields, read_prompts
from dglaunch.data.rewriting import Rewriting, check_given, rewriting_of
from dglaunch.data.task import BatchSize, Bucket, Task
from dglaunch.data.values import Check
from dglaunch.distributed import topology as topologies
from dglaunch.distributed.topology import Topology
from dglaunch.environment import parallel_from_environment
from dglaunch.errors import UserError
from dglaunch.models.checkpoint import Checkpoint
from dglaunch.models.lora import read_loras
from dglaunch.models.optimizations import image_settings
from dglaunch.models.schedulers import chosen
from dglaunch.models.shape import Shape
from dglaunch.output.image_folders import ImageFolders
from dglaunch.output.shards import SHARDS
from dglaunch.planning import checks, continued
from dglaunch.planning.batches import Plan, build, share_of_node
from dglaunch.planning.estimate import FiguresOf, chooser
from dglaunch.planning.far_output import most_lost, with_working_folder
from dglaunch.planning.idle import idle_flags, idle_loras, settle
from dglaunch.planning.image_folders import image_folders_of, placed
from dglaunch.planning.node_table import rows_in_columns
from dglaunch.planning.past import past_of
from dglaunch.planning.photos import photo_list
from dglaunch.planning.pipe import Piped, piped_table
from dglaunch.planning.redo import Redo
from dglaunch.storage.local import fetch_for
from dglaunch.storage.working import address_of
from dglaunch.system import Machine

SHOWN_SIZES = 8
"""Of a table with hundreds of image sizes, those whose batch size is explained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """What one start of a job has to do, and how it is shared out; `dglaunch plan` prints it, the run executes it."""

    total: int
    """Tasks that are this node's."""
    unmakeable: list[Task]
    """Those of them that carry an error and are not recorded yet: reported and recorded, never run."""
    plan: Plan
    num_extra_batches: int
    """Forward passes beyond those that one kind of rows would take."""
    reasons: dict[str, str]
    """Every automatic choice, and why."""
    bucket_of: Callable[[Task], Bucket]
    """What is equal in a batch: for some families it has counted the tokens of all prompts."""
    cost: ExpectedCost | None = None
    """What the images to be made cost in money; None: nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """All that is known before anything is written or loaded. It does not change afterwards."""

    config: RunConfig
    origins: Mapping[str, str] = field(default_factory=dict)
    """For each flag where its value came from: flag, default, or the name of a variable."""
    topology: Topology
    profile: Profile
    """What the backend says without torch."""
    target: Target
    """The checkpoint and the device."""
    tasks: Sequence[Task]
    columns: Columns
    """What the columns of its table were taken for."""
    piped: Piped | None = None
    """The table, where it came out of a pipe, or the list of photographs that stands for it."""
    redo: Redo | None = None
    """Which of the tasks are made anew, and how; None: what is missing is made."""
    rewriting: Rewriting | None = None
    """How the prompts are rewritten before the images are made; None: they are not."""
    image_folders: ImageFolders | None = None
    """How the images are shared out among folders; None: they lie in one."""

    @property
    def checkpoint(self) -> Checkpoint:
        return self.target.checkpoint

    @property
    def device(self) -> str:
        """cuda or cpu."""
        return self.target.device

    @property
    def machine(self) -> Machine:
        return self.target.machine

    @property
    def settings(self) -> dict[str, object]:
        """What must not change between two starts on one folder."""
        flat = settings(self.config)
        identity = {name: flat[name] for name in flags_that(IDENTITY, type(self.config))}
        identity |= image_settings(self.config.optimization) | settings_that(IMAGE, self.config.remote)
        scheduler = chosen(self.config.backend, self.checkpoint)
        identity |= self.checkpoint.weights_identity | (scheduler.identity if scheduler is not None else {})
        identity["torch_dtype"] = self.machine.dtype
        if self.rewriting is not None:
            identity["rewriting"] = self.rewriting.identity
        if self.config.store != "files":  # nothing is said of it in folders of before
            identity["store"] = self.config.store
        if self.profile.is_identity:
            identity["backend"] = self.config.backend.backend
        if self.config.edits:
            identity["editing_pipeline"] = self.checkpoint.pipeline_class
        return identity

    def anew(self, numbers: Sequence[int], token: str) -> "Job":
        """Return the job of those of its tasks that are made anew, as they are made.

        Raises:
            UserError: what is to be changed about them does not hold.
        """
        assert self.redo is not None, "a redo"
        tasks = self.redo.applied([self.tasks[number] for number in numbers], token, self._checks_of_fields())
        job, changed = replace(self, tasks=tasks), {task.id: task for task in tasks}
        self.profile.check(self.config, self.target, self.topology, job.makeable)
        evaluations.check(self.config, [changed.get(task.id, task) for task in self.tasks])
        return job

    def _checks_of_fields(self) -> dict[str, Check]:
        """What looks at the values that may be set for a row."""
        checkpoint = self.checkpoint
        found = checks_of_fields(checkpoint.family.size_multiple, self.config.output_format, checkpoint.loras)
        found |= {name: check for name, check in CHECKS.items() if name in self.columns.names}
        return found | (checks_of_edits(self.checkpoint) if self.config.edits else {})

    @property
    def makeable(self) -> Sequence[Task]:
        """The tasks with no error that was found while reading them."""
        if isinstance(self.tasks, ManyTasks):
            return self.tasks.makeable
        return [task for task in self.tasks if task.error is None]

    @property
    def unmakeable(self) -> list[Task]:
        """The others. Of several nodes without a rendezvous the first one has them."""
        if self.topology.node != 0:
            return []
        some = self.tasks.unmakeable if isinstance(self.tasks, ManyTasks) else self.tasks
        return [task for task in some if task.error is not None]

    def schedule(
        self,
        done: Collection[tuple[int, int]],
        limits: Mapping[Shape, int],
        tuned: Mapping[Shape, BatchSize],
        memory: int | None,
        parameters: Mapping[str, int] | None = None,
        figures: FiguresOf = lambda _: None,
    ) -> Schedule:
        """Share out what is left to do. A pure function of the job and these, so that every rank gets the same.

        Args:
            done: ids of the tasks whose image is there.
            limits: largest batch that did not run out of memory, by shape.
            tuned: what `dglaunch tune` measured, by shape.
            memory: bytes of a rank's device (rank 0's, so that all ranks plan alike); None if unknown.
            parameters: number of weights by component, as rank 0 found it; None: as this process does.
            figures: memory and work of a bucket's batches, as rank 0 found them; without them there are formulas.
        """
        bucket_of = self.profile.buckets(self.config, self.target, self.tasks)
        machine = replace(self.machine, memory=memory)
        checkpoint = self.checkpoint if parameters is None else replace(self.checkpoint, counted=parameters)
        choose = chooser(self.profile, checkpoint, self.config, self.topology, machine, limits, tuned, figures)

        def cost(bucket: Bucket) -> float:
            return self.profile.cost(self.checkpoint, bucket)

        mine = share_of_node(self.makeable, self.topology, bucket_of, cost)
        pending = without(mine, done)
        if self.config.shuffle_seed is not None:
            from dglaunch.data.sampling import shuffled  # which imports numpy

            pending = shuffled(pending, self.config.shuffle_seed, self.columns.num_points)
        plan = build(pending, self.topology.num_replicas, choose, bucket_of, cost)
        price = self.profile.expected_cost(self.config, pending)
        in_words = {"cost": price.words} if price is not None and pending else {}
        if self.config.shuffle_seed is not None:
            in_words["order"] = f"of the rows drawn from --shuffle_seed {self.config.shuffle_seed}"
        return Schedule(
            total=len(mine) + len(self.unmakeable),
            unmakeable=[task for task in self.unmakeable if task.id not in done],
            plan=plan,
            num_extra_batches=plan.num_extra_batches if self.profile.mixes_rows else 0,
            reasons=self.target.reasons | _size_reasons(self.checkpoint, plan) | in_words,
            bucket_of=bucket_of,
            cost=price,
        )


def _size_reasons(checkpoint: Checkpoint, plan: Plan) -> dict[str, str]:
    """Why the images of each size come in such batches; a table of photographs may have hundreds of sizes."""
    reasons = {
        f"batch_size {checkpoint.shape(bucket.height, bucket.width)}": f"{size.size}: {size.reason}"
        for bucket, size in plan.sizes.items()
    }
    if not checkpoint.family.batch:
        return {"batch_size": next(iter(reasons.values()))} if reasons else {}
    shown = dict(list(reasons.items())[:SHOWN_SIZES])
    if len(reasons) > SHOWN_SIZES:
        shown["batch_size"] = f"for {len(reasons) - SHOWN_SIZES:,} more sizes"
    return shown


def prepare(
    config: RunConfig,
    origins: Mapping[str, str],
    environ: Mapping[str, str],
    world_size: int | None = None,
    elsewhere: Machine | None = None,
    assumed: Machine | None = None,
    only_planned: bool = False,
    redo: Redo | None = None,
    excused: Collection[str] = (),
) -> Job:
    """Read and check everything that can be checked without loading a model.

    Args:
        origins: for each flag where its value came from.
        world_size: ranks to plan for, in place of those that there are.
        elsewhere: the GPU to plan for, in place of this machine's.
        assumed: the same where none was asked for and neither the model nor a GPU is on this machine: another one is meant.
        only_planned: nothing will be run, so that the model's files need not be at hand if dglaunch's catalog knows it.
        redo: the job has been run before, and some of its images are made anew.
        excused: names of values that may do nothing, as the image that is made again had them.

    Raises:
        UserError: with the remedy.
    """
    fetch_for(config.tables, config.backend.cache_dir)
    config = replace(config, num_images_per_prompt=evaluations.num_images_per_prompt(config))
    profile = profile_of(config.backend.backend)
    checks.check_flags_of_backend(config, profile, origins)
    topology = topologies.from_environment(config, parallel_from_environment(environ), environ, world_size)
    config = with_working_folder(config, topology, only_planned)
    rewriting = rewriting_of(config)
    topology = replace(topology, restarted=continued.goes_on(config, topology) or redo is not None)
    checks.check_debug(config, topology, planned=world_size is not None)
    checks.check_store(config, origins)
    checks.check_elsewhere(config, profile, elsewhere)
    target = profile.resolve(config, topology, elsewhere)
    if assumed is not None and elsewhere is None and _is_elsewhere(config, profile, target):
        target = profile.resolve(config, topology, assumed)
    if target.checkpoint.not_here is not None and not only_planned:
        raise target.checkpoint.not_here
    target = _with_loras(config, target, profile)
    piped = photo_list(config, topology) or piped_table(config, topology)
    columns = Columns(config, partial(past_of, config, topology))
    reading = _Reading(profile, target.checkpoint, columns, None if piped is None else piped.data, topology)
    checkpoint, tasks = _read(config, reading)
    evaluations.check(config, tasks)
    image_folders = image_folders_of(config, topology, len(tasks))
    tasks = placed(tasks, image_folders)
    reasons = (
        target.reasons
        | (piped.reasons if piped else {})
        | _store_reason(config, profile)
        | _column_reasons(columns, has_table=bool(config.tables) and not (config.edits and piped))
    )
    if rewriting is not None:
        check_model(rewriting)
        check_given(rewriting, tasks)
        checks.check_rewriting(rewriting, topology)
        reasons["rewriting"] = _rewriting_reason(rewriting, tasks)
    target = replace(target, checkpoint=checkpoint, reasons=reasons)
    job = Job(
        config=config, origins=origins, topology=topology, profile=profile, target=target, tasks=tasks, columns=columns,
        piped=piped, redo=redo, rewriting=rewriting, image_folders=image_folders,
    )  # fmt: skip
    idle = [
        *idle_flags(config, origins, profile, tasks, columns.num_points),
        *idle_loras(config, target.checkpoint.loras, tasks),
        *profile.idle_values(config, target, kinds_of(job.makeable)),
    ]
    goes_on = any(each.remedy for each in idle) and columns.past is not Past.NEW
    told = settle(idle, None if goes_on else excused)
    profile.check(config, target, topology, job.makeable)
    if not only_planned:
        profile.check_code(config, target)
    return replace(job, target=replace(target, reasons=target.reasons | told))


def _with_loras(config: RunConfig, target: Target, profile: Profile) -> Target:
    """The checkpoint with what --lora puts over it.

    Raises:
        UserError: a file is missing or wrong; all of them are named.
    """
    loras = read_loras(config.backend.lora)
    if not loras:
        return target
    found = replace(target, checkpoint=replace(target.checkpoint, loras=loras))
    rows = {"rows with different LoRAs": profile.lora_reason(config, found)}
    return replace(found, reasons=target.reasons | loras.reasons | rows)


def _is_elsewhere(config: RunConfig, profile: Profile, target: Target) -> bool:
    """Whether neither the model nor a GPU is on this machine."""
    nothing_here = not target.checkpoint.local and target.device == "cpu"
    return profile.has_estimates and nothing_here and config.backend.device is None


def _store_reason(config: RunConfig, profile: Profile) -> dict[str, str]:
    """Where the images go, if not into a file each."""
    if config.store == "files":
        return {}
    where = f"{config.store}: shards of up to {config.shard_size:,} MB in {config.output_dir}/{SHARDS}"
    return {"store": f"{where}; {most_lost(profile.costs_money)}" if address_of(config.output_dir) else where}


def _rewriting_reason(rewriting: Rewriting, tasks: Sequence[Task]) -> str:
    """What will be rewritten before the images are made."""
    asks = {rewriting.ask(task) for task in tasks}
    there = len(asks & rewriting.known(()).keys()) if rewriting.model is not None else 0
    how = "" if rewriting.model is None else ", greedy" if not rewriting.temperature else ", drawn by each image's seed"
    known = f"; {there:,} of them are in {rewriting.given}" if there else ""
    several = "s" if len(asks) != 1 else ""
    return f"of {len(asks):,} different prompt{several} {rewriting.where}{how}{known}"


def _column_reasons(columns: Columns, has_table: bool) -> dict[str, str]:
    """What the columns of a table were taken for, in one line, and how many rows a grid makes of each."""
    found = {"columns": columns.summary} if has_table else {}
    if columns.axes:
        axes = " x ".join(f"{len(values)} of {name}" for name, values in columns.axes.items())
        found["grid"] = f"{columns.num_points} images of each: {axes}"
    return found | columns.told


@dataclass(frozen=True, slots=True)
class _Reading:
    """What the table of a command is read with."""

    profile: Profile
    checkpoint: Checkpoint
    columns: Columns
    piped: bytes | None
    """What came through a pipe."""
    topology: Topology


@singledispatch
def _read(config: RunConfig, given: _Reading) -> tuple[Checkpoint, Sequence[Task]]:
    """The checkpoint as the command uses it, and the command's tasks."""
    raise TypeError(f"{type(config).__name__} is the configuration of no command")


@_read.register
def _(config: T2IConfig, given: _Reading) -> tuple[Checkpoint, Sequence[Task]]:
    checkpoint = given.checkpoint
    if checkpoint.family.only_edits:
        raise UserError(
            f"{checkpoint.source} is a {checkpoint.pipeline_class}, which edits images: dglaunch edit --input TABLE."
        )
    reader_of = partial(InputReader, checkpoint=checkpoint) if config.takes_inputs else None
    multiple = checkpoint.family.size_multiple
    large = rows_in_columns(given.topology)
    return checkpoint, read_prompts(config, multiple, given.piped, given.columns, checkpoint.loras, reader_of, large)


@_read.register
def _(config: EditingConfig, given: _Reading) -> tuple[Checkpoint, Sequence[Task]]:
    editor = given.profile.as_editor(config, given.checkpoint, config.model_type)
    return editor, read_edits(config, editor, given.columns, given.piped, rows_in_columns(given.topology))
