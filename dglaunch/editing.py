"""What each editing family does with its input images, as data. A checkpoint's pipeline class chooses the row.

What a pipeline is called with otherwise, and how xfuser runs it, stands in models.FAMILIES under the same class.
"""

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dglaunch.errors import UserError
from dglaunch.models import FAMILIES, Checkpoint, Family
from dglaunch.plan import Bucket, default_bucket
from dglaunch.tasks import Task

Size = tuple[int, int]
"""Width and height."""
Rule = Callable[[Size, Mapping[str, Any]], Size]
"""A size from that of an input image and the checkpoint's own defaults."""

MEGAPIXEL = 1024 * 1024
KONTEXT_SIZES = (
    (672, 1568), (688, 1504), (720, 1456), (752, 1392), (800, 1328), (832, 1248), (880, 1184), (944, 1104), (1024, 1024),
    (1104, 944), (1184, 880), (1248, 832), (1328, 800), (1392, 752), (1456, 720), (1504, 688), (1568, 672),
)  # fmt: skip
"""What FLUX.1 Kontext was trained on (diffusers' PREFERRED_KONTEXT_RESOLUTIONS)."""


# -- sizes --------------------------------------------------------------------------------------------------------


def _down_to(multiple: int, size: Size) -> Size:
    return size[0] // multiple * multiple, size[1] // multiple * multiple


def _kontext_input(size: Size, defaults: Mapping[str, Any]) -> Size:
    """The trained size nearest in shape; the image's own where the checkpoint says `_auto_resize: false`."""
    if not defaults.get("_auto_resize", True):
        return _down_to(16, size)
    return min(KONTEXT_SIZES, key=lambda trained: (abs(size[0] / size[1] - trained[0] / trained[1]), trained))


def _kontext_output(size: Size, defaults: Mapping[str, Any]) -> Size:
    """As large as the input becomes, or of the checkpoint's `max_area` in its shape. (The pipeline's own default is a
    square, whatever the input.)"""
    width, height = _kontext_input(size, defaults)
    area = defaults.get("max_area", width * height)
    ratio = width / height
    return _down_to(16, (round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)))


def _flux2(size: Size, _defaults: Mapping[str, Any]) -> Size:
    """Its own, at most 1 Mpx."""
    width, height = size
    if width * height > MEGAPIXEL:
        scale = math.sqrt(MEGAPIXEL / (width * height))
        width, height = int(width * scale), int(height * scale)
    return _down_to(16, (width, height))


def _megapixel(size: Size, _defaults: Mapping[str, Any]) -> Size:
    """1 Mpx in the image's shape."""
    width = math.sqrt(MEGAPIXEL * (size[0] / size[1]))
    return round(width / 32) * 32, round(width / (size[0] / size[1]) / 32) * 32


def _glm_input(size: Size, _defaults: Mapping[str, Any]) -> Size:
    return _down_to(16, size)


def _glm_output(size: Size, _defaults: Mapping[str, Any]) -> Size:
    return _down_to(32, size)


# -- the families -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """One editing family: which rows it computes right together, and what sizes it works at."""

    name: str
    """For --model_type."""
    batch_disabled: bool = False
    """One row a call."""
    shared_image_batch: bool = False
    """Rows with the same input images share a call."""
    equal_size_batch: bool = False
    """Rows whose input images come to the same size share a call."""
    multi_image: bool = False
    """Takes several images a row; else exactly one."""
    max_images: int | None = None
    """Of several, the most."""
    reason: str
    """Why it is batched so."""
    input_size: Rule
    """The size at which the pipeline encodes an input image."""
    input_text: str
    output_size: Rule | None = None
    """Output size from the first input image, where the row and the flags name none. None: the pipeline chooses."""
    output_text: str
    sets_size: bool = True
    """Whether width and height can be asked for at all."""
    min_side: int = 1
    max_aspect: float = math.inf
    """What input images the pipeline refuses: checked before it is loaded."""
    loads_from: str | None = None
    """Class of text-to-image checkpoints that have the same parts."""
    known_trouble: str = ""
    """What fails in the library versions that this was written with; put before an item's error."""

    def input_sizes(self, task: Task, defaults: Mapping[str, Any]) -> tuple[Size, ...]:
        """The sizes at which the pipeline encodes a task's images."""
        return tuple(self.input_size(image.size, defaults) for image in task.images)

    def images_argument(self, images: Sequence[Sequence[Any]]) -> Any:
        """What `image=` must be for the images of each task of a batch. The pipelines differ in what a list means."""
        if self.equal_size_batch:
            return [own[0] for own in images]
        return list(images[0]) if self.multi_image else images[0][0]

    @property
    def batch_text(self) -> str:
        shared = ["rows that share their images"] if self.shared_image_batch else []
        return " and ".join([*shared, *(["images of one size"] if self.equal_size_batch else [])]) or "no"


_FLUX2 = ModelConfig(
    name="flux2",
    shared_image_batch=True,
    multi_image=True,
    reason="every image is a reference for every prompt of the call",
    input_size=_flux2,
    input_text="its own, at most 1 Mpx",
    output_size=_flux2,
    output_text="as the first image",
    min_side=64,
    max_aspect=8,
)
STRATEGIES: dict[str, ModelConfig] = {
    "QwenImageEditPlusPipeline": ModelConfig(
        name="qwen",
        batch_disabled=True,
        multi_image=True,
        reason="the pipeline takes several images for one prompt, and refuses a second prompt",
        input_size=_megapixel,
        input_text="1 Mpx",
        output_text="1 Mpx, in the shape of the last image",
    ),
    "QwenImageEditPipeline": ModelConfig(
        name="qwen_singleimg",
        equal_size_batch=True,
        reason="a list of images goes with the list of prompts (2e-6 from one by one); it is resized to the first's size",
        input_size=_megapixel,
        input_text="1 Mpx",
        output_text="1 Mpx, in the shape of the image",
    ),
    "Flux2Pipeline": _FLUX2,
    "Flux2KleinPipeline": replace(_FLUX2, name="flux2_klein"),
    "FluxKontextPipeline": ModelConfig(
        name="flux1_kontext",
        shared_image_batch=True,
        equal_size_batch=True,
        reason="a list of images goes with the list of prompts (1e-6 from one by one); it is resized to the first's size",
        input_size=_kontext_input,
        input_text="the trained size nearest in shape",
        output_size=_kontext_output,
        output_text="as the image becomes",
        loads_from="FluxPipeline",
    ),
    "LongCatImageEditPipeline": ModelConfig(
        name="longcat",
        batch_disabled=True,
        reason="the pipeline refuses a second prompt",
        input_size=_megapixel,
        input_text="1 Mpx",
        output_text="1 Mpx, in the shape of the image; cannot be set",
        sets_size=False,
    ),
    "GlmImagePipeline": ModelConfig(
        name="glm_image",
        batch_disabled=True,
        multi_image=True,
        reason="several images a request, and its first half draws all prompts' tokens from one random state",
        input_size=_glm_input,
        input_text="its own",
        output_size=_glm_output,
        output_text="as the first image",
        known_trouble="editing with GLM-Image fails inside transformers in these library versions",
    ),
}
"""Pipeline class -> family."""
FAKE_FAMILY = "flux1_kontext"
"""What --backend fake is without --model_type."""


def xdit_families() -> list[str]:
    return [row.name for name, row in STRATEGIES.items() if FAMILIES[name].xdit is not None]


# -- a checkpoint as an editor ------------------------------------------------------------------------------------


def as_editor(checkpoint: Checkpoint, model_type: str | None) -> Checkpoint:
    """The checkpoint as `edit` uses it: with the editing pipeline's class, rules and defaults.

    Raises:
        UserError: there is no such family, or the checkpoint is of none.
    """
    by_name = {row.name: pipeline_class for pipeline_class, row in STRATEGIES.items()}
    if model_type is not None and model_type not in by_name:
        near = difflib.get_close_matches(model_type, by_name, n=1, cutoff=0.0)[0]
        raise UserError(
            f"--model_type {model_type} is no editing family. The nearest: {near}; all: {', '.join(by_name)}."
        )
    own = checkpoint.defaults.get("edit")
    if model_type is not None:
        chosen = by_name[model_type]
    elif checkpoint.pipeline_class == "fake":
        chosen = by_name[FAKE_FAMILY]
    elif checkpoint.pipeline_class in STRATEGIES:
        chosen = checkpoint.pipeline_class
    else:
        fitting = [name for name, row in STRATEGIES.items() if row.loads_from == checkpoint.pipeline_class]
        if not fitting or own is None:
            hint = f" ({STRATEGIES[fitting[0]].name} has the same parts)" if fitting else ""
            raise UserError(
                f"{checkpoint.source} is a {checkpoint.pipeline_class}, which does not edit images. Choose an editing "
                f"checkpoint, or, if its weights were trained to edit, name its family with --model_type{hint}: "
                f"{', '.join(by_name)}."
            )
        chosen = fitting[0]
    row = STRATEGIES[chosen]
    family = replace(FAMILIES[chosen], batch=not row.batch_disabled, batch_reason=row.reason)
    defaults = {name: value for name, value in checkpoint.defaults.items() if name != "edit"} | (own or {})
    return replace(checkpoint, pipeline_class=chosen, family=_fake(family, checkpoint), defaults=defaults)


def _fake(family: Family, checkpoint: Checkpoint) -> Family:
    """A fake has the family's batches, but not its demands on prompts and sizes."""
    if checkpoint.pipeline_class != "fake":
        return family
    return replace(family, size_multiple=1, takes_negative=True, guidance_needs_negative=False)


# -- planning -----------------------------------------------------------------------------------------------------


def bucket_of(checkpoint: Checkpoint) -> Callable[[Task], Bucket]:
    """What must be equal for a batch that the family computes right: default_bucket's, then the sizes of the inputs,
    then, where a call has one set of images, that set."""
    row = STRATEGIES[checkpoint.pipeline_class]

    def bucket(task: Task) -> Bucket:
        one_set = row.shared_image_batch and not row.equal_size_batch
        same_set = tuple(image.sha256 for image in task.images) if one_set else ()
        return (*default_bucket(task), row.input_sizes(task, checkpoint.defaults), same_set)

    return bucket
