"""The contract between a run and what makes its images: a backend has three methods.

    class Gray:
        '''Draws gray squares.'''

        def __init__(self, context: Context) -> None:
            self.seconds: dict[str, float] = {}

        def load(self) -> Facts:
            return Facts()

        def generate(self, batch: Batch) -> list[Slot]:
            return [Image.new("RGB", (64, 64), "gray") for _ in batch.tasks]

        def close(self) -> None:
            pass

A *raise* from `generate` concerns the batch: the run splits it and tries again. An `ItemError` in a slot concerns that
item only: it is recorded and not tried again (an API must not be paid twice for the other items). A UserError ends the
run: the user's mistake showed only at the server. None in a slot: the run was stopped first, the image stays pending.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeAlias

from dglaunch.config import RunConfig
from dglaunch.data.task import Batch, Record
from dglaunch.distributed.channel import Channel
from dglaunch.distributed.topology import Topology
from dglaunch.models.checkpoint import Checkpoint

if TYPE_CHECKING:
    from PIL.Image import Image

    from dglaunch.output.whole_file import WholeFile


class Backend(Protocol):
    """A backend makes the images of one rank, batch by batch; `registry` lists the backends by name."""

    seconds: dict[str, float]
    """Wall time by stage: encode_prompts, denoise, decode. It grows during the run."""

    def load(self) -> "Facts":
        """The backend gets ready (it loads weights, it connects) and says what it will use.

        Raises:
            UserError: an option cannot take effect.
        """
        ...

    def generate(self, batch: Batch) -> "Sequence[Slot] | None":
        """The backend returns one slot for each task, in the batch's order; None on a rank that gets no images."""
        ...

    def close(self) -> None:
        """The backend gives memory and process groups back."""
        ...


@dataclass(frozen=True, slots=True)
class ItemError:
    """An item error says why one item of a batch has no image, while the others do."""

    message: str


@dataclass(frozen=True, slots=True)
class Arriving:
    """An arriving image is still on its way from the GPU, while the next batch is computed."""

    wait: "Callable[[], Image | ItemError]"


Slot: TypeAlias = "Image | WholeFile | ItemError | Arriving | None"
"""What a backend has for a task; None if it was stopped before it asked for it."""


def arrived(slot: Slot) -> "Image | WholeFile | ItemError | None":
    """This function waits for a slot's image if it is still on its way, and returns what is in the slot."""
    return slot.wait() if isinstance(slot, Arriving) else slot


@dataclass(slots=True, kw_only=True)
class Context:
    """A context is all that a backend is given: what to run, as which rank, and when to leave early."""

    config: RunConfig
    checkpoint: Checkpoint
    topology: Topology
    channel: Channel
    device: str
    """cuda or cpu."""
    dtype: str
    should_stop: Callable[[], bool] = lambda: False
    """Asked between denoising steps; all ranks of a replica get the same answer at the same step."""
    batches: Sequence[Batch] = ()
    """What generate() will be called with, in this order: for what can be prepared ahead. A batch may come in parts. With
    --shares claimed other replicas may take some of the last, and others' batches may follow."""
    coming: Callable[[], Sequence[Batch]] = tuple
    """What was taken from another replica together with the batch that generate() is called with, and follows it."""

    @property
    def torch_device(self) -> str:
        """This rank's device, as torch names it: cuda:1."""
        return f"cuda:{self.topology.local_rank}" if self.device == "cuda" else "cpu"

    @property
    def num_cores(self) -> int:
        """This rank's share of the machine's cores."""
        return max(1, (os.cpu_count() or 1) // self.topology.local_world_size)


@dataclass(slots=True)
class Facts:
    """Facts are what a backend says of itself once it is loaded."""

    defaults: Record = field(default_factory=dict)
    """What the pipeline uses where nothing was given: height, width, num_inference_steps, guidance_scale."""
    scheduler: str = ""
    """The class of the pipeline's scheduler, if it has one."""
    effects: dict[str, str] = field(default_factory=dict)
    """Optimizations that took effect, and how."""
    versions: dict[str, str] = field(default_factory=dict)
    """Of libraries that only this backend has; those of system.PACKAGES are known without it."""
    shaped_by: tuple[str, ...] = ()
    """Which of system.PACKAGES shape its images, besides dglaunch: their versions go into each file."""
    order: Callable[[Sequence[Batch]], Iterator[Batch]] | None = None
    """The order in which generate() is to be called with the batches of this replica's share, and no others: a backend that gets its images when they are
    ready yields batches (of the same tasks, in any parts) as they are, and waits in between."""
    workers: int = 1
    """How many threads may be in generate() at a time, each with a batch of its own."""
    ledger: Record = field(default_factory=dict)
    """What the ledger says of every image besides its task."""
    of_task: dict[tuple[int, int], Record] = field(default_factory=dict)
    """What the ledger says besides of one task, by its id: put here before generate() returns, and taken out with its line."""
    usage: Counter[str] = field(default_factory=Counter)
    """Sums that grow during the run (requests, tokens, cost)."""
    events: list[str] = field(default_factory=list)
    """What the report should say; grows during the run."""
    seconds_to_take_over: float = 0.0
    """What it costs to begin with batches that are not in the context, however many: text encoders come back."""
    known_trouble: str = ""
    """What is known to fail in these versions, in words; put before the error of an item."""
