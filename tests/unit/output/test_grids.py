"""A job with --grid: where each image stands, on the page's data and on one picture. The page itself: system/test_grids_browser.py."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dglaunch.output import gallery
from dglaunch.output.contact_sheet import write_contact_sheet
from dglaunch.output.grids import Grid, Place
from dglaunch.output.ledger import OutputFolder
from dglaunch.output.sorted_lines import SortedLines
from support.commands import dglaunch
from support.gallery_folder import BIG_SEED, line
from support.grid_folder import AXES, COLORS, fill_grids


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill_grids(tmp_path_factory.mktemp("grids") / "out")


def grid_of(folder: Path) -> Grid:
    grid = Grid.of(OutputFolder(folder))
    assert grid is not None
    return grid


def test_the_first_axis_is_the_slowest(out: Path) -> None:
    grid = grid_of(out)
    assert grid.num_cells == 6
    assert [grid.values(cell) for cell in (0, 1, 2)] == [
        {"guidance_scale": 2.0, "seed": 1}, {"guidance_scale": 2.0, "seed": 2}, {"guidance_scale": 4.0, "seed": 1},
    ]  # fmt: skip
    assert grid.place(line(9, guidance_scale=4.0, seed=2)) == Place(1, 3)


def test_an_image_that_says_otherwise_is_in_no_grid(out: Path) -> None:
    assert grid_of(out).place(line(9, guidance_scale=4.0, seed=7)) is None


@pytest.mark.parametrize(
    "said", [None, [], {}, {"seed": 7}, {"seed": []}, {"a": list(range(200)), "b": list(range(200))}, "seed=1,2"]
)
def test_what_is_no_grid(tmp_path: Path, said: Any) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"outcome": "done", "num_tasks": 1, "grid": said}))
    assert Grid.of(OutputFolder(tmp_path)) is None


def test_the_page_says_where_each_image_stands(out: Path) -> None:
    data = json.loads("".join(gallery.page_data(out, out, 0, SortedLines(OutputFolder(out)))))
    assert data["grid"] == [[name, values] for name, values in AXES.items()]
    assert data["lines"] == [0] * 6 + [1] * 5 and data["cells"] == [*range(6), *range(5)]


def test_a_seed_that_javascript_would_round_is_a_text(tmp_path: Path) -> None:
    out = fill_grids(tmp_path, 1, {"seed": [1, BIG_SEED]})
    data = json.loads("".join(gallery.page_data(out, out, 0, [])))
    assert data["grid"] == [["seed", [1, str(BIG_SEED)]]]


def test_the_contact_sheet_has_every_image_in_its_cell(out: Path, tmp_path: Path) -> None:
    """The colors from left to right and from the top: as the cells are counted."""
    sheet = tmp_path / "grid.png"
    assert (
        "10 images are on" in dglaunch("gallery", out, "--output", tmp_path / "g.html", "--contact_sheet", sheet).output
    )
    with Image.open(sheet) as image:
        seen = image.convert("RGB")
    places: dict[str, tuple[int, int]] = {}
    pixels = seen.load()
    assert pixels is not None
    colors = {Image.new("RGB", (1, 1), name).getpixel((0, 0)): name for name in COLORS}
    for y in range(0, seen.height, 4):
        for x in range(0, seen.width // 2, 4):
            if (name := colors.get(pixels[x, y])) is not None:
                places.setdefault(name, (y // 190, x // 190))
    lines = sorted({y for y, _ in places.values()})
    assert [name for name, _ in sorted(places.items(), key=lambda item: item[1])] == list(COLORS) and len(lines) == 3
    labels = seen.crop((0, 50, 150, seen.height)).convert("L")
    assert min(labels.tobytes()) < 128, "the axis that goes down is named on the left"


def test_one_axis_many_samples_and_a_grid_that_is_too_large(tmp_path: Path) -> None:
    fill_grids(tmp_path / "one", 1, {"seed": [1, 2, 3, 4]})
    assert write_contact_sheet(tmp_path / "one", tmp_path / "one.png", SortedLines(OutputFolder(tmp_path / "one"))) == 2
    with Image.open(tmp_path / "one.png") as image:
        assert image.width > 3 * image.height
    run = {"outcome": "done", "num_tasks": 4, "grid": {"seed": [*range(1, 901)]}}
    (tmp_path / "one" / "run.json").write_text(json.dumps(run))
    ended = dglaunch("gallery", tmp_path / "one", "--contact_sheet", tmp_path / "wide.png")
    assert ended.code == 2 and "too large for one picture; the page shows it" in ended.output
