"""What an API can do with a model, and what follows from it before the run: checks, sizes of requests, shares of ranks.

The requests themselves are made in backend.py with the adapters openai.py and google.py.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from dglaunch.backends.api.limits import share
from dglaunch.backends.profiles import Profile, Target
from dglaunch.backends.registry import backend_factory
from dglaunch.config import LOCAL, RunConfig
from dglaunch.data.task import ROW_FIELDS, BatchSize, Bucket, Task, plain_bucket
from dglaunch.distributed.topology import Topology
from dglaunch.errors import UserError
from dglaunch.models.checkpoint import Checkpoint
from dglaunch.models.editing import EditRules
from dglaunch.models.families import OTHER
from dglaunch.system import Machine


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """What one API can do with one model; known without a connection."""

    name: str
    package: str
    keys: tuple[str, ...]
    """Variables that may hold the key, the first one that is set counts."""
    fields: frozenset[str]
    """What of ROW_FIELDS can be sent."""
    images_per_request: int
    max_images: int | None = None
    """Input images of an edit at the most; 0: it edits none; None: only the server knows."""
    image_formats: frozenset[str] = frozenset({"PNG", "JPEG", "WEBP"})
    """Pillow's names of what it takes as input images; others are sent as one of these."""
    max_image_bytes: int | None = None
    """Of one input image."""
    max_aspect: float = math.inf
    """Of an input image."""
    size: Callable[[int, int], str | dict[str, str]] = field(repr=False)
    """Width and height to what the API calls them; a ValueError lists the sizes that it has."""
    max_seed: int = 0


def api_of(config: RunConfig) -> Api:
    """Return what the API of --backend can do with --model_name."""
    adapter = backend_factory(config.backend.backend)
    api: Api = adapter.describe(config.backend.model_name)  # type: ignore[attr-defined]  # adapters have it, Backend not
    return api


class ApiProfile(Profile):
    """A model that runs on the servers of an API: no checkpoint, no torch, no GPU."""

    idle = LOCAL
    why_idle = "an API runs the model"
    needs_model_name = True
    mixes_rows = False
    can_replay = False
    can_tune = False

    def resolve(self, config: RunConfig, topology: Topology, elsewhere: Machine | None = None) -> Target:
        api = api_of(config)
        checkpoint = Checkpoint(
            source=config.backend.model_name,
            pipeline_class=api.name,
            family=replace(OTHER, size_multiple=1, batch=False),  # a request makes samples of one row
            defaults={},
            transformer={},
            local=False,
        )
        machine = Machine(name=config.remote.api_base or "its servers", memory=None, dtype="remote")
        return Target(checkpoint=checkpoint, device="cpu", machine=machine, reasons=_reasons(api, config, topology))

    def as_editor(self, config: RunConfig, checkpoint: Checkpoint, model_type: str | None) -> Checkpoint:
        """Return what the API takes as a row of an edit, in the terms of an editing family. The API chooses each size that
        is not given, so there is no rule for it."""
        api = api_of(config)
        if api.max_images == 0:
            raise UserError(
                f"{config.backend.model_name} makes images from prompts and edits none through {api.name}. Choose a model "
                "that does: gpt-image-2 with --backend openai, gemini-2.5-flash-image with --backend google_genai."
            )
        rules = EditRules(
            name=config.backend.model_name, multi_image=api.max_images != 1, max_images=api.max_images,
            max_aspect=api.max_aspect, reason="a request makes the samples of one row",
            input_shape=lambda shape, _defaults: shape, input_text="its own", output_text="the API chooses",
        )  # fmt: skip
        return replace(checkpoint, family=replace(checkpoint.family, edit=rules))

    def check(self, config: RunConfig, target: Target, topology: Topology, tasks: Sequence[Task]) -> None:
        api, ranks = api_of(config), topology.world_size * topology.num_nodes
        workers = config.remote.max_global_workers
        if workers is not None and workers < ranks:
            raise UserError(
                f"--max_global_workers {workers} with {ranks} ranks: each needs at least one request at a time. Start "
                f"{workers} ranks, or allow {ranks}."
            )
        if config.batch_size != "auto" and config.batch_size > api.images_per_request:
            raise UserError(
                f"--batch_size {config.batch_size}: {api.name} makes at most {api.images_per_request} images of one prompt "
                "in a request. Leave the flag out."
            )
        for size in dict.fromkeys((task.width, task.height) for task in tasks):
            _check_size(api, *size)
        for task in tasks:
            _check_fields(api, task)

    def buckets(self, config: RunConfig, target: Target, tasks: Sequence[Task]) -> Callable[[Task], Bucket]:
        return lambda task: replace(plain_bucket(task), row=task.index)

    def batch_size(self, config: RunConfig) -> BatchSize:
        """Return how many samples of one row go into one request."""
        if config.batch_size != "auto":
            return BatchSize(config.batch_size, "as given")
        api = api_of(config)
        return BatchSize(
            api.images_per_request, f"{api.name} makes up to {api.images_per_request} images of a prompt at once"
        )

    def cost(self, checkpoint: Checkpoint, bucket: Bucket) -> float:
        """Return 1: a rank's share is a number of images."""
        return 1.0


def _check_size(api: Api, width: int | None, height: int | None) -> None:
    if (width is None) != (height is None):
        raise UserError(f"{api.name} takes width and height together; give both --width and --height, or neither.")
    if width is not None and height is not None:
        try:
            api.size(width, height)
        except ValueError as error:
            raise UserError(f"{width}x{height} is no size of {api.name}. {error}") from None


def _check_fields(api: Api, task: Task) -> None:
    for name in ROW_FIELDS:
        value = getattr(task, name)
        if name != "seed" and value is not None and name not in api.fields:
            raise UserError(
                f"Row {task.index} has {name} {value!r}, but {api.name} takes no {name}. Remove it (the column, or --{name})."
            )
    if api.max_seed and task.seed > api.max_seed:
        raise UserError(f"Row {task.index} has the seed {task.seed}; {api.name} takes seeds up to {api.max_seed}.")


def _reasons(api: Api, config: RunConfig, topology: Topology) -> dict[str, str]:
    """The automatic choices, for the user to read."""
    ranks = topology.world_size * topology.num_nodes
    reasons = {"requests at a time": f"{num_workers(config, topology)} on this rank, of {ranks} ranks"}
    if not api.max_seed:
        reasons["seed"] = f"not sent: {api.name} takes none, so the images cannot be made again alike"
    return reasons


def num_workers(config: RunConfig, topology: Topology) -> int:
    """Return how many requests this rank may have under way at a time."""
    remote = config.remote
    if remote.max_global_workers is None:
        return remote.num_processes
    return min(remote.num_processes, share(remote.max_global_workers, *rank_of_all(topology)))


def rank_of_all(topology: Topology) -> tuple[int, int]:
    """Return this rank and the number of ranks, those of other nodes without a rendezvous included."""
    return topology.node * topology.world_size + topology.rank, topology.world_size * topology.num_nodes


def key_of(api: Api, environ: Mapping[str, str]) -> str:
    """Return the key, which comes from the environment only.

    Raises:
        UserError: there is none, or it cannot be one.
    """
    key = next((environ[name].strip() for name in api.keys if environ.get(name, "").strip()), None)
    names = " or ".join(api.keys)
    if key is None:
        raise UserError(f"{api.name} needs a key: set {names} in the environment.")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UserError(
            f"The key in {names} has a character that no key has (a space, a line break, a quote?). Set it again."
        )
    return key
