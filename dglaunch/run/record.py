"""What is written about a task: its ledger line, its line of failures.jsonl, and what an image file says of itself."""

import re
import threading
import time
from collections.abc import Set
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeAlias

from dglaunch.backends.base import Context, Facts, ItemError
from dglaunch.config import FILE, IMAGE, settings_that
from dglaunch.data.edits import saved_names
from dglaunch.data.prompt_windows import LEDGER_KEYS
from dglaunch.data.task import ROW_FIELDS, Record, Result, Task, file_name
from dglaunch.output.batch_jobs import API_JOB
from dglaunch.output.shards import IMAGE_SHARD
from dglaunch.system import versions

if TYPE_CHECKING:
    from PIL.Image import Image

    from dglaunch.output.whole_file import WholeFile

Picture: TypeAlias = "Image | WholeFile"
"""A finished image: of a pipeline, or the file that an API sent."""
OWN_KEYS = frozenset(
    {"file_name", "bytes", "index", "sample", "prompt", *ROW_FIELDS, "key", "sha256", "rank", "node", "batch_size"}
    | {"seconds", "time", "error", "instruction", "input_images", "input_sha256", "input_file_names", "seed_sent"}
    | {"input_converted", "redo", "redo_of", "mask_sha256", "answer_text", "revised_prompt", "api_server", API_JOB}
    | {"control_sha256", "control_image", IMAGE_SHARD}
    | {"lora_sha256", "lora_files", "rewritten_prompt", "cost_usd"}
    | set(LEDGER_KEYS)
)
"""All that dglaunch itself ever says in a ledger, whatever the command: there they mean what it means by them, and a row's
columns of these names get others."""
IMAGE_OF = {"image": "file_name", "input": "input_file_names"}
"""Columns that the library `datasets` makes of ours when it loads a folder."""
NAMES_A_FILE = re.compile(r"(?:^|(?<=_))file_name(?=s?$)")
"""Columns that it takes for paths of images in the folder, also inside of others."""


def renamed(columns: Record, taken: Set[str]) -> Record:
    """Return a row's columns under names that neither dglaunch nor `datasets` gives another meaning: `row_key` for `key`."""
    found: Record = {}
    for column, value in columns.items():
        name = column
        if column in taken or NAMES_A_FILE.search(column):
            name = "row_" + NAMES_A_FILE.sub("filename", column)
            while name in taken or name in columns or name in found:
                name = f"row_{name}"
        found[name] = _without_files(value)
    return found


def _without_files(value: object) -> object:
    if isinstance(value, dict):
        return {NAMES_A_FILE.sub("filename", name): _without_files(item) for name, item in value.items()}
    return [_without_files(item) for item in value] if isinstance(value, list) else value


class Recorder:
    """A Recorder makes what is sent for a task, from the task, what the backend gave for it, and the backend's facts."""

    def __init__(self, context: Context, facts: Facts) -> None:
        self.encode_seconds = 0.0
        """Spent in encoding, by all threads together."""
        self._context = context
        self._facts = facts
        self._given = settings_that(FILE | IMAGE, context.config)
        self._versions = {name: versions()[name] for name in ("dglaunch", *facts.shaped_by) if name in versions()}
        self._lock = threading.Lock()

    def image(self, task: Task, image: Picture, batch_size: int, seconds: float) -> Result:
        """Encode a finished image; `seconds` are those of its batch."""
        from dglaunch.output import encode, parameters

        config = self._context.config
        shown = self._content(task) | {"width": image.width, "height": image.height}
        start = time.perf_counter()
        description = shown | self._description(task)
        texts = ""
        if config.png_parameters:
            texts = parameters.parameters(description, self._facts.scheduler, self._facts.scheduler_options)
        data = encode.encode(image, config.output_format, description, texts)
        digest = encode.sha256(data)
        with self._lock:
            self.encode_seconds += time.perf_counter() - start
        record: Record = {"index": task.index, "sample": task.sample, **shown, "key": task.key, "sha256": digest}
        record |= self._circumstances(batch_size, seconds) | (task.redo or {})
        if config.saves_inputs:
            record["input_file_names"] = list(saved_names(task))
        record |= self._facts.ledger | self._facts.of_task.pop(task.id, {})
        pictures = {name for name, source in IMAGE_OF.items() if source in record or source == "file_name"}
        record |= renamed(task.extra or {}, OWN_KEYS | record.keys() | pictures)
        return Result(task_id=task.id, file_name=file_name(task, config.output_format), record=record, data=data)

    def failure(self, task: Task, error: ItemError, batch_size: int = 0, seconds: float = 0.0) -> Result:
        """A task without an image; a batch of none is that of a task which was never run."""
        record: Record = {"index": task.index, "sample": task.sample, "error": error.message, **self._content(task)}
        record |= self._circumstances(batch_size, seconds) | self._facts.of_task.pop(task.id, {})
        name = file_name(task, self._context.config.output_format)
        return Result(task_id=task.id, file_name=name, record=record)

    def _content(self, task: Task) -> Record:
        """The task's content, with what the pipeline used where the task said nothing."""
        content: Record = {
            name: value if value is not None else self._facts.defaults.get(name)
            for name, value in task.content().items()
        }
        if task.lora:
            content["lora_files"] = [self._context.checkpoint.loras.by_name[use.name].source for use in task.lora]
        if task.rewritten is not None:
            content["rewritten_prompt"] = task.rewritten
        return content | task.origin()

    def _description(self, task: Task) -> Record:
        """What an image file says of itself besides the task's content: all that `dglaunch replay` needs. What would
        differ between batch sizes or world sizes is left out, so that the bytes of the file do not depend on them."""
        chosen = {"width", "height"} | {name for name, value in self._facts.defaults.items() if value is not None}
        return {
            "index": task.index,
            "sample": task.sample,
            "model": self._context.config.backend.model_name,
            "dtype": self._context.dtype,
            **self._given,
            **self._context.checkpoint.weights_identity,
            "defaults": [name for name, value in task.content().items() if value is None and name in chosen],
            "versions": self._versions,
        }

    def _circumstances(self, batch_size: int, seconds: float) -> Record:
        """Where and when an image was made, with how many others, and how long that batch took."""
        return {
            "rank": self._context.topology.rank,
            "node": self._context.topology.node,
            "batch_size": batch_size,
            "seconds": round(seconds, 3),
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        }
