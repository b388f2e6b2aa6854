"""The unit of work: one image to make is one `Task`, with one seed and one file; a `Batch` is what one forward pass makes."""

import hashlib
import json
from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dglaunch.data.images import InputImage

Record = dict[str, object]
"""A JSON object: a ledger line, a row of a table, the text of an image. Others may have written it, so its values are
`object`, and who uses one looks first at what it is."""

ROW_FIELDS = ("negative_prompt", "seed", "width", "height", "num_inference_steps", "guidance_scale")
"""What a row may set for itself (PEERS' conventions); the rest of its columns are carried into the ledger."""


@dataclass(kw_only=True, slots=True)
class Task:
    """One image to make. `None` means that the pipeline's own default is used."""

    index: int
    sample: int = 0
    prompt: str
    seed: int
    stem: str
    """File name without its suffix: the index (000017), with the sample where a row has several (000017_01)."""
    negative_prompt: str | None = None
    width: int | None = None
    height: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    extra: dict[str, Any] | None = None
    """Columns that dglaunch does not know; they go into the ledger as they are."""
    images: "tuple[InputImage, ...]" = ()
    """What an edit starts from, in the order of the row."""
    input_tokens: int = 0
    """Image tokens that they add to the output's."""
    row: str = ""
    """Of an edit: table and line, for what is found out about its images later."""
    error: str | None = None
    """Of an edit: why it cannot be made, known before the run."""

    @property
    def id(self) -> tuple[int, int]:
        """What a ledger line says that it is about: index and sample."""
        return self.index, self.sample

    def content(self) -> dict[str, Any]:
        """All that decides what the image shows, in JSON's types."""
        hashes = {"input_sha256": [image.sha256 for image in self.images]} if self.images else {}
        return {name: getattr(self, name) for name in ("prompt", *ROW_FIELDS)} | hashes

    def origin(self) -> dict[str, Any]:
        """Of an edit: what the ledger says of it besides its content."""
        if not self.row:
            return {}
        return {"instruction": self.prompt, "input_images": [image.name for image in self.images]}

    @property
    def key(self) -> str:
        """Hash of the content; a ledger line with another key belongs to another image."""
        text = json.dumps([self.index, self.sample, *self.content().values()], ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


Bucket = tuple[Hashable, ...]
"""Everything that must be equal inside a batch, in the order of `default_bucket`, and what a family needs besides."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The tasks of one forward pass of one replica."""

    tasks: tuple[Task, ...]

    def __len__(self) -> int:
        return len(self.tasks)

    @property
    def digest(self) -> str:
        """What the ranks of a replica compare: another prompt, seed or order gives another digest."""
        text = "\n".join(f"{task.index}/{task.sample}/{task.seed}/{task.key}" for task in self.tasks)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(kw_only=True, slots=True)
class Result:
    """What a replica's leader sends for one task: encoded bytes, or an error; never a PIL object."""

    task_id: tuple[int, int]
    file_name: str
    record: dict[str, Any]
    """The ledger line (or the line of failures.jsonl), without what the writer adds."""
    data: bytes | None = None
    """None: it failed."""
    written: bool = False
    """Another rank has written it, and the bytes are not here; rank 0 is only told."""

    def as_written(self) -> "Result":
        """The same for rank 0, once it is written."""
        return replace(self, data=None if self.failed else b"", written=True)

    @property
    def failed(self) -> bool:
        return self.data is None


def file_name(task: Task, output_format: str) -> str:
    return f"{task.stem}.{output_format}"
