"""The best of each prompt's samples, as a view: OUT/best_of_1_clip has their images and a metadata.jsonl with the scores.

It is an ImageFolder as it stands, as the output folder is, made of links to it. Made again after a redo, or with other scores,
it has those that are the best now.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path

from dglaunch import strict_json
from dglaunch.data.task import Record
from dglaunch.errors import UserError
from dglaunch.output.images import image_of
from dglaunch.output.ledger import OutputFolder
from dglaunch.output.lines import file_name_of
from dglaunch.output.scores import Scores, column
from dglaunch.output.shards import IMAGE_SHARD
from dglaunch.output.views import Link, Text, ViewFile, write_view


def write(
    folder: OutputFolder, name: str, scores: Scores, most: int, records: Iterable[Record]
) -> tuple[Path, int, int]:
    """Write or renew the view of the best images of each prompt.

    Args:
        name: of the scores.
        most: how many of a prompt.
        records: the ledger's lines, in the order of index.

    Returns:
        Its folder, how many images are in it, and of how many prompts.

    Raises:
        UserError: no image has a score, or the view holds files of something else.
        OutputError: it cannot be written.
    """
    chosen = [best for row in _rows(records) if (best := _best(row, scores, most))]
    pictures = [(record, value) for row in chosen for record, value in row]
    if not pictures:
        raise UserError(f"No image of {folder.path} has a score called {name} that holds for it; score them first.")
    files: dict[str, ViewFile] = {"metadata.jsonl": Text("".join(map(partial(_line, column(name)), pictures)))}
    for record, _ in pictures:
        files[file_name_of(record)] = _link(folder, record)
    return write_view(folder.path, f"best_of_{most}_{name}", files, changes=True), len(pictures), len(chosen)


def _rows(records: Iterable[Record]) -> Iterator[list[Record]]:
    """The lines of each prompt together."""
    for _, row in groupby(records, key=lambda record: record["index"]):
        yield list(row)


def _best(row: Sequence[Record], scores: Scores, most: int) -> list[tuple[Record, float]]:
    """The best of a prompt's samples, the best first; of equal ones the first sample."""
    found = [(record, scored.value) for record in row if (scored := scores.of(record)) is not None]
    return sorted(found, key=lambda pair: -pair[1])[:most]


def _line(name: str, picture: tuple[Record, float]) -> str:
    record, value = picture
    said = {key: each for key, each in record.items() if key != IMAGE_SHARD}
    return strict_json.dumps({**said, name: value}) + "\n"


def _link(folder: OutputFolder, record: Record) -> Link:
    image = image_of(folder.path, record)
    if image is None or not image.path.is_file():
        raise UserError(
            f"{image} has a ledger line but no file; dglaunch verify says more. Make it again, then score it."
        )
    return Link(image, str(record["sha256"]))
