"""What xDiT says about a job before a model is loaded."""

from collections.abc import Iterable, Sequence

from dglaunch.backends.diffusers.profile import DiffusersProfile
from dglaunch.backends.profiles import Idle, Target
from dglaunch.backends.xdit import checks
from dglaunch.config import RunConfig
from dglaunch.data.many import kinds_of
from dglaunch.data.task import Task
from dglaunch.distributed.topology import Topology


class XDiTProfile(DiffusersProfile):
    """The same checkpoint and device; what xfuser would do wrong is refused too."""

    xdit = True

    def check(self, config: RunConfig, target: Target, topology: Topology, tasks: Sequence[Task]) -> None:
        super().check(config, target, topology, tasks)
        checks.check_degrees(target.checkpoint, config, topology)
        checks.check_inputs(target.checkpoint, kinds_of(tasks))
        if topology.replica_size > 1:
            checks.check_text(target.checkpoint, config)
        if topology.parallel.use_cfg_parallel:
            checks.check_branches(kinds_of(tasks))
        if topology.sequence_degree > 1:
            checks.check_split(target.checkpoint, config, topology, kinds_of(tasks))

    def idle_values(self, config: RunConfig, target: Target, tasks: Sequence[Task]) -> Iterable[Idle]:
        yield from super().idle_values(config, target, tasks)
        row, wanted = target.checkpoint.family.xdit, config.optimization.attention_backend
        if row is not None and row.masked_attention and wanted not in (None, row.masked_attention):
            yield Idle(
                name="attention_backend",
                where=" where texts of different length share a batch, or the Ulysses degree does not divide a text",
                reason=f"xfuser's {target.checkpoint.family.name} attends with {row.masked_attention} there",
            )
