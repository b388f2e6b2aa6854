"""A certificate: what was found about a model on a machine, as certify.json and as a page to look at.

    certificate = read(folder)              # None where there is none yet
    certificate.results.append(result)
    certificate.write(folder)               # certify.json, after each case
    write_page(folder, certificate)         # certify.html, with the pictures that differ most beside each other

The page holds its pictures and its style, and asks no network for anything.
"""

import base64
import io
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from dglaunch import strict_json
from dglaunch.atomic import atomic_write
from dglaunch.data.task import Record
from dglaunch.errors import OutputError, UserError
from dglaunch.files import is_regular, open_regular, read_bytes
from dglaunch.output.differences import Comparison, pixels_of
from dglaunch.output.images import image_of
from dglaunch.output.ledger import OutputFolder
from dglaunch.output.lines import TaskId
from dglaunch.output.ownership import refuse_to_replace
from dglaunch.output.page_parts import policy
from dglaunch.output.templates import template, text_of

if TYPE_CHECKING:
    from dglaunch.output.differences import Pixels

RECORD = "certify.json"
PAGE = "certify.html"
CASES = "cases"
"""The folder of the output folders."""
LOGS = "logs"
"""The folder of what the cases said."""
LOG_HEAD = b"dglaunch certify: "
"""How a log begins; what the case was follows."""
SHOWN = 3
"""Images of a case on the page."""
SIDE = 320
"""Pixels of a picture on the page, at most."""


@dataclass(kw_only=True, slots=True)
class Result:
    """What became of one case."""

    name: str
    shows: str
    """What is right if its images are the reference's."""
    ranks: int
    command: str = ""
    """As it can be typed again."""
    refused: str = ""
    """Why it cannot be run here."""
    failed: str = ""
    """How it broke off."""
    outside: list[str] = field(default_factory=list)
    """What of it is outside of the limits."""
    comparison: Comparison | None = None
    """With the reference's images."""
    images_per_s: float | None = None
    seconds: float | None = None
    """From the first batch to the last image written."""
    planned_seconds: float | None = None
    idle: float | None = None
    """The part of these seconds in which the replicas were not inside the pipeline, on average."""
    peak_memory: int | None = None
    """Bytes, of the rank that needed most: of its GPU, or of its process on a CPU."""
    planned_memory: int | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def slug(self) -> str:
        """The name as a file or an address has it."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower())

    @property
    def folder(self) -> str:
        """Where its images are, below the certificate's folder."""
        return f"{CASES}/{self.slug}"

    @property
    def log(self) -> str:
        """What it said, below the certificate's folder."""
        return f"{LOGS}/{self.slug}.txt"

    @property
    def is_wrong(self) -> bool:
        return bool(self.failed or self.outside)

    @property
    def verdict(self) -> str:
        """In one or two words."""
        if self.refused:
            return "not possible"
        if self.failed:
            return "failed"
        if self.outside:
            return "outside limits"
        if self.comparison is None:
            return "the reference"
        return "equal" if self.comparison.greatest == 0 else "within limits"


NUMBERS = ("images_per_s", "seconds", "planned_seconds", "idle", "peak_memory", "planned_memory")


@dataclass(kw_only=True, slots=True)
class Certificate:
    """All that was found so far."""

    asked: Record
    """What it is about: another value of these is another certificate."""
    about: Record = field(default_factory=dict)
    """Hardware, limits and what the plan's figures are made of."""
    results: list[Result] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        """Replace certify.json in one step.

        Raises:
            OutputError: it cannot be written.
        """
        results = [
            asdict(result)
            | {
                "comparison": result.comparison.record() if result.comparison is not None else None,
                "verdict": result.verdict,
            }
            for result in self.results
        ]
        _write(
            folder / RECORD, strict_json.dumps({"certificate": self.asked, **self.about, "cases": results}, indent=1)
        )

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Certificate":
        """Return what `write` has written; the folder is the user's, so its values are looked at.

        Raises:
            LookupError, TypeError, ValueError: it is something else.
        """
        results = [_result_of(entry) for entry in record["cases"]]
        about = {name: value for name, value in record.items() if name not in ("certificate", "cases")}
        return cls(asked=dict(record["certificate"]), about=about, results=results)


def _result_of(entry: Mapping[str, Any]) -> Result:
    values: dict[str, Any] = {name: entry[name] for name in NUMBERS}
    if any(value is not None and not isinstance(value, int | float) for value in values.values()):
        raise TypeError("a number is none")
    values |= {name: str(entry[name]) for name in ("name", "shows", "command", "refused", "failed")}
    compared = entry["comparison"]
    return Result(
        **values,
        ranks=int(entry["ranks"]),
        notes=[str(note) for note in entry["notes"]],
        comparison=Comparison.of(compared) if compared is not None else None,
    )


def read(folder: Path) -> Certificate | None:
    """Return the certificate that an earlier start has begun in a folder, or None where the folder is new or empty.

    Raises:
        UserError: the folder has something else.
    """
    lock = OutputFolder(folder).lock_file().name
    if not folder.is_dir() or all(path.name == lock for path in folder.iterdir()):
        return None
    try:
        found = strict_json.loads(read_bytes(folder / RECORD))
        if not isinstance(found, dict):
            raise TypeError
        return Certificate.of(found)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise UserError(
            f"{folder} is there and holds no {RECORD} that dglaunch certify can go on with. Choose another --output_dir, or "
            "remove it."
        ) from None


def refuse_others(folder: Path, results: Sequence[Result]) -> None:
    """Check that what these cases and their page are about to write replaces nothing of the user's, and leads nowhere else.

    Raises:
        UserError: it would.
    """
    refuse_to_replace(folder / PAGE)
    filled = [folder / CASES, folder / LOGS, *(folder / result.folder for result in results)]
    others = [path for path in filled if path.is_symlink() or (path.exists() and not path.is_dir())]
    others += [log for result in results if not _may_replace(log := folder / result.log)]
    if others:
        raise UserError(
            f"{others[0]} is there, and dglaunch certify did not make it. Choose another --output_dir, or move it away."
        )


def _may_replace(log: Path) -> bool:
    try:
        with open_regular(log) as said:
            return is_regular(log) and said.read(len(LOG_HEAD)) == LOG_HEAD
    except OSError:
        return not os.path.lexists(log)


def begin_log(folder: Path, result: Result) -> None:
    """Make the log of a case anew, with its first line; `refuse_others` has come first.

    Raises:
        OutputError: it cannot be written.
    """
    _write(folder / result.log, f"{LOG_HEAD.decode()}{result.name}\n")


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}.") from None


# -- the page -----------------------------------------------------------------------------------------------------


def write_page(folder: Path, certificate: Certificate, reference: str) -> Path:
    """Write the page in one step and return its path.

    Args:
        reference: the name of the case that the others are compared with.

    Raises:
        MissingPackage: jinja2 is not there.
        OutputError: it cannot be written.
    """
    page = template("certify.html", "The page")
    style = text_of("gallery.css", "certify.css")
    expected = next((folder / result.folder for result in certificate.results if result.name == reference), folder)
    text = page.render(
        certificate=certificate,
        head=HEAD,
        rows=list(zip(certificate.results, table_of(certificate.results))),
        wrong=[result for result in certificate.results if result.is_wrong],
        pictures={
            result.name: _pictures(folder, folder / result.folder, expected, result.comparison)
            for result in certificate.results
            if result.comparison is not None
        },
        style=style,
        policy=policy(style, ""),
    )
    _write(folder / PAGE, text)
    return folder / PAGE


def _pictures(page_folder: Path, folder: Path, expected: Path, comparison: Comparison) -> list[Record]:
    """Of the images of a case those that are furthest from the reference's, with both and what is between them."""
    furthest = sorted(comparison.images, key=lambda task: comparison.images[task].mean_square, reverse=True)
    tasks = [task for task in furthest if comparison.images[task].greatest][:SHOWN]
    return [_picture(page_folder, folder, expected, task) | {"of": comparison.images[task]} for task in tasks]


def _picture(page_folder: Path, folder: Path, expected: Path, task: TaskId) -> Record:
    import numpy as np

    found = {place: OutputFolder(place).records_by_id().get(task, {}) for place in (folder, expected)}
    images = [image for place, record in found.items() if (image := image_of(place, record)) is not None]
    try:
        one, other = (pixels_of(image.read()) for image in images)
    except (OSError, ValueError):  # they were there when they were compared
        return {"task": task, "prompt": "", "missing": True}
    apart = np.abs(one.astype(np.int32) - other.astype(np.int32))
    times = 255 / max(int(apart.max()), 1)
    return {
        "task": task,
        "missing": False,
        "prompt": str(found[expected].get("prompt", "")),
        "links": [quote(image.path.relative_to(page_folder).as_posix()) for image in images],
        "one": _address(one),
        "other": _address(other),
        "apart": _address((apart * times).astype(np.uint8), is_difference=True),
        "times": times,
    }


def _address(pixels: "Pixels", is_difference: bool = False) -> str:
    """A picture as a data address. Of a large difference the largest value of each block is kept: single pixels must not fade."""
    from PIL import Image

    block = -(-max(pixels.shape[:2]) // SIDE)
    if is_difference and block > 1:
        height, width = (length // block * block for length in pixels.shape[:2])
        blocks = pixels[:height, :width].reshape(height // block, block, width // block, block, -1)
        pixels = blocks.max(axis=(1, 3))
    image = Image.fromarray(pixels)
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=90, lossless=is_difference)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def table_of(results: Sequence[Result]) -> list[list[str]]:
    """Return the results as rows of words, for the terminal and the page."""
    return [
        [result.name, str(result.ranks), *_far(result.comparison), *_measured(result), result.verdict]
        for result in results
    ]


HEAD = ("case", "ranks", "greatest", "mean", "beyond 2", "PSNR", "SSIM", "images/s", "idle", "seconds (plan)",
        "GiB a rank (plan)", "verdict")  # fmt: skip


def _far(comparison: Comparison | None) -> list[str]:
    if comparison is None or not comparison.images:
        return ["-"] * 5
    equal = comparison.greatest == 0
    return [
        str(comparison.greatest), f"{comparison.mean:.3g}", f"{comparison.share:.2%}",
        "equal" if equal else f"{comparison.psnr:.1f} dB", f"{comparison.ssim:.4f}",
    ]  # fmt: skip


def _measured(result: Result) -> list[str]:
    return [
        _number(result.images_per_s, "{:.3g}"),
        _number(result.idle, "{:.1%}"),
        f"{_number(result.seconds, '{:.3g}')} ({_number(result.planned_seconds, '{:.3g}')})",
        f"{_number(result.peak_memory, '{:.2f}', 2**30)} ({_number(result.planned_memory, '{:.2f}', 2**30)})",
    ]


def _number(value: float | None, form: str, unit: float = 1.0) -> str:
    return "-" if value is None else form.format(value / unit)
