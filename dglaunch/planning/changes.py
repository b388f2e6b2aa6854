"""Other flags that a job might have: whatever `plan` advises is checked here by the rules that a run is checked by.

changed(job, Change(optimization={"enable_compile": True}))           # a UserError says why a run would be refused
Change(backend={"shard": "tensor"}, parallel=ParallelConfig(shard_degree=4)).words        # "DG_SHARD_DEGREE=4 --shard tensor"
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from itertools import product
from typing import Any

from dglaunch.backends.profiles import profile_of
from dglaunch.config import ParallelConfig, degree_variable
from dglaunch.distributed.topology import degrees_in_words, reshaped, splits
from dglaunch.errors import UserError
from dglaunch.models.optimizations import OPTIMIZATIONS
from dglaunch.planning.job import Job


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Flags beside those of a job, or in their place."""

    optimization: Mapping[str, Any] = field(default_factory=dict)
    backend: Mapping[str, Any] = field(default_factory=dict)
    """Of --backend, --parallel and --shard; None takes away what the job has."""
    parallel: ParallelConfig | None = None
    """The degrees; None: the job's."""

    @property
    def words(self) -> str:
        """How they are given."""
        degrees = {} if self.parallel is None else _set_degrees(self.parallel)
        variables = [f"{degree_variable(name)}={degree}" for name, degree in degrees.items()]
        given = {name: value for name, value in {**self.backend, **self.optimization}.items() if value is not None}
        flags = [f"--{name}" if value is True else f"--{name} {value}" for name, value in given.items()]
        return " ".join([*variables, *flags])

    @property
    def costs(self) -> str:
        """What they do and change, as the table of optimizations says."""
        names = [name if value is True else f"{name} {value}" for name, value in self.optimization.items()]
        rows = [row for row in OPTIMIZATIONS if row.name in names]
        said = [row.does + (f" (images change: {row.changes})" if row.changes else "") for row in rows]
        if "encode" in self.optimization:
            said.append("each prompt is encoded once, before the first batch")
        if self.parallel is not None:
            said.append(f"{self.parallel.shard_degree} GPUs then make the images of one")
        return "; ".join(said)

    def name(self, job: Job) -> str:
        """Return how the ranks share an image then: "ulysses 2, cfg 2", "fsdp 4", "one GPU"."""
        way = self.backend.get("shard", job.config.backend.shard)
        words = degrees_in_words(self.parallel or job.topology.parallel)
        return words.replace("shard", way or "shard") or "one GPU"


def _set_degrees(parallel: ParallelConfig) -> dict[str, int]:
    """The degrees that are not as without any variable."""
    return {
        each.name: int(degree) for each in fields(parallel) if (degree := getattr(parallel, each.name)) != each.default
    }


SAVING = (
    Change(optimization={"encode": "ahead"}),
    Change(optimization={"enable_vae_slicing": True}),
    Change(optimization={"enable_vae_tiling": True}),
    Change(optimization={"enable_layerwise_casting": True}),
    Change(optimization={"quantization": "fp8"}),
    Change(optimization={"quantization": "nf4"}),
    Change(optimization={"enable_cpu_offload": True}),
    Change(optimization={"enable_group_offloading": True}),
    Change(optimization={"enable_group_offloading": True, "enable_vae_tiling": True}),
)
"""What may make a model fit one GPU, from the least to the greatest change."""


def sharing(job: Job) -> Iterator[Change]:
    """Yield the ways in which several GPUs may hold one model, each with the fewest first."""
    given = job.topology.parallel
    for degree in [given.context_degree] if given.context_degree > 1 else _degrees(job):
        for way in ("tensor", "fsdp"):
            yield Change(backend={"shard": way}, parallel=replace(given, shard_degree=degree))


def layouts(job: Job) -> Iterator[Change]:
    """Yield all ways in which the GPUs of a job can share it, the job's own among them."""
    alone: dict[str, Any] = {"parallel": None, "shard": None}
    ways = [Change(backend=alone, parallel=ParallelConfig())]
    ways += [Change(backend=alone | {"backend": "xdit"}, parallel=split) for split in splits(job.topology.world_size)]
    by_diffusers = alone | {"backend": "diffusers"}
    for degree in _degrees(job):
        ways.append(
            Change(backend=by_diffusers | {"parallel": "context"}, parallel=ParallelConfig(context_degree=degree))
        )
    for way, degree in product(("tensor", "fsdp"), _degrees(job)):
        ways.append(Change(backend=by_diffusers | {"shard": way}, parallel=ParallelConfig(shard_degree=degree)))
    own = Change()
    if own.name(job) not in {way.name(job) for way in ways}:
        yield own
    yield from ways


def _degrees(job: Job) -> list[int]:
    world = job.topology.world_size
    return [degree for degree in range(2, world + 1) if world % degree == 0]


def changed(job: Job, change: Change) -> Job:
    """Return a job with other flags.

    Raises:
        UserError: a run would be refused with them.
    """
    config = replace(
        job.config,
        optimization=replace(job.config.optimization, **change.optimization),
        backend=replace(job.config.backend, **change.backend),
    )
    topology = job.topology if change.parallel is None else reshaped(job.topology, config, change.parallel)
    if (config, topology) == (job.config, job.topology):
        return job
    profile = profile_of(config.backend.backend)
    profile.check(config, job.target, topology, job.makeable)
    return replace(job, config=config, topology=topology, profile=profile)


def with_change(job: Job, change: Change) -> Job | None:
    """Return the job with other flags; None if a run would be refused with them, or has them already."""
    try:
        found = changed(job, change)
    except UserError:
        return None
    return None if found is job else found
