"""What an API can do with a model, and what follows from it before the run: checks, sizes of requests, shares of ranks.

The requests themselves are made by remote_engine and the adapters, remote_openai and remote_google.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dglaunch.backends.api.limits import share
from dglaunch.backends.registry import engine
from dglaunch.config import RunConfig
from dglaunch.data.task import ROW_FIELDS, Bucket, Task
from dglaunch.distributed.topology import Topology
from dglaunch.errors import UserError
from dglaunch.models.editing import ModelConfig
from dglaunch.planning.batches import BatchSize


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
    size: Callable[[int, int], Any] = field(repr=False)
    """Width and height to what the API calls them; a ValueError lists the sizes that it has."""
    max_seed: int = 0


def api_of(config: RunConfig) -> Api:
    return engine(config).describe(config.backend.model_name)


def editor_of(config: RunConfig) -> ModelConfig:
    """What an API takes as a row of an edit, in the terms of an editing family. The API chooses each size that is not
    given, so there is no rule for it.

    Raises:
        UserError: it does not edit.
    """
    api = api_of(config)
    if api.max_images == 0:
        raise UserError(
            f"{config.backend.model_name} makes images from prompts and edits none through {api.name}. Choose a model that "
            "does: gpt-image-2 with --backend openai, gemini-2.5-flash-image with --backend google_genai."
        )
    return ModelConfig(
        name=config.backend.model_name, multi_image=api.max_images != 1, max_images=api.max_images,
        max_aspect=api.max_aspect, reason="a request makes the samples of one row", input_size=lambda size, _: size,
        input_text="its own", output_text="the API chooses",
    )  # fmt: skip


def check(config: RunConfig, topology: Topology, tasks: Sequence[Task]) -> None:
    """Raise a UserError for what the API cannot do, before anything is sent."""
    api, remote = api_of(config), config.remote
    ranks = topology.world_size * topology.num_nodes
    if remote.max_global_workers is not None and remote.max_global_workers < ranks:
        raise UserError(
            f"--max_global_workers {remote.max_global_workers} with {ranks} ranks: each needs at least one request at a "
            f"time. Start {remote.max_global_workers} ranks, or allow {ranks}."
        )
    if config.batch_size != "auto" and config.batch_size > api.images_per_request:
        raise UserError(
            f"--batch_size {config.batch_size}: {api.name} makes at most {api.images_per_request} images of one prompt in a "
            "request. Leave the flag out."
        )
    for size in dict.fromkeys((task.width, task.height) for task in tasks):
        _check_size(api, *size)
    for task in tasks:
        _check_fields(api, task)


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


def request_size(config: RunConfig) -> Callable[[Bucket], BatchSize]:
    """How many samples of one row go into one request."""
    api = api_of(config)
    auto = BatchSize(
        api.images_per_request, f"{api.name} makes up to {api.images_per_request} images of a prompt at once"
    )
    size = auto if config.batch_size == "auto" else BatchSize(config.batch_size, "as given")
    return lambda _bucket: size


def reasons(config: RunConfig, topology: Topology) -> dict[str, str]:
    """The automatic choices, for the user to read."""
    api, workers = api_of(config), num_workers(config, topology)
    told = {"requests at a time": f"{workers} on this rank, of {topology.world_size * topology.num_nodes} ranks"}
    if not api.max_seed:
        told["seed"] = f"not sent: {api.name} takes none, so the images cannot be made again alike"
    return told


def num_workers(config: RunConfig, topology: Topology) -> int:
    """Requests at a time of this rank."""
    remote = config.remote
    if remote.max_global_workers is None:
        return remote.num_processes
    return min(remote.num_processes, share(remote.max_global_workers, *place_of(topology)))


def place_of(topology: Topology) -> tuple[int, int]:
    """This rank among all ranks of the run, those of other nodes included."""
    return topology.node * topology.world_size + topology.rank, topology.world_size * topology.num_nodes


def key_of(api: Api, environ: Mapping[str, str]) -> str:
    """The key, from the environment only."""
    key = next((environ[name].strip() for name in api.keys if environ.get(name, "").strip()), None)
    names = " or ".join(api.keys)
    if key is None:
        raise UserError(f"{api.name} needs a key: set {names} in the environment.")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UserError(
            f"The key in {names} has a character that no key has (a space, a line break, a quote?). Set it again."
        )
    return key
