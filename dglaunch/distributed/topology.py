"""Who am I: torchrun's variables and the degrees of xDiT, --parallel and --shard make replicas.

A replica is the set of ranks that compute one batch together. It is the unit of sharding: with Ulysses 2 on 8 ranks
there are 4 replicas, and both ranks of a replica get the same batch. xfuser orders ranks with data parallelism
outermost, so that the ranks of a replica are neighbours.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from dglaunch.config import OWN_DEGREES, XDIT_PREFIX, ParallelConfig, RunConfig, WriterName
from dglaunch.distributed.agent import Agent, agent_of
from dglaunch.environment import job_token
from dglaunch.errors import UserError

RENDEZVOUS = ("MASTER_ADDR", "MASTER_PORT")
"""Where ranks find each other; a process that has initialized torch.distributed by itself needs neither."""
NEEDED = ("WORLD_SIZE", *RENDEZVOUS)
"""What torchrun sets beside RANK."""
NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "MASTER_PORT")
SHARED = {"parallel": "an image", "shard": "the weights"}
"""What the ranks of a replica share, by the flag."""
NO_SHARED_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
"""torchrun's variable by which each world's rank 0 holds the store, instead of an agent."""
RESTARTS = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")


class UnfitWorld(UserError):
    """The ranks of this world make no whole replicas."""

    def __init__(self, text: str, may_change: bool) -> None:
        """
        Args:
            may_change: with --nnodes 1:4, whether a world of more nodes would do.
        """
        super().__init__(text)
        self.may_change = may_change


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """A Topology says which rank this is and which ranks compute, write and report with it.

    It is pure, built from numbers, so that a plan can be made for any world."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    node: int = 0
    """With --num_nodes: this machine among nodes that share the work without a rendezvous."""
    num_nodes: int = 1
    mode: WriterName = "main"
    """--writer."""
    restarted: bool = False
    """torchrun or Slurm has started the same command before."""
    agent: Agent | None = None
    """torchrun's process that has started this rank."""
    distributed: bool = False
    """Started by torchrun: there are process groups, even in a world of one."""
    rendezvous: tuple[str, int, bool] | None = None
    """Under torchrun: host and port of its store, and whether the agent holds it (else rank 0 does)."""
    token: str = field(default="", repr=False)
    """What all ranks of a job know, and other processes perhaps do not (environment.job_token)."""

    @property
    def is_one_machine(self) -> bool:
        return self.local_world_size == self.world_size

    @property
    def replica_size(self) -> int:
        """Ranks that share one image."""
        parallel = self.parallel
        cfg = 2 if parallel.use_cfg_parallel else 1
        own = max(parallel.context_degree, parallel.shard_degree)
        return parallel.ulysses_degree * parallel.ring_degree * cfg * own

    @property
    def sequence_degree(self) -> int:
        """Ranks over which the tokens of an image are split."""
        return self.parallel.ulysses_degree * self.parallel.ring_degree * self.parallel.context_degree

    @property
    def num_replicas(self) -> int:
        return self.world_size // self.replica_size

    @property
    def replica(self) -> int:
        return self.rank // self.replica_size

    @property
    def replica_ranks(self) -> range:
        first = self.replica * self.replica_size
        return range(first, first + self.replica_size)

    @property
    def leaders(self) -> list[int]:
        """The rank of each replica that has its images: the last one, as xfuser's pipelines give them to no other."""
        return list(range(self.replica_size - 1, self.world_size, self.replica_size))

    @property
    def is_leader(self) -> bool:
        return self.rank == self.replica_ranks[-1]

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0: it hears of every image, reports, and writes what no other rank writes."""
        return self.rank == 0

    @property
    def tells_of_deaths(self) -> bool:
        """As environment.tells_of_deaths."""
        return self.local_rank < 2

    @property
    def writer(self) -> int:
        """The rank that writes what this leader makes."""
        if self.mode == "main":
            return 0
        return self.rank if self.mode == "rank" else self._leaders_of_node[0]

    @property
    def writes(self) -> bool:
        """Whether this rank has a ledger."""
        return self.is_main or (self.is_leader and self.writer == self.rank)

    @property
    def receives_from(self) -> list[int]:
        """The leaders whose results, or word of them, come to this rank."""
        leaders: list[int] = []
        if self.is_main:
            leaders = self.leaders
        elif self.writes and self.mode == "node":
            leaders = self._leaders_of_node
        return [rank for rank in leaders if rank != self.rank]

    @property
    def _leaders_of_node(self) -> list[int]:
        first = self.rank - self.local_rank
        return [rank for rank in self.leaders if first <= rank < first + self.local_world_size]

    @property
    def ledger_suffix(self) -> tuple[str, str]:
        """What the name of this rank's ledger says: the node of several without a rendezvous, the rank beside rank 0."""
        node = f"-node{self.node}of{self.num_nodes}" if self.num_nodes > 1 else ""
        return node, "" if self.is_main else f"-rank{self.rank}of{self.world_size}"

    def describe(self) -> str:
        degrees = degrees_in_words(self.parallel)
        inside = f" of {self.replica_size} ranks ({degrees})" if degrees else " of one rank"
        node = f", node {self.node} of {self.num_nodes}" if self.num_nodes > 1 else ""
        writers = {"main": "", "node": ", each node writes its images", "rank": ", each replica writes its images"}
        return f"{self.num_replicas} replica{'s' if self.num_replicas > 1 else ''}{inside}{node}{writers[self.mode]}"


def degrees_in_words(parallel: ParallelConfig) -> str:
    """Return the degrees of a replica: "ulysses 2, cfg 2"; nothing where an image is one rank's."""
    degrees = {
        "ulysses": parallel.ulysses_degree,
        "ring": parallel.ring_degree,
        "cfg": 2 if parallel.use_cfg_parallel else 1,
        "context": parallel.context_degree,
        "shard": parallel.shard_degree,
    }
    return ", ".join(f"{name} {degree}" for name, degree in degrees.items() if degree > 1)


def splits(world_size: int) -> list[ParallelConfig]:
    """Return the ways in which ranks of a world can share an image: the degrees of Ulysses and ring, and the two branches of
    guidance, whose product divides the world; the smallest replicas first."""
    degrees = [n for n in range(1, world_size + 1) if world_size % n == 0]
    found = [
        ParallelConfig(ulysses_degree=ulysses, ring_degree=ring, use_cfg_parallel=cfg)
        for ulysses, ring, cfg in itertools.product(degrees, degrees, (False, True))
    ]
    sizes = [Topology(parallel=split).replica_size for split in found]
    fitting = [(size, split) for size, split in zip(sizes, found) if size > 1 and world_size % size == 0]
    fitting.sort(key=lambda pair: (pair[0], pair[1].use_cfg_parallel, pair[1].ring_degree))
    return [split for _, split in fitting]


def from_environment(
    config: RunConfig, parallel: ParallelConfig, environ: Mapping[str, str], world_size: int | None = None
) -> Topology:
    """Read torchrun's variables, or take one rank without them; `world_size` plans for another world.

    Raises:
        UserError: the degrees do not multiply to the world size, or --num_nodes contradicts torchrun's nodes.
    """
    under_torchrun = "RANK" in environ and world_size is None
    if under_torchrun:
        check_world(environ)
    world = world_size or (int(environ["WORLD_SIZE"]) if under_torchrun else 1)
    _check_ways(config, parallel)
    node, num_nodes = _nodes(config, environ) if under_torchrun else (config.node_rank or 0, config.num_nodes or 1)
    topology = Topology(
        rank=int(environ["RANK"]) if under_torchrun else 0,
        local_rank=int(environ.get("LOCAL_RANK", "0")) if under_torchrun else 0,
        world_size=world,
        local_world_size=int(environ.get("LOCAL_WORLD_SIZE", "1")) if under_torchrun else world,
        parallel=parallel,
        node=node,
        num_nodes=num_nodes,
        mode=config.writer,
        restarted=any(environ.get(name, "0") != "0" for name in RESTARTS),
        agent=agent_of(environ) if under_torchrun else None,
        distributed=under_torchrun,
        rendezvous=_rendezvous(environ) if under_torchrun else None,
        token=job_token(environ),
    )
    _check_elastic(topology)
    _check_degrees(topology)
    return topology


def reshaped(topology: Topology, config: RunConfig, parallel: ParallelConfig) -> Topology:
    """Return a world whose ranks make other replicas.

    Raises:
        UserError: the flags do not ask for these degrees, or the degrees do not divide the world.
    """
    _check_ways(config, parallel)
    found = replace(topology, parallel=parallel)
    _check_degrees(found)
    return found


def _check_ways(config: RunConfig, parallel: ParallelConfig) -> None:
    """Refuse degrees of a way to share an image that was not asked for, and a way without a degree.

    Raises:
        UserError: with what to set or unset.
    """
    backend = config.backend
    own = {name: getattr(parallel, name) for name in OWN_DEGREES}
    if backend.backend != "xdit" and replace(parallel, context_degree=1, shard_degree=1) != ParallelConfig():
        raise UserError(
            f"{XDIT_PREFIX}* degrees are set, but --backend {backend.backend} has none: each rank is a replica. "
            f"Unset them or use --backend xdit."
        )
    ways = {"parallel": (backend.parallel, "context_degree"), "shard": (backend.shard, "shard_degree")}
    for flag, (way, name) in ways.items():
        variable, degree = OWN_DEGREES[name], own[name]
        if way is not None and backend.backend == "xdit":
            raise UserError(
                f"--{flag} {way} is a way of diffusers itself, and --backend xdit has its own ({XDIT_PREFIX}* degrees); drop "
                "one of them."
            )
        if degree > 1 and (way is None or backend.backend != "diffusers"):
            raise UserError(
                f"{variable}={degree} does nothing without --{flag} and --backend diffusers; add the flag, or unset the "
                "variable."
            )
        if way is not None and degree == 1 and backend.backend == "diffusers":
            raise UserError(
                f"--{flag} {way} does nothing on one rank: say how many share {SHARED[flag]}, such as {variable}=2, and start "
                "that many ranks (torchrun --nproc_per_node 2), or a multiple of it."
            )
    if backend.parallel and backend.shard and len(set(own.values())) > 1:
        said = " and ".join(f"{OWN_DEGREES[name]}={degree}" for name, degree in own.items())
        raise UserError(
            f"{said}: with --parallel and --shard together the same ranks share the image and the weights. Give both "
            "variables the same number."
        )


def check_world(environ: Mapping[str, str]) -> None:
    """Refuse RANK alone, as a shell may have kept it from something else, and numbers that make no world.

    Raises:
        UserError: with what to unset.
    """
    missing = [name for name in NEEDED if not environ.get(name)]
    if missing and missing != [*RENDEZVOUS]:
        raise no_world(missing)
    wrong = [name for name in NUMBERS if name in environ and not re.fullmatch(r"\d{1,9}", environ[name])]
    if not wrong and int(environ["RANK"]) >= int(environ["WORLD_SIZE"]):
        wrong = ["RANK", "WORLD_SIZE"]
    if wrong:
        said = ", ".join(f"{name}={environ[name]}" for name in wrong)
        raise UserError(
            f"{said}: torchrun's variables are whole numbers, and RANK is below WORLD_SIZE. Unset them, or start with "
            "torchrun, which sets them."
        )


def no_world(missing: Sequence[str]) -> UserError:
    """Return what is said where RANK is set without what else torchrun sets."""
    return UserError(
        f"RANK is set, as torchrun does for each rank, but {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not. "
        "Unset RANK to run in this process alone, or start with torchrun: torchrun --nproc_per_node 8 -m dglaunch ..."
    )


def _rendezvous(environ: Mapping[str, str]) -> tuple[str, int, bool] | None:
    if "MASTER_PORT" not in environ:
        return None
    held_by_agent = environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return environ["MASTER_ADDR"], int(environ["MASTER_PORT"]), held_by_agent


def _nodes(config: RunConfig, environ: Mapping[str, str]) -> tuple[int, int]:
    """--node_rank/--num_nodes under torchrun: two ways to share must not both be applied, or prompts are lost."""
    if config.num_nodes is None or config.node_rank is None:
        return 0, 1
    of_torchrun = int(environ.get("GROUP_WORLD_SIZE", "1")), int(environ.get("GROUP_RANK", "0"))
    if of_torchrun[0] == 1:
        return config.node_rank, config.num_nodes
    if of_torchrun == (config.num_nodes, config.node_rank):
        return 0, 1
    raise UserError(
        f"torchrun already spans {of_torchrun[0]} nodes and this is its node {of_torchrun[1]}, but --num_nodes {config.num_nodes} "
        f"--node_rank {config.node_rank} says otherwise; both would be applied and prompts lost or made twice. Drop the "
        "two flags, or start torchrun on each node alone (--nnodes 1)."
    )


def _check_degrees(topology: Topology) -> None:
    parallel, world = topology.parallel, topology.world_size
    cfg = 2 if parallel.use_cfg_parallel else 1
    data = parallel.data_parallel_degree
    product = topology.replica_size * (data or 1)
    if (data is None and world % product == 0 and world >= product) or (data is not None and product == world):
        return
    own = parallel.context_degree, parallel.shard_degree
    arithmetic = (
        f"ulysses {parallel.ulysses_degree} x ring {parallel.ring_degree} x cfg {cfg}"
        + (f" x data {data}" if data is not None else "")
        + f" = {product}"
    )
    whose = f"The {XDIT_PREFIX}* degrees {arithmetic}"
    if max(own) > 1:
        whose = f"{OWN_DEGREES['context_degree' if own[0] > 1 else 'shard_degree']} is {product}"
    relation = "is not" if data is not None else "does not divide"
    fitting = [n for n in range(1, world + 1) if world % n == 0]
    hint = f"Ranks a replica may have in a world of {world}: {', '.join(map(str, fitting))}"
    if data is not None and world % topology.replica_size == 0:
        hint = f"Unset {XDIT_PREFIX}DATA_PARALLEL_DEGREE or set it to {world // topology.replica_size}"
    near = product if data is not None else max(world // product, 1) * product
    raise UnfitWorld(
        f"{whose}, which {relation} the world size {world}. {hint}; or start {near} ranks.",
        _may_become(topology, product),
    )


def _may_become(topology: Topology, product: int) -> bool:
    """Whether torchrun may still form a world with more nodes of as many ranks, in which the degrees fit."""
    if topology.agent is None or topology.agent.nodes is None:
        return False
    is_given = topology.parallel.data_parallel_degree is not None
    more = range(topology.world_size // topology.local_world_size + 1, topology.agent.nodes[1] + 1)
    worlds = [num_nodes * topology.local_world_size for num_nodes in more]
    return any(world == product if is_given else world % product == 0 for world in worlds)


def _check_elastic(topology: Topology) -> None:
    """Refuse what makes torch 2.13 fail at the first node that leaves or joins: its agents keep the address of the store of an
    earlier world, and give it to nobody who is new.

    Raises:
        UserError: with the variable to set.
    """
    if topology.agent is None or topology.agent.nodes is None or topology.rendezvous is None:
        return
    if topology.rendezvous[2]:
        fewest, most = topology.agent.nodes
        raise UserError(
            f"torchrun --nnodes {fewest}:{most} needs {NO_SHARED_STORE}=1 in its environment: without it torch's agents cannot "
            f"form another world when a node leaves or joins. export {NO_SHARED_STORE}=1 before torchrun, on every node."
        )
