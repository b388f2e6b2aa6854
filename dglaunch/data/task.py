"""The unit of work: one image to make is one `Task`, with one seed and one file; a `Batch` is what one forward pass makes."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from dglaunch.models.input_roles import Role
from dglaunch.models.lora import LoraUse, text_of
from dglaunch.models.shape import Shape

if TYPE_CHECKING:
    from dglaunch.data.images import InputImage

Record = dict[str, object]
"""A JSON object: a ledger line, a row of a table, the text of an image. Others may have written it, so its values are
`object`, and who uses one looks first at what it is."""

SAMPLING = ("negative_prompt", "seed", "width", "height", "num_inference_steps", "guidance_scale")
"""What a row may set of how it is drawn. Their order is part of a task's key."""
LORA = "lora"
ROW_FIELDS = (*SAMPLING, LORA)
"""What a row may set for itself; the rest of its columns are carried into the ledger."""


INPUT_FIELDS: Mapping[str, Role] = MappingProxyType({"strength": "image", "control_scale": "control"})
"""What a row may set besides where it has which input image; they are part of its key only there."""


def goes_with(name: str, edits: bool) -> Role:
    """Return the input image without which one of INPUT_FIELDS does nothing: an edit's strength is that of painting within its
    mask."""
    return "mask" if edits and name == "strength" else INPUT_FIELDS[name]


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
    lora: tuple[LoraUse, ...] | None = None
    """Which of the job's LoRAs it uses, and how strongly; None: the job has none."""
    extra: Record | None = None
    """Columns that dglaunch does not know; they go into the ledger as they are."""
    images: "tuple[InputImage, ...]" = ()
    """What it starts from, in the order of the row."""
    mask: "InputImage | None" = None
    """What of the first of them is painted anew."""
    control: "InputImage | None" = None
    """What steers a ControlNet."""
    strength: float | None = None
    """How much of the way from the image to noise it begins."""
    control_scale: float | None = None
    """How much the ControlNet steers."""
    roles: tuple[Role, ...] = ()
    """What its input images are for, where a pipeline of their own draws from them; () of an edit without a mask."""
    is_fitted: bool = False
    """Of text to image: whether its input images are brought to its size. (Pipelines that edit bring them to their own.)"""
    input_tokens: int = 0
    """Image tokens that they add to the output's."""
    row: str = ""
    """Where it has input images: table and line, for what is found out about them later."""
    error: str | None = None
    """Of the same: why it cannot be made, known before the run."""
    rewritten: str | None = None
    """What a language model made of the prompt, before the images are made; None: nothing."""
    unusable: tuple[str, ...] = ()
    """Of such an edit: the names of its input images, of which `images` has only those that can be read."""
    redo: Record | None = None
    """Where `dglaunch redo` makes it anew: what its ledger line says of that (`redo`, `redo_of`)."""

    @property
    def id(self) -> tuple[int, int]:
        """What a ledger line says that it is about: index and sample."""
        return self.index, self.sample

    @property
    def text(self) -> str:
        """What the model draws from: the prompt, or what it was rewritten to."""
        return self.prompt if self.rewritten is None else self.rewritten

    def content(self) -> Record:
        """All that the row says of what the image shows, in JSON's types."""
        hashes: Record = {"input_sha256": [image.sha256 for image in self.images]} if self.images else {}
        if self.mask is not None:
            hashes["mask_sha256"] = self.mask.sha256
        if self.lora is not None:
            hashes[LORA] = text_of(self.lora)
        if self.lora:
            hashes["lora_sha256"] = [use.sha256 for use in self.lora]
        return {name: getattr(self, name) for name in ("prompt", *SAMPLING)} | hashes | self._of_inputs()

    def _of_inputs(self) -> Record:
        """What besides decides the image where it has input images."""
        said: Record = {name: getattr(self, name) for name in INPUT_FIELDS if getattr(self, name) is not None}
        return said if self.control is None else {"control_sha256": self.control.sha256, **said}

    @property
    def inputs(self) -> "tuple[InputImage, ...]":
        """All input images: those that it starts from, the mask, the control image."""
        return (*self.images, *(image for image in (self.mask, self.control) if image is not None))

    def origin(self) -> Record:
        """Where it has input images: what the ledger says of it besides its content."""
        if not self.row:
            return {}
        converted = [image.converted for image in self.images]
        said: Record = {} if self.is_fitted else {"instruction": self.prompt}
        names = list(self.unusable) or [image.name for image in self.images]
        if names or not self.is_fitted:
            said["input_images"] = names
        if any(converted):
            said["input_converted"] = converted
        if self.mask is not None:
            said["mask"] = self.mask.name
        if self.control is not None:
            said["control_image"] = self.control.name
        return said

    @property
    def key(self) -> str:
        """Hash of the content; a ledger line with another key belongs to another image. LoRAs count by what their files hold:
        not by their names, and not at all where a row uses none."""
        content, others = self.content(), self._of_inputs()
        if content.pop(LORA, ""):
            content[LORA] = [use.scale for use in self.lora or ()]
        values = [value for name, value in content.items() if name not in others]
        named = [others] if others else []  # by name: a strength is no scale
        text = json.dumps([self.index, self.sample, *values, *named], ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """All that must be equal inside a batch: what every pipeline needs, then what some families need besides."""

    height: int | None = None
    """As given; None: the pipeline's default."""
    width: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    has_negative: bool = False
    input_tokens: int = 0
    """Tokens that input images add."""
    input_shapes: tuple[Shape, ...] = ()
    """The shapes at which the pipeline encodes the input images."""
    input_sha256: tuple[str, ...] = ()
    """The input images themselves, where a call has one set of them."""
    roles: tuple[Role, ...] = ()
    """What the input images are for: each combination has a pipeline of its own."""
    strength: float | None = None
    control_scale: float | None = None
    text_lengths: tuple[int, ...] = ()
    """Tokens of the prompt and its negative one in units of the family's text bucket, where a call has no mask."""
    lora: str = ""
    """The LoRAs and their weights, where rows with others may not share a call."""
    row: int | None = None
    """The row's index, where a request makes samples of one row."""

    @property
    def is_of_one_task(self) -> bool:
        """Whether there is more in it than tasks of one kind have alike: their texts, their number, which images they begin from."""
        return bool(self.text_lengths or self.input_sha256 or self.row is not None)


def plain_bucket(task: Task) -> Bucket:
    """Return what every pipeline needs to be equal inside a batch."""
    return Bucket(
        height=task.height,
        width=task.width,
        num_inference_steps=task.num_inference_steps,
        guidance_scale=task.guidance_scale,
        has_negative=task.negative_prompt is not None,
        input_tokens=task.input_tokens,
        roles=task.roles,
        strength=task.strength,
        control_scale=task.control_scale,
    )


@dataclass(frozen=True, slots=True)
class BatchSize:
    """Images per forward pass, and why so many."""

    size: int
    reason: str


@dataclass(frozen=True, slots=True)
class Batch:
    """The tasks of one forward pass of one replica."""

    tasks: tuple[Task, ...]

    def __len__(self) -> int:
        return len(self.tasks)

    @property
    def digest(self) -> str:
        """What the ranks of a replica compare: another prompt, seed or order gives another digest."""
        text = "\n".join(f"{task.index}/{task.sample}/{task.seed}/{task.key}/{task.rewritten}" for task in self.tasks)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(kw_only=True, slots=True)
class Result:
    """What a replica's leader sends for one task: encoded bytes, or an error; never a PIL object."""

    task_id: tuple[int, int]
    file_name: str
    record: Record
    """The ledger line (or the line of failures.jsonl), without what the writer adds."""
    data: bytes | None = None
    """None: it failed."""
    written: bool = False
    """Another rank has written it, and the bytes are not here: rank 0 only counts it."""
    bytes_elsewhere: int = 0
    """How many bytes those are."""

    @property
    def num_bytes(self) -> int:
        """Of the image, wherever it is written."""
        return self.bytes_elsewhere if self.written else len(self.data or b"")

    def as_written(self) -> "Result":
        """The same for rank 0, once it is written."""
        return replace(self, data=None if self.failed else b"", written=True, bytes_elsewhere=self.num_bytes)

    @property
    def failed(self) -> bool:
        return self.data is None


def file_name(task: Task, output_format: str) -> str:
    return f"{task.stem}.{output_format}"
