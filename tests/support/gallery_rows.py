"""What lies beside the page of a large job's gallery, for tests."""

import json
import re
from pathlib import Path
from typing import Any

from support.gallery_folder import data_of


def row_files(page: Path) -> list[Path]:
    """The files that a page names, in their order."""
    folder = page.parent / data_of(page)["rows"]["folder"]
    return sorted(folder.iterdir(), key=lambda path: int(path.stem))


def rows_in(path: Path) -> dict[str, Any]:
    """What a file of rows says, as a script would read it."""
    text = path.read_text(encoding="utf-8")
    found = re.fullmatch(r"galleryRows\((\d+),'((?:[^'\\\n]|\\.)*)'\)\n", text)
    assert found and int(found[1]) == int(path.stem), text[:100]
    rows = json.loads(re.sub(r"\\(.)", r"\1", found[2]))
    assert isinstance(rows, dict)
    return rows


def column(values: Any, count: int) -> list[Any]:
    """A column of a page, unfolded."""
    return values if isinstance(values, list) else [values["all"]] * count
