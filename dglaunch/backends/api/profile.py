"""What follows before the run from what an API can do with a model: checks, sizes of requests, shares of ranks.

The requests themselves are made in backend.py with the adapters openai.py and google.py.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import date

from dglaunch.backends.api import checks
from dglaunch.backends.api.batch_api import MOST_IMAGES
from dglaunch.backends.api.batch_checks import check_batch
from dglaunch.backends.api.costs import Costs
from dglaunch.backends.api.description import Api, api_of
from dglaunch.backends.api.limits import share
from dglaunch.backends.api.models import AS_OF
from dglaunch.backends.profiles import ExpectedCost, Profile, Target
from dglaunch.config import LOCAL, RunConfig
from dglaunch.data.task import BatchSize, Bucket, Task, plain_bucket
from dglaunch.distributed.topology import Topology
from dglaunch.errors import UserError
from dglaunch.models.checkpoint import Checkpoint
from dglaunch.models.editing import EditRules
from dglaunch.models.families import OTHER
from dglaunch.system import Machine


class ApiProfile(Profile):
    """A model that runs on the servers of an API: no checkpoint, no torch, no GPU."""

    idle = LOCAL
    why_idle = "an API runs the model"
    needs_model_name = True
    mixes_rows = False
    can_replay = False
    costs_money = True
    can_tune = False

    def __init__(self, today: date | None = None) -> None:
        self.today = today if today is not None else date.today()
        """By which it is known which models have ended."""

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
        machine = Machine(name=", ".join(api.servers) or "its servers", memory=None, dtype="remote")
        reasons = _reasons(api, config, topology) | _told_of_model(api, config.backend.model_name, self.today)
        return Target(checkpoint=checkpoint, device="cpu", machine=machine, reasons=reasons)

    def as_editor(self, config: RunConfig, checkpoint: Checkpoint, model_type: str | None) -> Checkpoint:
        """Return what the API takes as a row of an edit, in the terms of an editing family. The API chooses each size that
        is not given, so there is no rule for it."""
        api = api_of(config)
        if api.model.max_images == 0:
            raise UserError(
                f"{config.backend.model_name} makes images from prompts and edits none through {api.name}. Choose a model "
                "that does: gpt-image-2 with --backend openai, gemini-3.1-flash-image with --backend google_genai."
            )
        rules = EditRules(
            name=config.backend.model_name, multi_image=True, takes_mask=True, max_aspect=api.model.max_aspect,
            reason="a request makes the samples of one row",
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
        checks.check_model(api, config.backend.model_name, self.today)
        checks.check_options(api, config)
        check_batch(api, config, topology)
        checks.check_rows(api, config, tasks)
        checks.check_max_cost(api, config, Costs(api, config), tasks, ranks)

    def buckets(self, config: RunConfig, target: Target, tasks: Sequence[Task]) -> Callable[[Task], Bucket]:
        return lambda task: replace(plain_bucket(task), row=task.index)

    def batch_size(self, config: RunConfig) -> BatchSize:
        """Return how many samples of one row go into one request."""
        if config.batch_size != "auto":
            return BatchSize(config.batch_size, "as given")
        if config.remote.max_cost is not None:
            return BatchSize(1, "--max_cost allows image by image")
        api = api_of(config)
        if api.is_own_model:
            return BatchSize(1, "each sample has its seed (--batch_size N for a server that takes a list of seeds)")
        most = api.model.images_per_request
        return BatchSize(most, f"{api.name} makes up to {most} images of a prompt at once")

    def expected_cost(self, config: RunConfig, tasks: Iterable[Task]) -> ExpectedCost | None:
        return Costs(api_of(config), config).expected(tasks)

    def cost(self, checkpoint: Checkpoint, bucket: Bucket) -> float:
        """Return 1: a rank's share is a number of images."""
        return 1.0


def _reasons(api: Api, config: RunConfig, topology: Topology) -> dict[str, str]:
    """The automatic choices, for the user to read."""
    ranks = topology.world_size * topology.num_nodes
    each = f" to each of {len(api.servers)} servers" if len(api.servers) > 1 else ""
    reasons = {"requests at a time": f"{num_workers(config, topology)} on this rank{each}, of {ranks} ranks"}
    if config.remote.api_batch:
        reasons = {"requests": f"as batch jobs of up to {MOST_IMAGES:,} images: half the price, within 24 hours"}
    if not api.max_seed:
        reasons["seed"] = f"not sent: {api.name} takes none, so the images cannot be made again alike"
    return reasons


def _told_of_model(api: Api, name: str, today: date) -> dict[str, str]:
    """One line on a model that will end, or that the table does not know."""
    if not api.is_known and not api.servers:
        return {"model": f"{name} is not in dglaunch's table of {AS_OF:%d %B %Y}: all is sent as it is given"}
    if api.ends is not None and today < api.ends:
        return {"model": f"{name} ends on {api.ends:%d %B %Y}; its successor is {api.model.successor}"}
    return {}


def num_workers(config: RunConfig, topology: Topology) -> int:
    """Return how many requests this rank may have under way at a time, at each server."""
    remote = config.remote
    if remote.max_global_workers is None:
        return remote.num_processes
    return min(remote.num_processes, share(remote.max_global_workers, *rank_of_all(topology)))


def rank_of_all(topology: Topology) -> tuple[int, int]:
    """Return this rank and the number of ranks, those of other nodes without a rendezvous included."""
    return topology.node * topology.world_size + topology.rank, topology.world_size * topology.num_nodes
