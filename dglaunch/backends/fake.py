"""A backend without a model: images drawn from the seed, and trouble on request. For tests, dry runs and demos.

A prompt may hold markers in square brackets; each concerns the batch that the prompt is in (docs/HOW_DO_I.md has them, too):

    [sleep 0.5]    the batch takes that many seconds longer
    [lag 0.5]      the same, but only on the last rank
    [deaf 0.5]     as [sleep], but in one long step in which no signal is noticed
    [raise]        generate() raises while this prompt is in the batch
    [item error]   this prompt alone gets an ItemError
    [oom 2]        out of memory if the batch has more than 2 images
    [interrupt]    the process sends itself SIGTERM
    [kill]         the process dies with SIGKILL
"""

import hashlib
import os
import re
import signal
import time
from collections.abc import Sequence

import numpy as np
from PIL import Image

from dglaunch.backends.base import Context, Facts, ItemError, Slot
from dglaunch.backends.input_prefetch import InputPrefetcher
from dglaunch.data.task import Batch, Task
from dglaunch.errors import Drained

SIDE = 64
_MARKER = re.compile(r"\[(sleep|lag|deaf|raise|item error|oom|interrupt|kill) ?([\d.]*)\]")


class OutOfMemoryError(RuntimeError):
    """This error has the name of torch's, by which the run recognizes it."""


class FakeBackend:
    """A fake backend draws noise from the seed over a color from the prompt, and does what a prompt's markers ask."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.seconds: dict[str, float] = {}
        self.inputs = InputPrefetcher(
            context.batches if context.config.takes_inputs and not context.config.debug else ()
        )

    def load(self) -> Facts:
        return Facts(defaults={"height": SIDE, "width": SIDE, "num_inference_steps": 1, "guidance_scale": 1.0})

    def generate(self, batch: Batch) -> Sequence[Slot] | None:
        items = self.inputs.readable(batch, self.context.channel)
        start = time.perf_counter()
        self._obey([marker for task in items.batch.tasks for marker in _MARKER.findall(task.text)], len(items.batch))
        slots = [_slot(task) for task in items.batch.tasks]
        self.seconds["denoise"] = self.seconds.get("denoise", 0.0) + time.perf_counter() - start
        return items.with_errors(slots)

    def _obey(self, markers: Sequence[tuple[str, str]], batch_size: int) -> None:
        """Do what the prompts of a batch ask for: each marker's kind, and its number in words."""
        for kind, value in markers:
            if kind == "oom" and batch_size > int(value):
                raise OutOfMemoryError(f"fake out of memory: {batch_size} images, {value} fit")
            if kind == "raise":
                raise RuntimeError("a poisoned prompt, as asked")
            if kind in ("interrupt", "kill"):
                os.kill(os.getpid(), signal.SIGTERM if kind == "interrupt" else signal.SIGKILL)
        time.sleep(sum(float(value) for kind, value in markers if kind == "deaf"))
        topology = self.context.topology
        slow = ("sleep", "lag") if topology.rank == topology.world_size - 1 else ("sleep",)
        self._sleep(sum(float(value) for kind, value in markers if kind in slow))

    def _sleep(self, seconds: float) -> None:
        """In steps, so that a signal is noticed as between denoising steps."""
        end = time.perf_counter() + seconds
        while (left := end - time.perf_counter()) > 0:
            time.sleep(min(left, 0.05))
            if self.context.should_stop():
                raise Drained

    def close(self) -> None:
        pass


def _slot(task: Task) -> Slot:
    return ItemError("refused, as asked") if "[item error]" in task.text else draw(task)


def draw(task: Task) -> Image.Image:
    """Draw noise from the seed over a color from the prompt: any mix-up of index, prompt or seed shows."""
    height, width = task.height or SIDE, task.width or SIDE
    noise = np.random.default_rng(task.seed).integers(0, 64, (height, width, 3), dtype=np.uint8)
    drawn = bytes.fromhex(task.key) if task.rewritten is None else hashlib.sha256(task.rewritten.encode()).digest()
    color = np.frombuffer(drawn[:3], dtype=np.uint8) // 2
    return Image.fromarray(noise + color)
