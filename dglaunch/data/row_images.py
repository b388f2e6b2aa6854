"""The images that the cells of a table name: paths, lists of paths, or bytes in Parquet; each distinct file is read once.

images = RowImages(table, max_pixels)
name, source = images.one("photos/a.png", number=3, column="image")
images.probe(), images.found[source]            # what its header says, or why it cannot be used
"""

from collections import Counter
from pathlib import Path
from typing import Protocol

from dglaunch import strict_json
from dglaunch.addresses import SCHEMES, Address, is_address, is_other_scheme, path_or_address
from dglaunch.data.images import BadImage, Cell, InputImage, NeedsPackage, probe, probe_files
from dglaunch.data.plugins import EXTRA
from dglaunch.data.tables import path_in
from dglaunch.errors import MissingPackage
from dglaunch.models.input_roles import Role

MAX_PATH = 4096
"""Characters; what is longer is no path, and asking the system for it would be an error."""
Source = Path | Cell
Reference = tuple[str, Source]
"""An image of a row: its name for messages and the ledger, and where its bytes are."""
Inputs = dict[Role, list[Reference]]
"""The input images of a row, by what they are for."""


class Places(Protocol):
    """Where the rows of a table stand, and what their paths are relative to; data.tables.Table is one."""

    def place(self, number: int) -> tuple[Path, int]: ...

    def file_of(self, file: Path, text: str) -> Path: ...

    def name_of(self, file: Path, text: str) -> str: ...


class Here:
    """Rows that stand in no file, out of a pipe or from Python: their paths are relative to the working directory."""

    def __str__(self) -> str:
        return "the rows"

    def place(self, number: int) -> tuple[Path, int]:
        return Path(), number

    def file_of(self, file: Path, text: str) -> Path:
        return path_in(file, text)

    def name_of(self, file: Path, text: str) -> str:
        return str(path_or_address(text)) if is_address(text) else text


class RowImages:
    """The images of all rows of one table: named first, looked at together afterwards."""

    def __init__(self, table: Places, max_pixels: int) -> None:
        self.table = table
        self.max_pixels = max_pixels
        self.files: dict[Path, str] = {}
        """The files that are named, and how."""
        self.found: dict[Source, InputImage | BadImage] = {}
        """What is known of each image: of bytes in the table at once, of files after `probe`."""

    def several(self, cell: object, number: int, column: str) -> list[Reference]:
        """Return the images that a cell names, in their order.

        Args:
            cell: one path, a JSON list or a comma list of paths (a file of that very name wins), a list, or bytes.
            number: the row's in the table.
            column: the table's own name of the column.

        Raises:
            ValueError: it is neither a path, a list of paths nor bytes.
        """
        file, row = self.table.place(number)
        items: list[object] = [cell]
        if isinstance(cell, str):
            items = self._split(cell, file)
        elif isinstance(cell, list):
            items = cell
        return [self._reference(item, file, Cell(file, column, row, n)) for n, item in enumerate(items)]

    def one(self, cell: object, number: int, column: str) -> Reference:
        """Return the image that a cell names.

        Raises:
            ValueError: it is neither a path nor bytes.
        """
        file, row = self.table.place(number)
        return self._reference(cell, file, Cell(file, column, row, 0))

    def probe(self) -> None:
        """Look at each distinct file.

        Raises:
            MissingPackage: the package of an image's format is not installed: without it none of these can be read.
        """
        for file, image in probe_files(self.files, self.max_pixels).items():
            self.found[file] = image
        needed = [image.plugin for image in self.found.values() if isinstance(image, NeedsPackage)]
        if needed:
            plugin, count = Counter(needed).most_common(1)[0]
            images = f"{count:,} {plugin.name} image{'s' * (count != 1)}"
            raise MissingPackage(plugin.package, f"Reading {images} of {self.table}", EXTRA)

    def _split(self, text: str, table: Path) -> list[object]:
        if self._is_file(table, text) or _is_one_address(text):
            return [text]
        if text.lstrip().startswith("["):
            try:
                listed = strict_json.loads(text, allow_nan=False)
            except ValueError as error:
                raise ValueError(f"is no valid JSON list: {error}") from None
            assert isinstance(listed, list), "it begins with a bracket"
            return listed
        return [part.strip() for part in text.split(",")]

    def _is_file(self, table: Path, text: str) -> bool:
        return len(text) < MAX_PATH and "\0" not in text and self.table.file_of(table, text).is_file()

    def _reference(self, item: object, table: Path, cell: Cell) -> Reference:
        path, data = item, item
        if isinstance(item, dict):
            path, data = item.get("path"), item.get("bytes")
        if isinstance(data, bytes):
            name = path if isinstance(path, str) and path else f"{cell.column}[{cell.position}]"
            self._probe_bytes(name, cell, data)
            return name, cell
        if not isinstance(path, str) or not path.strip():
            raise ValueError(f"has {path!r} where a path is needed")
        if is_other_scheme(path):
            raise ValueError(
                f"has {path!r}; images are read from this machine, {', '.join(f'{kind}://' for kind in SCHEMES)}"
            )
        file, name = self.table.file_of(table, path), self.table.name_of(table, path)
        self.files.setdefault(file, name)
        return name, file

    def _probe_bytes(self, name: str, cell: Cell, data: bytes) -> None:
        if not (isinstance(cell.table, Address) or cell.table.is_file()):
            raise ValueError("holds bytes, which only a Parquet table may; save the image and give its path")
        try:
            self.found[cell] = probe(name, cell, data, self.max_pixels)
        except BadImage as error:
            self.found[cell] = error


def _is_one_address(text: str) -> bool:
    """Whether a cell is one address, which may have commas in it, and no list of them."""
    return is_address(text) and not any(is_address(part.strip()) for part in text.split(",")[1:])
