"""What follows from how a try at a batch ended. Pure: no backend, no ranks, no clock.

    attempts = Attempts(batch, shape, limits)
    for part in attempts:                                # the batch whole, then in smaller parts if it must be
        ending = worst(...)                              # of all ranks of the replica
        if attempts.settle(ending) is Verdict.DELIVER: ...

A batch that raises is split: halved when out of memory (and the size remembered for all batches of that shape), else one
by one. An item that still fails alone is recorded as failed. All ranks of a replica take the same way, because each feeds
in the same ending.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from dglaunch.data.task import Batch
from dglaunch.distributed.messages import message
from dglaunch.errors import is_out_of_memory
from dglaunch.models.shape import Shape
from dglaunch.planning.batches import balanced

FATAL_WORDS = ("CUDA error", "NCCL", "Connection closed by peer", "Connection reset", "Gloo", "gloo")
"""In the text of an error after which this process computes nothing right any more: the GPU or a peer is lost."""
MOST_TEXT = 2000
"""Characters of an error that are kept."""


@message
@dataclass(frozen=True, slots=True)
class Ending:
    """An Ending says how one try at a batch ended on one rank; the ranks of a replica tell each other theirs."""

    error: str | None = None
    out_of_memory: bool = False
    fatal: bool = False


def ending_of(error: Exception, known_trouble: str = "") -> Ending:
    """Read the error that a backend raised; `known_trouble` is what is known to fail in its versions, in words."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"[:MOST_TEXT]
    if known_trouble:
        text = f"{known_trouble}: {text}"
    if is_out_of_memory(error):
        return Ending(text, out_of_memory=True)
    return Ending(text, fatal=any(word in text for word in FATAL_WORDS))


def worst(endings: Sequence[Ending]) -> Ending:
    """What a replica's try came to: fatal if it was for any rank, failed if it failed on any."""
    fatal = [ending for ending in endings if ending.fatal]
    failed = [ending for ending in endings if ending.error is not None]
    return [*fatal, *failed, *endings][0]


class Verdict(Enum):
    """What to do after a try."""

    DELIVER = auto()
    """It went well: encode and send its images."""
    RECORD_FAILURE = auto()
    """It is one item and failed: a line of failures.jsonl."""
    TRY_SMALLER = auto()
    """Go on: its items come again in smaller parts."""
    GIVE_UP = auto()
    """This rank cannot compute any more."""


@dataclass(slots=True)
class Limits:
    """Limits are what a run has learned about batch sizes, and what it reports of that."""

    largest: dict[Shape, int] = field(default_factory=dict)
    """Images of a shape that a batch may have, after a larger one ran out of memory."""
    most: int | None = None
    """Images that any batch may have, where more together would not be right."""
    events: list[str] = field(default_factory=list)

    def parts(self, batch: Batch, shape: Shape) -> list[Batch]:
        """The batch in as many parts as its shape needs."""
        size = self.largest.get(shape, len(batch))
        return balanced(batch.tasks, size if self.most is None else min(size, self.most))

    def halve(self, shape: Shape, size: int) -> None:
        """So many images of a shape were too many."""
        self.largest[shape] = min(size // 2, self.largest.get(shape, size))
        self.events.append(f"{size} images of {shape} ran out of memory; at most {size // 2} from then on")


class Attempts:
    """Attempts are the parts of one batch in the order in which they are to be tried; each must be settled."""

    def __init__(self, batch: Batch, shape: Shape, limits: Limits) -> None:
        self._shape = shape
        self._limits = limits
        self._todo = deque([batch])
        self._part = batch

    def __iter__(self) -> Iterator[Batch]:
        while self._todo:
            self._part, *rest = self._limits.parts(self._todo.popleft(), self._shape)
            self._todo.extendleft(reversed(rest))
            yield self._part

    def settle(self, ending: Ending) -> Verdict:
        """What follows from how the present part ended; remembers it, and queues what must be tried again."""
        part = self._part
        if ending.error is None:
            return Verdict.DELIVER
        if ending.fatal:
            return Verdict.GIVE_UP
        if len(part) == 1:
            return Verdict.RECORD_FAILURE
        if ending.out_of_memory:
            self._limits.halve(self._shape, len(part))
            self._todo.appendleft(part)
        else:
            self._limits.events.append(f"a batch of {len(part)} failed and was run one by one: {ending.error}")
            self._todo.extendleft(reversed(balanced(part.tasks, 1)))
        return Verdict.TRY_SMALLER
