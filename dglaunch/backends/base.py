"""The contract of an engine, and the table of engines by name.

    class Echo(Backend):
        def load(self): ...
        def generate(self, batch): return [Image.new("RGB", (64, 64)) for _ in batch.tasks]
        def close(self): ...

A *raise* from `generate` concerns the batch: the run splits it and tries again. An `ItemError` in a slot concerns that
item only: it is recorded and not tried again (an API must not be paid twice for the other items). A UserError ends the
run: the user's mistake showed only at the server. None in a slot: the run was stopped first, the image stays pending.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from dglaunch.backends.input_prefetch import InputPrefetcher
from dglaunch.config import RunConfig
from dglaunch.data.task import Batch, Task
from dglaunch.distributed.channel import Channel
from dglaunch.distributed.topology import Topology
from dglaunch.models.checkpoint import Checkpoint

if TYPE_CHECKING:
    from PIL.Image import Image

    from dglaunch.output.encode import WholePng


@dataclass(frozen=True, slots=True)
class ItemError:
    """Why one item of a batch has no image, while the others do."""

    message: str


@dataclass(frozen=True, slots=True)
class Arriving:
    """An image whose pixels are on their way from the GPU, while the next batch is computed."""

    wait: "Callable[[], Image | ItemError]"


Slot: TypeAlias = "Image | WholePng | ItemError | Arriving | None"
"""What a backend has for a task; None if it was stopped before it asked for it."""


@dataclass(slots=True, kw_only=True)
class Context:
    """What a backend is given: the configuration, its place, and how to leave early."""

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
    """What generate() will be called with, in this order: for what can be prepared ahead. A batch may come in parts."""


@dataclass(slots=True)
class Facts:
    """What a backend says of itself once it is loaded."""

    defaults: dict[str, Any] = field(default_factory=dict)
    """What the pipeline uses where nothing was given: height, width, num_inference_steps, guidance_scale."""
    effects: dict[str, str] = field(default_factory=dict)
    """Optimisations that took effect, and how."""
    versions: dict[str, str] = field(default_factory=dict)
    workers: int = 1
    """How many threads may be in generate() at a time, each with a batch of its own."""
    ledger: dict[str, Any] = field(default_factory=dict)
    """What the ledger says of every image besides its task."""
    usage: Counter[str] = field(default_factory=Counter)
    """Sums that grow during the run (requests, tokens, cost)."""
    events: list[str] = field(default_factory=list)
    """What the report should tell; grows during the run."""
    known_trouble: str = ""
    """What is known to fail in these versions, in words; put before the error of an item."""


class Backend(Protocol):
    """An engine on one rank. `seconds` collects wall time by stage (encode_prompts, denoise, decode)."""

    seconds: dict[str, float]

    def load(self) -> Facts:
        """Load the weights and say what will be used.

        Raises:
            UserError: an option cannot take effect.
        """
        ...

    def generate(self, batch: Batch) -> Sequence[Slot] | None:
        """One slot for each task, in the batch's order; None on a rank that does not get the images."""
        ...

    def close(self) -> None:
        """Give memory and groups back."""
        ...


def generate_sound(
    context: Context, batch: Batch, loader: InputPrefetcher, generate: Callable[[Batch], Sequence[Slot] | None]
) -> Sequence[Slot] | None:
    """Decode the batch's input images; run it without the items whose images turn out bad, and put their errors in
    their places. The ranks of a replica leave out the same items, even if only one of them could not read a file."""
    told = context.channel.all_of_replica(loader.load(batch.tasks))
    errors = {position: message for errors in told for position, message in errors.items()}
    if not errors:
        return generate(batch)
    sound = Batch(tuple(task for position, task in enumerate(batch.tasks) if position not in errors))
    made = generate(sound) if len(sound) else ()
    if made is None:
        return None
    rest = iter(made)
    return [ItemError(errors[n]) if n in errors else next(rest) for n in range(len(batch))]


def arrived(slot: Slot) -> "Image | WholePng | ItemError | None":
    """What is in the slot, waited for if it is still coming."""
    return slot.wait() if isinstance(slot, Arriving) else slot


def prompt_of(tasks: Sequence[Task]) -> list[str]:
    """The prompts as a new list: some pipelines write into the one they are given."""
    return [task.prompt for task in tasks]
