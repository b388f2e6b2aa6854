"""How far images are from those that they should equal: two pictures, or two folders of results matched task by task.

    found = compare(folder, reference)              # every image of both, by task
    found.greatest, found.share, found.psnr         # of all of them together
    found.worst                                     # the task whose images are furthest apart

Differences are of 255. PSNR is 10 log10(255^2 / mean square difference), in dB. SSIM is eq. 13 of Wang, Bovik, Sheikh and
Simoncelli, "Image quality assessment: from error visibility to structural similarity", IEEE Transactions on Image
Processing 13(4), 2004, with their K1 = 0.01 and K2 = 0.03, in windows of 7 x 7 pixels of equal weight (their own are
Gaussian), averaged over all windows that lie wholly inside the image and over the three color channels.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import reduce
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dglaunch.data.images import BadImage, damage_is_a_bad_image, open_image, to_rgb
from dglaunch.data.task import Record
from dglaunch.files import read_bytes
from dglaunch.output.images import StoredImage, image_of
from dglaunch.output.ledger import OutputFolder
from dglaunch.output.lines import TaskId

if TYPE_CHECKING:
    import numpy as np

    Pixels = np.ndarray[tuple[int, ...], np.dtype[Any]]

SEEN = 2
"""Of 255: differences up to here are rounding, and nobody sees them; the share of pixels beyond it is counted."""
WINDOW = 7
"""Pixels of an SSIM window's side."""
AVERAGES = ("mean", "share", "mean_square", "ssim")
"""Of a Difference, over an image."""
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


# -- two pictures -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How far one picture is from another of the same size."""

    greatest: int
    """Of 255, of any channel of any pixel."""
    mean: float
    """Of 255, over all channels of all pixels."""
    share: float
    """The part of the pixels that have a channel beyond SEEN."""
    mean_square: float
    ssim: float
    """1 where both are equal."""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Difference":
        """Return the difference whose values these are, as JSON has them."""
        return cls(greatest=int(values["greatest"]), **{name: float(values[name]) for name in AVERAGES})

    @property
    def psnr(self) -> float:
        """In dB; infinite where both are equal."""
        return psnr_of(self.mean_square)


def difference(one: "Pixels", other: "Pixels", seen: int = SEEN) -> Difference:
    """Return how far two pictures of 8 bits a channel (height x width x channels) are apart.

    Args:
        seen: differences beyond it are counted in `share`.

    Raises:
        ValueError: they have different sizes.
    """
    import numpy as np

    _refuse_other_size(one, other)
    apart = np.abs(one.astype(np.int32) - other.astype(np.int32))
    return Difference(
        greatest=int(apart.max()),
        mean=float(apart.mean()),
        share=float((apart.max(axis=2) > seen).mean()),
        mean_square=float((apart * apart).mean()),
        ssim=ssim(one, other),
    )


def _refuse_other_size(one: "Pixels", other: "Pixels") -> None:
    if one.shape != other.shape:
        sizes = " and ".join(f"{picture.shape[1]}x{picture.shape[0]}" for picture in (one, other))
        raise ValueError(f"the sizes differ: {sizes}")


def psnr(one: "Pixels", other: "Pixels") -> float:
    """Return the PSNR of two pictures of 8 bits a channel in dB, in a tenth of the time that `difference` takes.

    Raises:
        ValueError: they have different sizes.
    """
    import numpy as np

    _refuse_other_size(one, other)
    apart = np.subtract(one, other, dtype=np.int16).ravel()
    return psnr_of(float(np.square(apart, dtype=np.int32).mean(dtype=np.float64)))


def psnr_of(mean_square: float) -> float:
    return math.inf if mean_square == 0 else 10 * math.log10(255**2 / mean_square)


def ssim(one: "Pixels", other: "Pixels") -> float:
    """Return the structural similarity of two pictures of 8 bits a channel (height x width x channels)."""
    import numpy as np

    # Whole numbers, whose sums are exact, with the rows of a channel one after the other.
    x, y = (np.ascontiguousarray(np.moveaxis(picture, 2, 0), dtype=np.int32) for picture in (one, other))
    channels = map(_ssim_of_channel, x, y)
    return float(np.mean(list(channels)))


def _ssim_of_channel(x: "Pixels", y: "Pixels") -> float:
    """Eq. 13, averaged over the windows."""
    mean_x, mean_y, xx, yy, xy = map(_window_means, (x, y, x * x, y * y, x * y))
    of_both = mean_x * mean_y
    squares = mean_x * mean_x + mean_y * mean_y
    similar = (2 * of_both + C1) * (2 * (xy - of_both) + C2)
    return float((similar / ((squares + C1) * (xx + yy - squares + C2))).mean())


def _window_means(values: "Pixels") -> "Pixels":
    """The mean of each window that lies wholly inside."""
    size = min(WINDOW, *values.shape)
    rows, columns = (length - size + 1 for length in values.shape)
    high: Pixels = reduce(add, (values[n : n + rows] for n in range(size)))
    sums: Pixels = reduce(add, (high[:, n : n + columns] for n in range(size)))
    means: Pixels = sums / (size * size)
    return means


def difference_of_files(one: Path, other: Path, seen: int = SEEN) -> Difference:
    """Return how far the images of two files are apart.

    Raises:
        OSError: one of them cannot be read.
        ValueError: one of them is no image (BadImage), or their sizes differ.
    """
    return difference(pixels_of(read_bytes(one)), pixels_of(read_bytes(other)), seen)


def pixels_of(data: bytes) -> "Pixels":
    """Return an image's pixels: height x width x RGB.

    Raises:
        BadImage: it is none.
    """
    import numpy as np

    with damage_is_a_bad_image(), open_image(data) as image:
        return np.asarray(to_rgb(image))


# -- two folders --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Comparison:
    """How far the images of one folder are from those of another, by task."""

    images: Mapping[TaskId, Difference]
    not_compared: Mapping[TaskId, str] = field(default_factory=dict)
    """Why a task's two images could not be compared: one is missing or damaged, or the sizes differ."""

    @property
    def worst(self) -> TaskId | None:
        """The task whose images are furthest apart: the largest mean square, and with it the lowest PSNR."""
        return max(self.images, key=lambda task: self.images[task].mean_square, default=None)

    @property
    def greatest(self) -> int:
        """Of any channel of any pixel of any image."""
        return max((image.greatest for image in self.images.values()), default=0)

    @property
    def mean(self) -> float:
        return self._mean("mean")

    @property
    def share(self) -> float:
        return self._mean("share")

    @property
    def psnr(self) -> float:
        """Of all images together, in dB; infinite where all are equal."""
        return psnr_of(self._mean("mean_square"))

    @property
    def ssim(self) -> float:
        return self._mean("ssim") if self.images else 1.0

    def _mean(self, name: str) -> float:
        """The average of the images: of all their pixels, where they have one size."""
        return math.fsum(getattr(image, name) for image in self.images.values()) / max(len(self.images), 1)

    def record(self) -> Record:
        """What JSON says of it; a PSNR of None is that of equal images."""
        psnr = self.psnr
        return {
            "num_images": len(self.images),
            "greatest": self.greatest,
            "mean": self.mean,
            "share": self.share,
            "psnr": psnr if math.isfinite(psnr) else None,
            "ssim": self.ssim,
            "worst": list(self.worst) if self.worst is not None else None,
            "images": [
                {"index": index, "sample": sample, **asdict(image)} for (index, sample), image in self.images.items()
            ],
            "not_compared": [
                {"index": index, "sample": sample, "reason": reason}
                for (index, sample), reason in self.not_compared.items()
            ],
        }

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Comparison":
        """Return what `record` was made of.

        Raises:
            LookupError, TypeError, ValueError: it was made of something else.
        """
        images = [dict(entry) for entry in record["images"]]
        return cls(
            {(int(image.pop("index")), int(image.pop("sample"))): Difference.of(image) for image in images},
            {(int(entry["index"]), int(entry["sample"])): str(entry["reason"]) for entry in record["not_compared"]},
        )


def compare(folder: Path, reference: Path, seen: int = SEEN, most: int | None = None) -> Comparison:
    """Compare the images of two output folders, matched by index and sample as their ledgers say.

    Args:
        seen: differences beyond it are counted in `share`.
        most: compare only the first so many tasks.

    Raises:
        UserError: a ledger cannot be read.
    """
    files, expected = (_images(path) for path in (folder, reference))
    images: dict[TaskId, Difference] = {}
    not_compared: dict[TaskId, str] = {}
    for task in sorted(files.keys() | expected.keys())[:most]:
        if task not in files or task not in expected:
            not_compared[task] = f"{folder if task not in files else reference} has no such image"
            continue
        try:
            images[task] = difference(pixels_of(files[task].read()), pixels_of(expected[task].read()), seen)
        except BadImage as error:
            not_compared[task] = f"an image {error}"
        except ValueError as error:
            not_compared[task] = str(error)
        except OSError as error:
            not_compared[task] = f"{error.filename} cannot be read: {error.strerror or error}"
    return Comparison(images, not_compared)


def _images(folder: Path) -> dict[TaskId, StoredImage]:
    """The images that the ledger names."""
    found = ((task, image_of(folder, record)) for task, record in OutputFolder(folder).records_by_id().items())
    return {task: image for task, image in found if image is not None}
