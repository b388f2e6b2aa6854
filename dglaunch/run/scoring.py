"""The images of a folder are scored on all ranks: each takes every so manieth line of the ledger, and has a file of its own.

    result = Scoring(request, topology, device, dtype).run(stop)

What was scored before, by an earlier start, is not scored again, on however many ranks. A start that is killed loses the batch
under way. The ranks do not wait for each other until all are through.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from dglaunch.backends.scoring.base import Scorer, Wanted, bring, identity_of, scorer_of
from dglaunch.data.images import BadImage, decode
from dglaunch.data.task import Record
from dglaunch.distributed.channel import Channel
from dglaunch.distributed.messages import message
from dglaunch.distributed.topology import Topology
from dglaunch.errors import OutputError, UserError
from dglaunch.output import scores
from dglaunch.output.images import StoredImage, image_of
from dglaunch.output.ledger import OutputFolder
from dglaunch.output.lines import file_name_of
from dglaunch.output.scores import Scored, ScoreFile, Scores
from dglaunch.output.sorted_lines import SortedLines
from dglaunch.run.signals import stopping
from dglaunch.run.watchdog import StallWatch
from dglaunch.system import versions
from dglaunch.terminal import Terminal, progress

if TYPE_CHECKING:
    from PIL.Image import Image

SHOWN = 5
"""Images without a score that a rank tells of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is to be scored, by what."""

    folder: OutputFolder
    name: str
    wanted: Wanted
    batch_size: int | None = None
    """Images at a time; None: as the scorer likes it."""
    overwrite: bool = False
    cache: Path
    stall_timeout: float


@message
@dataclass(frozen=True, slots=True)
class ScoreCounts:
    """What became of a rank's images."""

    scored: int = 0
    before: int = 0
    """Scored by an earlier start."""
    failed: int = 0
    cut: int = 0
    """Of which the model read only the beginning of the prompt."""
    drained: bool = False
    why: list[str] = field(default_factory=list)
    """Of some that have no score."""


@dataclass(frozen=True, slots=True)
class ScoringResult:
    """What a start came to, the same on every rank."""

    counts: ScoreCounts
    values: list[float]
    """All scores that there are now; on rank 0."""


class Scoring:
    """One start of scoring, on one rank."""

    def __init__(self, request: Request, topology: Topology, device: str, dtype: str) -> None:
        self._request, self._topology, self._dtype = request, topology, dtype
        self._kind = device
        self._device = f"cuda:{topology.local_rank}" if device == "cuda" else device

    def run(self, stop: threading.Event) -> ScoringResult:
        """Score what has no score yet.

        Raises:
            DglaunchError: it broke off; what was scored is kept.
        """
        request, topology = self._request, self._topology
        with stopping(stop), ExitStack() as opened, StallWatch(topology, request.stall_timeout, stop) as watch:
            channel = Channel(topology, self._kind)
            name = scores.held(request.folder, request.name) if topology.is_main else nullcontext()
            channel.together(lambda: opened.enter_context(name))
            wanted = self._brought(channel)
            channel.together(lambda: self._begin(wanted))
            channel.together(lambda: scores.see_others(request.folder))
            known = Scores.read(request.folder, request.name)
            lines = SortedLines(request.folder).only(failed=False)[topology.rank :: topology.world_size]
            before = sum(known.of(record) is not None for record in lines)
            scorer = channel.together(lambda: self._loaded(wanted, len(lines) - before))
            counts = channel.together(lambda: self._score(scorer, lines, known, before, stop, watch))
            everyone = channel.all_of_world(counts)
            values = channel.together(self._joined)
        return ScoringResult(_sum(everyone), values)

    # -- before the first image -----------------------------------------------------------------------------------

    def _brought(self, channel: Channel) -> Wanted:
        """The model's files on this machine: one rank of each fetches them, the others find them."""
        wanted = self._request.wanted
        channel.together(lambda: bring(wanted) if self._topology.local_rank == 0 else wanted)
        return channel.together(lambda: bring(wanted))

    def _begin(self, wanted: Wanted) -> None:
        request = self._request
        if not self._topology.is_main:
            return
        said: Record = {
            "name": request.name, "with": request.wanted.said, "identity": identity_of(wanted, self._dtype, request.cache),
            "versions": {name: versions().get(name) for name in ("dglaunch", "torch", "transformers", "pillow")},
        }  # fmt: skip
        scores.begin(request.folder, request.name, said, request.overwrite)

    def _loaded(self, wanted: Wanted, count: int) -> Scorer | None:
        """The model, on ranks that have something to do."""
        return scorer_of(wanted, self._device, self._dtype) if count else None

    # -- the images -----------------------------------------------------------------------------------------------

    def _score(
        self, scorer: Scorer | None, lines: Sequence[Record], known: Scores, before: int, stop: threading.Event,
        watch: StallWatch,
    ) -> ScoreCounts:  # fmt: skip
        """Score this rank's images, batch after batch, while the next one's are read."""
        counts = ScoreCounts(before=before)
        if scorer is None:
            return counts
        request = self._request
        size = request.batch_size or scorer.at_a_time
        part = f"-rank{self._topology.rank}of{self._topology.world_size}"
        pending = (record for record in lines if known.of(record) is None)
        with ExitStack() as opened:
            file = ScoreFile(request.folder, request.name, part)
            opened.callback(file.close)
            opened.callback(self._settle, file)
            pool = opened.enter_context(ThreadPoolExecutor(max(2, min(size, 8)), "read images"))
            advance = opened.enter_context(self._progress(len(lines) - before))
            opened.enter_context(watch.doing("scoring images"))
            for batch in _batches(pending, size, pool, request.folder.path):
                if stop.is_set():
                    return replace(counts, drained=True)
                counts = self._add(file, counts, _scores_of(scorer, batch))
                watch.beat()
                advance(len(batch))
        return counts

    def _settle(self, file: ScoreFile) -> None:
        try:
            file.settle()
        except OSError as error:
            raise self._not_written(error) from None

    def _not_written(self, error: OSError) -> OutputError:
        return OutputError(
            f"The scores in {self._request.folder.path / scores.FOLDER} cannot be written: {error.strerror or error}. What was "
            "scored before is kept; make room and start the same command again."
        )

    def _progress(self, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """What shows how far it is: rank 0 speaks for all, which are about as far."""
        if not self._topology.is_main:
            return nullcontext(lambda _: None)
        return progress("images scored" if self._topology.world_size == 1 else "images scored by rank 0", total)

    def _add(self, file: ScoreFile, counts: ScoreCounts, answers: Sequence[tuple[Record, Scored | str]]) -> ScoreCounts:
        """Keep the scores of a batch, and count."""
        why = list(counts.why)
        scored = [(record, answer) for record, answer in answers if isinstance(answer, Scored)]
        why += [f"{file_name_of(record)}: {answer}" for record, answer in answers if isinstance(answer, str)]
        try:
            for record, answer in scored:
                file.add(record, answer)
        except OSError as error:
            raise self._not_written(error) from None
        return replace(
            counts, scored=counts.scored + len(scored), failed=counts.failed + len(answers) - len(scored),
            cut=counts.cut + sum(answer.is_cut for _, answer in scored), why=why[:SHOWN],
        )  # fmt: skip

    # -- at the end -----------------------------------------------------------------------------------------------

    def _joined(self) -> list[float]:
        """All scores as one file, on rank 0, when no rank writes any more."""
        if not self._topology.is_main:
            return []
        folder, name = self._request.folder, self._request.name
        try:
            scores.see_others(folder)
            return scores.join(folder, name, SortedLines(folder).only(failed=False))
        except OSError as error:
            Terminal(stderr=True).print(
                f"The files of scores were not joined ({error.strerror or error}); the next start does it."
            )
            return []


def _sum(everyone: Sequence[ScoreCounts]) -> ScoreCounts:
    return ScoreCounts(
        scored=sum(each.scored for each in everyone), before=sum(each.before for each in everyone),
        failed=sum(each.failed for each in everyone), cut=sum(each.cut for each in everyone),
        drained=any(each.drained for each in everyone), why=[text for each in everyone for text in each.why][:SHOWN],
    )  # fmt: skip


Read = tuple[Record, "Future[Image | str]"]
"""A line of the ledger, and its image as soon as it is read; or why it cannot be."""


def _batches(records: Iterator[Record], size: int, pool: ThreadPoolExecutor, folder: Path) -> Iterator[list[Read]]:
    """The lines in batches; the images of the next batch are read meanwhile."""

    def begun() -> list[Read]:
        return [(record, pool.submit(_image, image_of(folder, record))) for record in islice(records, size)]

    coming = begun()
    while batch := coming:
        coming = begun()
        yield batch


def _image(stored: StoredImage | None) -> "Image | str":
    if stored is None:
        return "its line names no image of this folder"
    try:
        return decode(stored.read())
    except BadImage as error:
        return str(error)
    except OSError as error:
        return f"it cannot be read: {error.strerror or error}"


def _scores_of(scorer: Scorer, batch: Sequence[Read]) -> list[tuple[Record, Scored | str]]:
    """What became of each image of a batch."""
    read = [(record, image.result()) for record, image in batch]
    images = [(record, image) for record, image in read if not isinstance(image, str)]
    answers = iter(_tried(scorer, [image for _, image in images], [record for record, _ in images]))
    return [(record, image if isinstance(image, str) else next(answers)) for record, image in read]


def _tried(scorer: Scorer, images: "Sequence[Image]", records: Sequence[Record]) -> Sequence[Scored | str]:
    """The scores of a batch; where that fails, as with too little memory, of its halves, down to one image."""
    if not images:
        return []
    try:
        return scorer.score(images, records)
    except UserError:
        raise
    except Exception as error:  # a function of the user's, or a GPU's memory
        why = f"{type(error).__name__}: {error}"
    if len(images) == 1:
        return [why]
    half = len(images) // 2
    return [*_tried(scorer, images[:half], records[:half]), *_tried(scorer, images[half:], records[half:])]
