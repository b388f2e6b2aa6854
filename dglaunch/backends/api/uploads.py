"""Input images as an API takes them: a file's own bytes where it can, else a new PNG or JPEG."""

import io
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from dglaunch.data.task import Task
from dglaunch.data.images import (
    BadImage,
    InputImage,
    damage_is_a_bad_image,
    decode,
    describe,
    open_image,
    orientation_of,
)

MEDIA_TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}
MASK_BYTES = 4_000_000
"""Of a mask, at the most."""


class Upload(NamedTuple):
    """An input image as it is sent to an API."""

    data: bytes
    media_type: str


@lru_cache(maxsize=32)
def upload(image: InputImage, formats: frozenset[str]) -> Upload:
    """The file's own bytes where its format is one of `formats`, it is upright, in sRGB and no animation. Else a new JPEG of a
    JPEG, a PNG of all others: upright, RGB, the first picture of an animation.

    Raises:
        BadImage: it cannot be decoded, or is another than when the run began.
    """
    data = image.read()
    with damage_is_a_bad_image():
        opened = open_image(data, image.shape.area)
        kind = "JPEG" if opened.format == "MPO" else str(opened.format)
        moves = kind != "JPEG" and getattr(opened, "is_animated", False)
        fits = kind in formats and not moves and orientation_of(opened, data) == 1 and image.converted is None
        opened.load()  # a torn file is found here, not paid for
    if fits:
        return Upload(data, MEDIA_TYPES[kind])
    kind = "JPEG" if kind == "JPEG" and kind in formats else "PNG"
    buffer = io.BytesIO()
    decode(data, image.shape.area).save(buffer, kind, **({"quality": 95} if kind == "JPEG" else {"compress_level": 1}))
    return Upload(buffer.getvalue(), MEDIA_TYPES[kind])


def uploads(task: "Task", formats: frozenset[str], most: int | None) -> list[Upload]:
    """What a task sends, in the order of its row; `most` is how many bytes one image may have.

    Raises:
        BadImage: with all that is wrong with the row's images.
    """
    sent: list[Upload] = []
    bad: list[tuple[str, BadImage]] = []
    for image in task.images:
        try:
            sent.append(upload(image, formats))
        except BadImage as error:
            bad.append((image.name, error))
            continue
        if most is not None and len(sent[-1].data) > most:
            bad.append((image.name, BadImage(f"is {len(sent[-1].data):,} bytes; the API takes at most {most:,}")))
    if bad:
        raise BadImage(f"{task.row}: {describe(bad)}")
    return sent


def mask_of(task: "Task") -> Upload | None:
    """A task's mask as its file has it, if it has one.

    Raises:
        BadImage: it is larger, or not there any more.
    """
    if task.mask is None:
        return None
    try:
        data = task.mask.read()
    except BadImage as error:
        raise BadImage(f"{task.row}: mask {task.mask.name} {error}") from None
    if len(data) > MASK_BYTES:
        raise BadImage(
            f"{task.row}: mask {task.mask.name} is {len(data):,} bytes; the API takes at most {MASK_BYTES:,}"
        )
    return Upload(data, MEDIA_TYPES["PNG"])
