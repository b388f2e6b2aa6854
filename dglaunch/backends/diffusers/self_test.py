"""The self-test of a pipeline without a row: what its signature cannot say is tried out on the loaded model, at a small size
and with two denoising steps.

    findings = SelfTest(draw, takes, negative=True, dtype="float32").run()

`draw` makes the images of a batch as the run would make them, one call of the pipeline.
"""

import random
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch

from dglaunch.backends.base import Context
from dglaunch.backends.diffusers.findings import ANY_SIZE, Findings, file_of, keep, recall
from dglaunch.data.shares import settings_of
from dglaunch.data.task import Batch, Task
from dglaunch.errors import UserError
from dglaunch.models.checkpoint import Checkpoint

Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
Draw = Callable[[Batch], Sequence[Pixels]]
"""Makes the images of a batch in one call; it raises where there is one that has none."""
PROMPTS = ("a red fox", "two blue dogs on the moon, at night, in the rain, with a green house by the sea")
NEGATIVES = ("ugly", "blurry, of low quality, with a watermark in the corner")
"""Of different lengths, as what is wrong in a batch is mostly its padding."""
SEEDS = (11, 12)
STEPS = 2
SIDES = (128, 256, 512, 1024)
"""Pixels; each divides by every multiple below. The first at which an image comes out in its size is taken."""
MULTIPLES = (8, 16, 32, 64)
ROUNDING = 2
"""Of 255, of any pixel in float32: what another order of the same sums was measured to do."""
SHARE = 0.1
"""Of what another prompt does to an image on average: in bfloat16 and float16, rounding sends single pixels far away."""


class SelfTest:
    """A self-test draws a few images, alone and together, and says how they differ."""

    def __init__(self, draw: Draw, takes: Collection[str], dtype: str, own_prompts: Sequence[str] = ()) -> None:
        """
        Args:
            takes: the names of the pipeline's arguments.
            own_prompts: two of the job's, for a pipeline that does not understand plain English (JSON captions).
        """
        self.draw, self.takes, self.dtype = draw, takes, dtype
        self.wordings = [PROMPTS, *([tuple(own_prompts[:2])] if own_prompts else [])]
        self.side: int | None = None
        """Of the images; None: whatever the pipeline chooses."""
        self.prompts: tuple[str, ...] = ()

    def run(self) -> Findings:
        """Try it out.

        Raises:
            UserError: no image comes out, or none that its seed decides.
        """
        multiple, sets_size = self._find_size()
        by_global_state = self._depends_on_global_state()
        why = "they would share the global random state" if by_global_state else self._what_is_wrong_together()
        return Findings(multiple=multiple, sets_size=sets_size, why_single=why, by_global_state=by_global_state)

    # -- sizes ----------------------------------------------------------------------------------------------------

    def _find_size(self) -> tuple[int, bool]:
        """Choose prompts and a size that work, and find of what width and height must be multiples."""
        sets_size = {"height", "width"} <= set(self.takes)
        failure: Exception | None = None
        for prompts in self.wordings:
            self.prompts = prompts
            for side in SIDES if sets_size else ():
                drawn = self._size_of(side, side)
                if drawn == (side, side):
                    self.side = side
                    return self._multiple(side), True
            failure = self._failure()
            if failure is None:
                return ANY_SIZE, False
        raise UserError(
            f"The self-test of this pipeline, which has no row in dglaunch's table of families, draws no image: "
            f"{type(failure).__name__}: {' '.join(str(failure).split())} If its prompts must have a form of their own, "
            "give it such prompts; else use another checkpoint."
        )

    def _multiple(self, side: int) -> int:
        fitting = (n for n in MULTIPLES if self._size_of(side + n, side) == (side + n, side))
        return next(fitting, SIDES[0])

    def _size_of(self, height: int, width: int) -> tuple[int, ...] | None:
        """The height and width that an image has for which these were asked; None: there is none."""
        task = replace(self._task(0), height=height, width=width)
        with suppress(Exception):  # whatever a pipeline says to a size that is none of its own
            return self.draw(Batch((task,)))[0].shape[:2]
        return None

    def _failure(self) -> Exception | None:
        """Why no image comes out at the size that the pipeline chooses; None: one does."""
        try:
            self.draw(Batch((self._task(0),)))
        except Exception as error:  # of a pipeline that nobody has tried yet
            return error
        return None

    # -- seeds and batches ----------------------------------------------------------------------------------------

    def _depends_on_global_state(self) -> bool:
        """Whether one seed gives two images under two states of the global generators.

        Raises:
            UserError: it does so whatever that state is.
        """
        first, second, again = (self._seeded(self._task(0), state) for state in (1, 2, 1))
        if self._are_alike(first, second):
            return False
        if self._are_alike(first, again):
            return True
        raise UserError(
            "Two calls of this pipeline with the same prompt, seed and global random state give two images: it draws from a "
            "random source that nothing seeds, so that no image could be made again. It has no row in dglaunch's table of "
            "families; if a switch of its call is the reason, derive a class from it that sets it (--pipeline)."
        )

    def _what_is_wrong_together(self) -> str:
        """Why two prompts may not share a call, with negative prompts and without; "" if they may."""
        for negative in (False, True) if "negative_prompt" in self.takes else (False,):
            tasks = tuple(self._task(n, negative) for n in (0, 1))
            alone = [self.draw(Batch((task,)))[0] for task in tasks]
            try:
                together = self.draw(Batch(tasks))
            except Exception as error:  # it takes no list, or not two
                return f"a call with two prompts fails: {type(error).__name__}"
            if len(together) != len(tasks):
                return f"a call with two prompts gives {len(together)} image{'s' if len(together) != 1 else ''}"
            if not all(self._are_alike(a, b) for a, b in zip(alone, together)):
                worst = max(int(_apart(a, b).max()) for a, b in zip(alone, together) if a.shape == b.shape)
                return (
                    f"two prompts in a call give images that are up to {worst} of 255 from those that each gives alone"
                )
        return ""

    def _are_alike(self, a: Pixels, b: Pixels) -> bool:
        if a.shape != b.shape:
            return False
        if _apart(a, b).max() <= ROUNDING:
            return True
        return self.dtype != "float32" and bool(_apart(a, b).mean() <= SHARE * self._effect)

    @cached_property
    def _effect(self) -> float:
        """How far, on average, another prompt takes an image of one seed."""
        tasks = (self._task(0), replace(self._task(0), prompt=self.prompts[-1]))
        a, b = (self._seeded(task, state=1) for task in tasks)
        return float(_apart(a, b).mean()) if a.shape == b.shape else 0.0

    def _seeded(self, task: Task, state: int) -> Pixels:
        with global_state(state):
            return self.draw(Batch((task,)))[0]

    def _task(self, number: int, negative: bool = False) -> Task:
        return Task(
            index=number, prompt=self.prompts[min(number, len(self.prompts) - 1)], seed=SEEDS[number], stem=str(number),
            negative_prompt=NEGATIVES[number] if negative else None, height=self.side, width=self.side,
            num_inference_steps=STEPS if "num_inference_steps" in self.takes else None,
        )  # fmt: skip


def find_out(context: Context, draw: Draw, takes: Collection[str]) -> tuple[Findings, str]:
    """Return what is known of the checkpoint's pipeline, and what the report says of that: kept from an earlier run, or tried
    out now. Rank 0 finds it for all ranks, so that they go the same way.

    Raises:
        UserError: its images cannot be made again, or not in the sizes that the job asks for.
    """
    checkpoint, channel = context.checkpoint, context.channel
    file = file_of(checkpoint, context.config, context.device, context.dtype)

    def find() -> tuple[Findings, str] | None:
        if not context.topology.is_main:
            return None
        if file is not None and (kept := recall(file)) is not None:
            return kept, f"kept in {file}"
        prompts = list(dict.fromkeys(task.prompt for batch in context.batches for task in batch.tasks))
        found = SelfTest(draw, takes, context.dtype, prompts).run()
        try:
            if file is not None:
                keep(file, found)
        except OSError as error:
            return found, f"tried out now; {file} cannot be written ({error.strerror or error})"
        return found, "tried out now"

    said = channel.broadcast(channel.together(find))
    assert said is not None
    findings, source = said
    check_sizes(checkpoint, findings, settings_of(context.batches))
    return findings, f"{checkpoint.pipeline_name}, which has no row in dglaunch's table: {findings.text} ({source})"


def check_sizes(checkpoint: Checkpoint, findings: Findings, tasks: Sequence[Task]) -> None:
    """Refuse sizes at which the pipeline does not draw.

    Raises:
        UserError: with all rows, and the nearest sizes.
    """
    asked = {task.index: (task.height, task.width) for task in tasks}
    wrong = {index: sides for index, sides in asked.items() if any(not _fits(side, findings) for side in sides)}
    if not wrong:
        return
    index, (height, width) = next(iter(wrong.items()))
    rows = f"{len(wrong):,} rows (the first: {index})" if len(wrong) > 1 else f"Row {index}"
    if not findings.sets_size:
        remedy = (
            "draws at a size of its own, whatever it is asked for. Remove height and width (the columns, or the flags)."
        )
    else:
        n = findings.multiple
        near = sorted({n * max(each, 1) for side in (height, width) if side for each in (side // n, -(-side // n))})
        remedy = f"draws in multiples of {n} only (found by trying). Near: {', '.join(map(str, near))}."
    raise UserError(f"{rows} of this rank's share cannot be made: {checkpoint.pipeline_name} {remedy}")


def _fits(side: int | None, findings: Findings) -> bool:
    return side is None or (findings.sets_size and side % findings.multiple == 0)


def _apart(a: Pixels, b: Pixels) -> np.ndarray[tuple[int, ...], np.dtype[np.int16]]:
    return np.abs(a.astype(np.int16) - b.astype(np.int16))


def seeded_by(findings: Findings | None, batch: Batch) -> AbstractContextManager[None]:
    """Where images depend on the global random state: the state that a batch's image has, by its seed."""
    return global_state(batch.tasks[0].seed) if findings is not None and findings.by_global_state else nullcontext()


@contextmanager
def global_state(seed: int) -> Iterator[None]:
    """Seed the random generators that a process shares (torch's on all devices, numpy's, Python's), and put them back."""
    before = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]  # torch has no types for it
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])
