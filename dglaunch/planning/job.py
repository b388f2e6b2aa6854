"""From a configuration to a Job: all that can be read and checked before anything is written or loaded."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dglaunch.backends.api import profile
from dglaunch.backends.profiles import bucket_of
from dglaunch.config import (
    EditingConfig,
    RunConfig,
    T2IConfig,
    check_flags_of_backend,
    settings,
)
from dglaunch.data import edits as edit_tasks
from dglaunch.data import evaluations
from dglaunch.data import prompts as tasks
from dglaunch.data.task import Bucket, Task
from dglaunch.distributed import topology
from dglaunch.distributed.topology import Topology
from dglaunch.environment import parallel_from_environment
from dglaunch.errors import UserError
from dglaunch.models import editing, optimizations
from dglaunch.models.checkpoint import Checkpoint, resolve, token_lengths
from dglaunch.models.families import OTHER
from dglaunch.planning import batches, checks, estimate
from dglaunch.system import Machine, host_memory, need

IMAGE_SETTINGS = (
    "model_name", "revision", "max_sequence_length", "enable_vae_tiling", "cache_type", "output_format",
)  # fmt: skip
"""Flags that change the images or their names: a run with others is another job. optimisations.DESCRIBED adds its own."""
SHOWN_SIZES = 8
"""Of a table with hundreds of image sizes, those whose batch size is explained."""


@dataclass(slots=True, kw_only=True)
class Job:
    """All that is known before anything is written or loaded."""

    config: RunConfig
    origins: dict[str, str]
    topology: Topology
    checkpoint: Checkpoint
    tasks: list[Task]
    device: str
    machine: Machine
    reasons: dict[str, str] = field(default_factory=dict)
    """Every automatic choice, and why."""

    @property
    def settings(self) -> dict[str, Any]:
        """What must not change between two starts on one folder."""
        flat = settings(self.config)
        chosen: dict[str, Any] = {name: flat[name] for name in IMAGE_SETTINGS}
        chosen |= optimizations.image_settings(self.config.optimization)
        kind = self.config.backend.backend
        stands_alone = kind == "fake" or self.config.backend.is_remote
        edits = {"editing_pipeline": self.checkpoint.pipeline_class} if self.edits else {}
        return chosen | {"torch_dtype": self.machine.dtype} | ({"backend": kind} if stands_alone else {}) | edits

    @property
    def edits(self) -> bool:
        return isinstance(self.config, EditingConfig)

    @property
    def makeable(self) -> list[Task]:
        """The tasks with no error that was found while reading them."""
        return [task for task in self.tasks if task.error is None]

    @property
    def hopeless(self) -> list[Task]:
        """The others: told and recorded, never run. Of several nodes without a rendezvous the first one has them."""
        return [task for task in self.tasks if task.error is not None and self.topology.node == 0]

    def bucket_of(self) -> Callable[[Task], Bucket]:
        """What must be equal in a batch; for some families under xDiT, or with an attention kernel that takes no mask, also
        the number of tokens."""
        if self.config.backend.is_remote:  # a request makes samples of one row
            return lambda task: (*batches.default_bucket(task), task.index)
        base = bucket_of(self.checkpoint) if self.edits else batches.default_bucket
        unit = self.checkpoint.family.text_bucket
        masks = self.config.backend.backend != "xdit" and (
            self.config.optimization.attention_backend not in optimizations.WITHOUT_MASK
        )
        if masks or not unit:
            return base
        texts = sorted({t.prompt for t in self.tasks} | {t.negative_prompt or "" for t in self.tasks})
        lengths = dict(zip(texts, token_lengths(self.checkpoint, texts)))

        def bucket(task: Task) -> Bucket:
            tokens = (lengths[task.prompt], lengths[task.negative_prompt or ""])
            return (*base(task), *(-(-count // unit) for count in tokens))

        return bucket

    @property
    def one_kind(self) -> str:
        """The condition under which no batch would be lost."""
        return "all rows had one size and the same input images" if self.edits else "all images had one shape"

    def make_plan(
        self,
        bucket_of: Callable[[Task], Bucket],
        pending: Sequence[Task],
        limits: dict[str, int],
        tuned: Mapping[str, batches.BatchSize],
    ) -> batches.Plan:
        choose = (
            profile.request_size(self.config)
            if self.config.backend.is_remote
            else estimate.chooser(self.checkpoint, self.config, self.topology, self.machine, limits, tuned)
        )
        made = batches.build(pending, self.topology.num_replicas, choose, bucket_of, self.cost)
        self.reasons |= _size_reasons(self.checkpoint, made)
        if self.config.backend.is_remote:
            made.lost = 0  # other rows would not make its requests fewer
        return made

    @property
    def cost(self) -> Callable[[Bucket], float]:
        """Relative cost of an image of a bucket. Those of an API count alike: a rank's share is a number of images."""
        return (lambda _: 1.0) if self.config.backend.is_remote else batches.cost_of(self.checkpoint)


def _size_reasons(checkpoint: Checkpoint, made: batches.Plan) -> dict[str, str]:
    """Why the images of each size come in such batches; a table of photographs may have hundreds of sizes."""
    reasons: dict[str, str] = {}
    for bucket, size in made.sizes.items():
        shape = f"{checkpoint.size('height', bucket[0])}x{checkpoint.size('width', bucket[1])}"  # type: ignore[arg-type]
        reasons[f"batch_size {shape}"] = f"{size.size}: {size.reason}"
    if not checkpoint.family.batch:
        return dict(zip(["batch_size"], reasons.values()))
    more = len(reasons) - SHOWN_SIZES
    return dict(list(reasons.items())[:SHOWN_SIZES]) | ({"batch_size": f"for {more:,} more sizes"} if more > 0 else {})


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
    if config.layout == "parquet":
        need("pyarrow", "--layout parquet", "pip install 'dglaunch[parquet]'")
    checkpoint, all_tasks = _read(config, stand_ins[0] if stand_ins else resolve(config.backend))
    evaluations.check(config, all_tasks)
    device, machine, reasons = ("cpu", *stand_ins[1:]) if stand_ins else _machine(config, place)
    job = Job(
        config=config, origins=origins, topology=place, checkpoint=checkpoint, tasks=all_tasks, device=device,
        machine=machine, reasons=reasons,
    )  # fmt: skip
    checks.check(checkpoint, config, place, job.makeable, device)
    return job


def _stand_ins(config: RunConfig, place: Topology) -> tuple[Checkpoint, Machine, dict[str, str]] | None:
    """In place of a checkpoint and a device, for the backends that have none here. torch is not needed then."""
    name, any_size = config.backend.backend, replace(OTHER, size_multiple=1)
    if name == "fake":
        checkpoint = Checkpoint(
            "fake", "fake", any_size, {"height": 64, "width": 64, "edit": {"_auto_resize": False}}, {}, False
        )
        return checkpoint, Machine(name="fake", memory=None, dtype="float32"), {}
    if config.backend.is_remote:
        per_row = replace(any_size, batch=False)  # a request makes samples of one row
        checkpoint = Checkpoint(config.backend.model_name, profile.api_of(config).name, per_row, {}, {}, False)
        machine = Machine(name=config.remote.api_base or "its servers", memory=None, dtype="remote")
        return checkpoint, machine, profile.reasons(config, place)
    return None


def _read(config: RunConfig, checkpoint: Checkpoint) -> tuple[Checkpoint, list[Task]]:
    """The tasks of either command, and the checkpoint as that command uses it."""
    if isinstance(config, EditingConfig):
        if config.backend.is_remote:
            return checkpoint, edit_tasks.read_edits(config, checkpoint, profile.editor_of(config))
        editor = editing.as_editor(checkpoint, config.model_type)
        return editor, edit_tasks.read_edits(config, editor, editing.STRATEGIES[editor.pipeline_class])
    assert isinstance(config, T2IConfig)
    if checkpoint.family.only_edits:
        raise UserError(
            f"{checkpoint.source} is a {checkpoint.pipeline_class}, which edits images: dglaunch edit --input TABLE."
        )
    return checkpoint, tasks.read_prompts(config, checkpoint.family.size_multiple)


def _machine(config: RunConfig, place: Topology) -> tuple[str, Machine, dict[str, str]]:
    """Device and type of the weights, chosen where they were not given."""
    need("torch", "Running a model", "pip install torch")
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
        return device, Machine(name=properties.name, memory=properties.total_memory, dtype=dtype), reasons
    if place.world_size > 1 and not place.distributed:
        return device, Machine(name="CPU", memory=None, dtype=dtype), reasons  # a plan for other machines
    return (
        device,
        Machine(name="CPU", memory=host_memory() // max(place.local_world_size, 1), dtype=dtype),
        reasons,
    )
