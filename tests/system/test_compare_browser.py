"""Runs side by side, grids, and a page that is served, in a real headless Chromium. What the pages hold: unit/output."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from dglaunch.output import comparison
from dglaunch.output.gallery import render, write_page
from dglaunch.output.ledger import OutputFolder
from dglaunch.output.serving import Page, Server
from dglaunch.output.sorted_lines import SortedLines
from dglaunch.output.templates import text_of
from support import browser
from support.commands import dglaunch
from support.gallery_folder import EVIL, failure, line, paint
from support.grid_folder import fill_grids, fill_run
from support.results import write_jsonl

pytestmark = pytest.mark.skipif(browser.missing() is not None, reason=str(browser.missing()))

READY = "document.documentElement.dataset.ready"
ROWS = """return [...document.querySelectorAll('#grid > li')].sort((a, b) => a.ariaPosInSet - b.ariaPosInSet)
    .map((item) => Number(item.dataset.row))"""
LOADED = "[...document.querySelectorAll('{} img')].every((image) => image.complete && image.naturalWidth > 0)"


@pytest.fixture(scope="module")
def tab() -> Iterator[browser.Browser]:
    with browser.browser() as tab:
        yield tab


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs that differ in their guidance, a page of them and a blind one of two of them."""
    place = tmp_path_factory.mktemp("odd place #1 'quoted' & ünï")
    fill_run(place / "a", ["red", "green", "blue", "gold"], {"guidance_scale": 1.0}, guidance_scale=1.0, style="x")
    fill_run(place / "b", ["red", "lime", "yellow", "gold"], {"guidance_scale": 4.0}, guidance_scale=4.0, style="y")
    fill_run(place / "c", ["maroon", "green", None, "gold"], {"guidance_scale": 7.0}, guidance_scale=7.0, style=EVIL)
    write_jsonl(place / "c" / "failures.jsonl", [failure(2) | {"error": EVIL}])
    for words in (["a", "b", "c"], ["a", "b", "--blind", "--output", "blind.html"]):
        ended = dglaunch("gallery", *words, cwd=place)
        assert ended.code == 0, ended.output
    return place


def shown(tab: browser.Browser, where: str) -> str:
    found = tab.js(f"return document.querySelector('{where}').textContent")
    assert isinstance(found, str)
    return found


# -- runs side by side --------------------------------------------------------------------------------------------


def test_headings_say_what_differs_and_rows_can_be_sorted_by_difference(tab: browser.Browser, place: Path) -> None:
    tab.open(place / "compare.html")
    tab.until(READY)
    tab.until(LOADED.format("#grid"))
    assert shown(tab, "h1").startswith("guidance_scale 1 | 4 | 7, style x | y | ")
    assert tab.js("return [...document.querySelectorAll('#heads b')].map((head) => head.textContent)") == [
        "a",
        "b",
        "c",
    ]
    assert [shown(tab, f"#grid li:nth-child(1) figure:nth-child({n}) figcaption") for n in (1, 2, 3)] == [
        "", "equal", "10.83\u00a0dB",
    ]  # fmt: skip
    assert "a red" not in shown(tab, "body") and tab.js("return window.hacked ?? null") is None
    assert shown(tab, "#grid li:nth-child(3) .missing") == EVIL
    assert shown(tab, "#grid li:nth-child(4) .state") == "equal images"
    for state, rows in {
        "sort=psnr-1": [2, 1, 0, 3],
        "sort=psnr-2": [0, 1, 3, 2],
        "sort=psnr-2&descending=1": [2, 3, 1, 0],
        "only=differ": [0, 1, 2],
        "only=missing": [2],
        "query=prompt%203": [3],
    }.items():
        tab.open(place / "compare.html", state)
        tab.until(READY)
        assert tab.js(ROWS) == rows, state
    assert tab.complaints() == []


def test_the_slider_is_between_any_two(tab: browser.Browser, place: Path, tmp_path: Path) -> None:
    tab.open(place / "compare.html", "open=2")
    tab.until(READY)
    tab.until(LOADED.format("#stage"))

    def seen() -> list[tuple[int, int, int]]:
        box = tab.js(
            "const b = document.querySelector('.frame').getBoundingClientRect(); return [b.left, b.top, b.width, b.height]"
        )
        tab.screenshot(tmp_path / "seen.png")
        with Image.open(tmp_path / "seen.png") as image:
            y = int(box[1] + box[3] * 0.75)
            return [image.convert("RGB").getpixel((int(box[0] + box[2] * part), y)) for part in (0.4, 0.6)]  # type: ignore[misc]

    assert seen() == [(0, 0, 255), (255, 255, 0)]
    assert tab.js("return [...document.querySelectorAll('.frame .tag')].map((tag) => tag.textContent)") == ["a", "b"]
    tab.open(place / "compare.html", "open=1&left=1&right=2")
    tab.until(READY)
    tab.until(LOADED.format("#stage"))
    assert seen() == [(0, 255, 0), (0, 128, 0)]
    assert "PSNR to a" in shown(tab, "#facts") and "guidance_scale" in shown(tab, "#facts")
    tab.press("Right")
    assert shown(tab, "#view-title") == "index 2"
    tab.press("Escape")
    tab.until("document.activeElement.closest('li')?.dataset.row === '2'")
    assert tab.complaints() == []


@pytest.mark.slow
def test_the_input_of_an_edit_can_be_the_left_side(tab: browser.Browser, tmp_path: Path) -> None:
    for name, color in (("a", "red"), ("b", "blue")):
        out = fill_run(tmp_path / name, [color])
        paint(out / "inputs" / "000000_0.png", "yellow")
        write_jsonl(out / "metadata.jsonl", [line(0, input_images=["a.png"], input_file_names=["inputs/000000_0.png"])])
    assert dglaunch("gallery", "a", "b", cwd=tmp_path).code == 0
    tab.open(tmp_path / "compare.html", "open=0&left=input&right=1")
    tab.until(READY)
    tab.until(LOADED.format("#stage"))
    assert tab.js("return [...document.querySelectorAll('.frame .tag')].map((tag) => tag.textContent)") == [
        "the input",
        "b",
    ]
    assert "inputs/000000_0.png" in tab.js("return document.querySelector('.frame .before').src")
    assert tab.complaints() == []


def test_a_blind_page_shuffles_and_its_choices_are_downloaded_and_summed_up(
    tab: browser.Browser, place: Path, tmp_path: Path
) -> None:
    tab.download_to(tmp_path)
    tab.open(place / "blind.html")
    tab.until(READY)
    assert shown(tab, "h1") == "Blind comparison of 2 runs"
    assert not tab.js("return document.getElementById('heads').checkVisibility()")
    assert "dB" not in shown(tab, "main") and "guidance" not in shown(tab, "body > header") + shown(tab, "main")
    orders = tab.js("return Array.from({length: 400}, (_, n) => { data.columns.index[n] ??= n; return order(n)[0]; })")
    assert 150 < sum(orders) < 250, "either run is on the left half of the time"
    assert tab.js("return document.getElementById('download').disabled")
    tab.js("document.querySelector('#grid .tile').focus()")
    tab.press("1", "Down")  # of equal images there is nothing to choose
    best = [str(1 + tab.js(f"return order({row}).indexOf(1)")) for row in (1, 2)]  # the run b, wherever it stands
    tab.press(best[0])
    assert tab.js("return document.activeElement.closest('li').dataset.row") == "2", "a choice moves on"
    tab.press("Enter", best[1])
    assert tab.js("return document.querySelectorAll('#choose [aria-pressed=true]').length") == 1
    tab.press("Escape")
    tab.open(place / "blind.html")
    tab.until(READY)
    assert shown(tab, "#count") == "4 rows, 2 chosen", "it is kept over a reload"
    tab.js("document.getElementById('download').click()")
    limit = time.monotonic() + 20
    while not (tmp_path / "choices.json").exists() and time.monotonic() < limit:
        time.sleep(0.05)
    said = json.loads((tmp_path / "choices.json").read_text())
    assert [item["index"] for item in said["choices"]] == [1, 2] and "b" not in said
    ended = dglaunch("gallery", "b", "a", "--choices", tmp_path / "choices.json", cwd=place)
    assert ended.code == 0 and "2 choices in 2 rows" in ended.output and "100%" in ended.output
    assert tab.complaints() == []


@pytest.mark.slow
def test_a_list_that_is_higher_than_a_browser_can_is_shown_in_parts(
    tab: browser.Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As high as 37,000 rows are; here it is 50."""
    monkeypatch.setattr(
        comparison, "text_of", lambda *names: text_of(*names).replace("HIGHEST = 15e6", "HIGHEST = 2e4")
    )
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_jsonl(tmp_path / name / "metadata.jsonl", [line(n) for n in range(200)])
    assert dglaunch("gallery", "a", "b", cwd=tmp_path).code == 0
    tab.open(tmp_path / "compare.html")
    tab.until(READY)
    assert tab.js("return document.getElementById('grid').offsetHeight") < 2e4
    assert shown(tab, "#part") == "1 to 50 of 200"
    tab.js("document.querySelector('#grid .tile').focus()")
    tab.press("End")
    assert tab.js("return document.activeElement.closest('li').dataset.row") == "199"
    assert shown(tab, "#part") == "151 to 200 of 200" and len(tab.js(ROWS)) < 30
    tab.js("document.getElementById('part-previous').click()")
    assert shown(tab, "#part") == "101 to 150 of 200" and tab.js(ROWS)[0] == 100
    tab.js("document.querySelector('#grid .tile').focus()")
    tab.press("Home")
    assert tab.js("return document.activeElement.closest('li').dataset.row") == "0"


# -- grids --------------------------------------------------------------------------------------------------------


def test_a_grid_has_its_axes_and_either_can_go_across(tab: browser.Browser, tmp_path: Path) -> None:
    out = fill_grids(tmp_path / "out")
    write_page(out)
    cells = """return [...document.querySelectorAll('#grid > li:nth-child({}) tbody tr')].map((line) => [...line.children].map((cell) =>
        cell.querySelector('.tile:not(.failed)') ? cell.querySelector('.name').textContent.slice(4, 6) : cell.textContent.slice(0, 16)))"""
    heads = "return [...document.querySelectorAll('#grid > li:first-child thead th')].map((head) => head.textContent)"
    tab.open(out / "gallery.html")
    tab.until(READY)
    tab.until(LOADED.format("#grid"))
    assert tab.js(heads) == ["seed 1", "seed 2"]
    assert tab.js(cells.format(1)) == [
        ["guidance_scale 2", "00", "01"], ["guidance_scale 4", "02", "03"], ["guidance_scale 7", "04", "05"],
    ]  # fmt: skip
    assert tab.js(cells.format(2))[2] == ["guidance_scale 7", "RuntimeError: it", "not made"]
    tab.js("document.querySelector('.tile').focus()")
    tab.press("Down", "Down", "Down", "Enter")
    assert shown(tab, "#view-title") == "000006.png", "the keys move through the lines of the grids"
    tab.press("Escape")
    tab.open(out / "gallery.html", "across=guidance_scale&seed=2")
    tab.until(READY)
    assert tab.js(heads) == ["guidance_scale 2", "guidance_scale 4", "guidance_scale 7"]
    assert tab.js(cells.format(1)) == [["seed 1", "00", "02", "04"], ["seed 2", "01", "03", "05"]]
    assert tab.js("return document.querySelectorAll('#grid > li:first-child .faded').length") == 3, (
        "seed 1 does not fit"
    )
    tab.open(out / "gallery.html", "layout=list")
    tab.until(READY)
    assert len(tab.js(ROWS)) == 11
    assert tab.complaints() == []


# -- served -------------------------------------------------------------------------------------------------------


def test_a_served_page_shows_its_pictures(tab: browser.Browser, tmp_path: Path) -> None:
    out = fill_run(tmp_path / "odd #1 ünï", ["red", "green"])
    paint(out / "inputs" / "000001_0.png", "yellow")
    rows = [line(0), line(1, input_images=["a.png"], input_file_names=["inputs/000001_0.png"])]
    write_jsonl(out / "metadata.jsonl", rows)

    def pieces() -> Iterator[str]:
        return render(out, out, 0, SortedLines(OutputFolder(out)), only_inside=True)

    with Server(Page([out], pieces), ("127.0.0.1", 0), socket.AF_INET, lambda _: None) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        tab.open(f"http://127.0.0.1:{server.server_port}/{server.token}/", "open=1")
        tab.until(READY)
        tab.until(LOADED.format("#stage"))
        assert (
            len(tab.js("return [...document.querySelectorAll('#stage img')].map((image) => image.naturalWidth)")) == 2
        )
        tab.press("Escape")
        tab.until(LOADED.format("#grid"))
        assert tab.complaints() == []
        server.shutdown()
        thread.join()
