"""Other flags that a job might have: whatever `plan` advises is checked here by the rules that a run is checked by.

changed = with_change(job, Change(optimization={"enable_compile": True}))     # None: it is refused, or what the job has
Change(shard="tensor", degree=4).words                                        # "DG_SHARD_DEGREE=4 --shard tensor"
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from dglaunch.config import degree_variable
from dglaunch.distributed.topology import reshaped
from dglaunch.errors import UserError
from dglaunch.models.optimizations import OPTIMIZATIONS
from dglaunch.planning.job import Job


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Flags beside those of a job."""

    optimization: Mapping[str, Any] = field(default_factory=dict)
    shard: Literal["fsdp", "tensor"] | None = None
    degree: int = 1
    """Ranks that share the weights."""

    @property
    def words(self) -> str:
        """How they are given."""
        flags = [f"--{name}" if value is True else f"--{name} {value}" for name, value in self.optimization.items()]
        if self.shard is not None:
            flags = [f"{degree_variable('shard_degree')}={self.degree}", f"--shard {self.shard}", *flags]
        return " ".join(flags)

    @property
    def costs(self) -> str:
        """What they do and change, as the table of optimizations says."""
        names = [name if value is True else f"{name} {value}" for name, value in self.optimization.items()]
        rows = [row for row in OPTIMIZATIONS if row.name in names]
        said = [row.does + (f" (images change: {row.changes})" if row.changes else "") for row in rows]
        if "encode" in self.optimization:
            said.append("each prompt is encoded once, before the first batch")
        if self.shard is not None:
            said.append(f"{self.degree} GPUs then make the images of one")
        return "; ".join(said)


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
    context, world = job.topology.parallel.context_degree, job.topology.world_size
    degrees = [context] if context > 1 else [degree for degree in range(2, world + 1) if world % degree == 0]
    for degree in degrees:
        yield Change(shard="tensor", degree=degree)
        yield Change(shard="fsdp", degree=degree)


def with_change(job: Job, change: Change) -> Job | None:
    """Return the job with other flags; None if a run would be refused with them, or has them already."""
    config, topology = job.config, job.topology
    try:
        optimization = replace(config.optimization, **change.optimization)
        config = replace(config, optimization=optimization)
        if change.shard is not None:
            config = replace(config, backend=replace(config.backend, shard=change.shard))
            topology = reshaped(topology, config, replace(topology.parallel, shard_degree=change.degree))
        if (config, topology) == (job.config, job.topology):
            return None
        job.profile.check(config, job.target, topology, job.makeable)
    except UserError:
        return None
    return replace(job, config=config, topology=topology)
