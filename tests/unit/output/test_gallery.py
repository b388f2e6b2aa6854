"""The gallery: what the page holds (cheap), then the page in a real headless Chromium, with real keys and clicks."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dglaunch.__main__ import main
from dglaunch.cli import gallery as command
from dglaunch.errors import OutputError
from dglaunch.errors import UserError as Wrong
from dglaunch.output import gallery
from support import browser
from support.commands import clean_environment
from support.results import write_jsonl

EVIL = """</script><script>window.hacked=1</script><img src=x onerror="window.hacked=2">'"&amp;{{ 7*7 }}\u2028"""
BIG_SEED = 2**62 + 1
NEEDS_BROWSER = pytest.mark.skipif(browser.missing() is not None, reason=str(browser.missing()))


def line(index: int, **values: Any) -> dict[str, Any]:
    """A line of metadata.jsonl."""
    base = {"file_name": f"{index:06d}.png", "index": index, "sample": 0, "prompt": f"prompt {index}", "seed": index}
    sizes = {"width": 64, "height": 48, "num_inference_steps": 4, "rank": index % 2, "seconds": 1.5, "bytes": 1}
    return base | sizes | values


def failure(index: int, **values: Any) -> dict[str, Any]:
    kept = line(index, error="RuntimeError: it broke", **values)
    return {name: value for name, value in kept.items() if name != "file_name"}


def paint(path: Path, colour: str, size: tuple[int, int] = (64, 48)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images, one of them from a prompt that tries to escape; an edit; a failure; a failure made good later."""
    folder = tmp_path_factory.mktemp("odd place #1 'quoted' & ünï") / "out"
    for index, colour in enumerate(("red", "green", "blue")):
        paint(folder / f"{index:06d}.png", colour)
    paint(folder / "inputs" / "000002_0.png", "yellow")
    edit = line(2, prompt="make it blue", instruction="make it blue", input_images=["a cat.png"], input_sha256=["00"])
    edit["input_file_names"] = ["inputs/000002_0.png"]
    rows = [edit, line(0, seed=BIG_SEED), line(1, prompt=EVIL, column={"nan": float("nan")}, error="a column")]
    write_jsonl(folder / "metadata.jsonl", rows)
    write_jsonl(folder / "failures.jsonl", [failure(3, prompt="a wolf"), failure(0)])
    run = {"outcome": "failed", "settings": {"model_name": EVIL}, "config": {"seed": {"value": 7, "from": "flag"}}}
    (folder / "run.json").write_text(json.dumps(run))
    assert main(["gallery", str(folder)]) == 0
    return folder


def data_of(page: Path) -> dict[str, Any]:
    found = re.search(
        r'<script type="application/json" id="data">(.*?)</script>', page.read_text(encoding="utf-8"), re.S
    )
    assert found
    return json.loads(found[1])


# -- what the page holds ------------------------------------------------------------------------------------------


def test_rows_are_in_order_and_a_failure_made_good_is_none(out: Path) -> None:
    rows = gallery.read_rows(out)
    assert [row["index"] for row in rows] == [0, 1, 2, 3]
    assert [gallery.is_failed(row) for row in rows] == [False, False, False, True]


def test_the_data_survive_and_nothing_of_them_is_markup(out: Path) -> None:
    text = (out / "gallery.html").read_text(encoding="utf-8")
    data = data_of(out / "gallery.html")
    assert data["columns"]["prompt"][1] == EVIL
    assert data["columns"]["seed"][0] == str(BIG_SEED), "a double would round it"
    assert data["columns"]["column"][1] == {"nan": "nan"}, "NaN is no JSON"
    assert data["files"] == ["000000.png", "000001.png", "000002.png", None]
    assert data["inputs"] == [[], [], ["inputs/000002_0.png"], []]
    assert "<script>window" not in text and "<img" not in text and text.count("<script") == 2
    assert "{{ 7*7 }}" in text, "the template is filled once"


def test_the_page_names_no_other_place(out: Path) -> None:
    text = (out / "gallery.html").read_text(encoding="utf-8")
    assert "http:" not in text and "https:" not in text
    assert "default-src &#39;none&#39;" in text


def test_equal_values_are_stored_once_and_files_that_leave_the_folder_not_at_all(tmp_path: Path) -> None:
    rows = [line(0), line(1), line(2, file_name="../../etc/passwd"), line(3, file_name="/etc/passwd")]
    data = gallery.page_data(tmp_path, tmp_path, 0, rows)
    assert data["columns"]["width"] == {"all": 64}
    assert data["files"] == ["000000.png", "000001.png", None, None]


def test_another_place_for_the_page_and_thumbnails_inside(out: Path, tmp_path: Path) -> None:
    page = tmp_path / "look.html"
    assert main(["gallery", str(out), "--output", str(page), "--thumbnails", "32"]) == 0
    data = data_of(page)
    assert "%23" in data["base"] and data["base"].endswith("/out/")
    assert [text and text[:22] for text in data["thumbnails"]] == ["data:image/webp;base64"] * 3 + [None]


def test_inputs_that_were_not_copied_are_found_beside_the_table(tmp_path: Path) -> None:
    paint(tmp_path / "cats" / "a.png", "black")
    write_jsonl(tmp_path / "out" / "metadata.jsonl", []) if (tmp_path / "out").mkdir() else None
    table = str(tmp_path / "edits.jsonl")
    (tmp_path / "out" / "run.json").write_text(json.dumps({"config": {"input": {"value": table, "from": "flag"}}}))
    rows = [line(0, input_images=["cats/a.png", "gone.png"])]
    assert gallery.page_data(tmp_path / "out", tmp_path / "out", 0, rows)["inputs"] == [["../cats/a.png"]]


def test_the_contact_sheet(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = tmp_path / "sheet.png"
    assert main(["gallery", str(out), "--contact_sheet", str(sheet)]) == 0
    assert "3 images are on" in capsys.readouterr().out
    with Image.open(sheet) as image:
        colours = {colour for _, colour in image.getcolors(1 << 20) or []}
    assert {(255, 0, 0), (0, 128, 0), (0, 0, 255)} <= colours


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nowhere"], "There is no folder"),
        (["."], "holds no results"),
        ([".", "--thumbnails", "4000"], "0 (none) to 512"),
        (["OUT", "--contact_sheet", "sheet.pdf"], "name a .png"),
        (["OUT", "--output", "nowhere/page.html"], "cannot be written"),
    ],
)
def test_wrong_uses(out: Path, tmp_path: Path, words: list[str], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((Wrong, OutputError), match=re.escape(says)):
        gallery_of([str(out) if word == "OUT" else word for word in words])


def gallery_of(words: list[str]) -> None:
    import tyro

    tyro.cli(command.gallery, args=words, use_underscores=True)


def test_t2i_writes_it_and_a_failing_one_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["t2i", "--backend", "fake", "--prompt", "a cat", "--output_dir", str(tmp_path / "out"), "--gallery"]
    assert main(words) == 0
    assert data_of(tmp_path / "out" / "gallery.html")["columns"]["prompt"] == ["a cat"]
    (tmp_path / "out" / "gallery.html").unlink()
    monkeypatch.setattr(gallery, "render", lambda *_: 1 / 0)
    assert main(words) == 0
    assert json.loads((tmp_path / "out" / "run.json").read_text())["outcome"] == "done"
    assert not (tmp_path / "out" / "gallery.html").exists()


def test_it_needs_no_torch(out: Path, tmp_path: Path) -> None:
    import subprocess
    import sys

    code = "import sys; from dglaunch.__main__ import main; main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    words = [
        sys.executable,
        "-c",
        code,
        "gallery",
        str(out),
        "--output",
        str(tmp_path / "page.html"),
        "--thumbnails",
        "16",
    ]
    assert subprocess.run(words, env=clean_environment(), capture_output=True, timeout=60).returncode == 0
    assert (tmp_path / "page.html").exists()


# -- in a browser -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tab() -> Iterator[browser.Browser]:
    with browser.browser() as tab:
        yield tab


READY = "document.documentElement.dataset.ready"
ROWS = "return [...document.querySelectorAll('#grid li')].map((item) => Number(item.dataset.row))"
FOCUSED = "return document.activeElement.closest('li')?.dataset.row ?? document.activeElement.id"
TITLE = "return document.getElementById('view').open && document.getElementById('view-title').textContent"
LOADED = "[...document.querySelectorAll('{} img')].every((image) => image.complete && image.naturalWidth > 0)"


@NEEDS_BROWSER
def test_the_page_shows_all_and_runs_nothing_of_the_ledger(tab: browser.Browser, out: Path) -> None:
    tab.open(out / "gallery.html")
    tab.until(READY)
    assert tab.js(ROWS) == [0, 1, 2, 3]
    tab.until(LOADED.format("#grid"))
    assert tab.js("return document.getElementById('count').textContent") == "4 images, 1 failed"
    assert tab.js("return window.hacked ?? null") is None
    assert tab.js("return document.querySelectorAll('li .text')[1].textContent") == EVIL
    tab.js(
        "const made = document.createElement('script'); made.textContent = 'window.hacked = 3'; document.body.append(made)"
    )
    assert tab.js("return window.hacked ?? null") is None, "the policy lets no other script run"
    assert any("Content Security Policy" in text for text in tab.complaints())


@NEEDS_BROWSER
def test_search_filters_and_order(tab: browser.Browser, out: Path) -> None:
    for state, rows in {
        "query=WOLF": [3],
        "query=wolf%20nothing": [],
        "query=it%20broke": [3],
        "status=ok": [0, 1, 2],
        "status=failed": [3],
        "rank=1": [1, 3],
        f"seed={BIG_SEED}": [0],
        f"seed={BIG_SEED - 1}": [],
        "seed=1-2,%20900": [1, 2],
        "sort=prompt&status=ok": [1, 2, 0],
        "sort=seed": [1, 2, 3, 0],
        "sort=seed&descending=1": [0, 3, 2, 1],
        "sort=nonsense&rank=9": [0, 1, 2, 3],
    }.items():
        tab.open(out / "gallery.html", state)
        tab.until(READY)
        shown = tab.js(ROWS.replace("]", "].sort((a, b) => a.ariaPosInSet - b.ariaPosInSet)", 1))
        assert shown == rows, state
    tab.open(out / "gallery.html", "query=nothing%20fits")
    assert tab.until("!document.getElementById('nothing').hidden")
    assert tab.complaints() == []


@NEEDS_BROWSER
def test_keys(tab: browser.Browser, out: Path) -> None:
    tab.open(out / "gallery.html")
    tab.until(READY)
    tab.press("/", "w", "o", "l", "f")
    assert (tab.js(ROWS), tab.js("return location.hash")) == ([3], "#query=wolf")
    tab.press("Escape")
    assert (tab.js(ROWS), tab.js(FOCUSED)) == ([0, 1, 2, 3], "0")
    tab.press("Right", "Right", "Left")
    assert tab.js(FOCUSED) == "1"
    tab.press("End")
    assert tab.js(FOCUSED) == "3"
    tab.press("Enter")
    assert tab.js(TITLE) == "index 3, failed"
    assert tab.js("return document.getElementById('error').textContent") == "RuntimeError: it broke"
    tab.press("Left", "Left")
    assert tab.js(TITLE) == "000001.png"
    assert tab.js("return document.getElementById('prompt').textContent") == EVIL
    assert "open=1" in tab.js("return location.hash")
    tab.press("Escape")
    tab.until(f"(() => {{ {FOCUSED} }})() === '1'")  # a dialog tells that it was closed a little later
    assert tab.js(TITLE) is False, "and the focus is on the image that was shown last"


@NEEDS_BROWSER
def test_before_and_after(tab: browser.Browser, out: Path, tmp_path: Path) -> None:
    """Blue was made from yellow: left of the slider the one is seen, right of it the other."""
    tab.open(out / "gallery.html", "open=2")
    tab.until(READY)
    tab.until(LOADED.format("#stage"))
    box = tab.js(
        "const b = document.querySelector('.frame').getBoundingClientRect(); return [b.left, b.top, b.width, b.height]"
    )
    seen = tmp_path / "seen.png"

    def colours(split: float) -> list[str]:
        tab.screenshot(seen)
        with Image.open(seen) as image:
            places = [int(box[0] + box[2] * (split + shift)) for shift in (-0.06, 0.06)]
            pixels = [image.convert("RGB").getpixel((x, int(box[1] + box[3] * 0.75))) for x in places]
        return [
            "yellow" if pixel == (255, 255, 0) else "blue" if pixel == (0, 0, 255) else str(pixel) for pixel in pixels
        ]

    assert colours(0.5) == ["yellow", "blue"]
    tab.click(int(box[0] + box[2] * 0.25), int(box[1] + box[3] * 0.3))
    assert abs(float(tab.js("return document.querySelector('.compare input').value")) - 25) < 2
    assert colours(0.25) == ["yellow", "blue"]
    before = float(tab.js("return document.querySelector('.compare input').value"))
    tab.press("Right", "Right")
    assert float(tab.js("return document.querySelector('.compare input').value")) == before + 1
    assert tab.js(TITLE) == "000002.png", "the arrows move the slider, not to the next image"
    assert tab.complaints() == []


@NEEDS_BROWSER
def test_light_and_dark_are_readable(tab: browser.Browser, out: Path) -> None:
    """WCAG AA: text has a contrast of 4.5 to what is behind it."""
    contrast = """
        const light = (text) => {
            const parts = text.match(/[\\d.]+/g).slice(0, 3).map((part) => part / 255);
            const [r, g, b] = parts.map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const behind = (element) => {
            for (let at = element; at; at = at.parentElement) {
                const colour = getComputedStyle(at).backgroundColor;
                if (!colour.startsWith("rgba(0, 0, 0, 0")) return colour;
            }
        };
        const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        return [...document.querySelectorAll("h1, dt, dd, label, summary, button, .name, .text, .missing, footer, output")]
            .map((item) => ratio(light(getComputedStyle(item).color), light(behind(item))));
    """
    backgrounds = []
    tab.open(out / "gallery.html", "open=3")
    tab.until(READY)
    for theme in ("auto", "light", "dark"):
        tab.js("document.getElementById('theme').click()") if theme != "auto" else None
        assert tab.js("return document.getElementById('theme').value") == theme
        backgrounds.append(tab.js("return getComputedStyle(document.body).backgroundColor"))
        assert min(tab.js(contrast)) >= 4.5, theme
    assert backgrounds[1] != backgrounds[2]
    limit = time.monotonic() + 60  # kept for the next visit; Chromium's page hands it to the browser a little later
    while time.monotonic() < limit:
        time.sleep(1)
        tab.open(out / "gallery.html")
        tab.until(READY)
        if tab.js("return document.getElementById('theme').value") == "dark":
            return
    pytest.fail("the choice of colours was forgotten")


@NEEDS_BROWSER
def test_every_control_has_a_name(tab: browser.Browser, out: Path) -> None:
    for state, place in (("", "body > :not(dialog)"), ("open=2", "dialog")):  # what is behind a dialog is inert
        tab.open(out / "gallery.html", state)
        tab.until(READY)
        places = ", ".join(f"{place} {tag}" for tag in ("button", "input", "select"))
        for element in tab.call("POST", "/elements", {"using": "css selector", "value": places}):
            (reference,) = element.values()
            shown = tab.js("return arguments[0].checkVisibility()", element)
            named = tab.call("GET", f"/element/{reference}/computedlabel")
            assert named or not shown, tab.js("return arguments[0].outerHTML", element)


@NEEDS_BROWSER
def test_ten_thousand_rows_are_there_in_two_seconds(tab: browser.Browser, tmp_path: Path) -> None:
    prompts = [
        f"a {colour} {thing} number {n}"
        for n in range(5)
        for colour in ["red", "green", "blue"]
        for thing in ("fox", "wolf")
    ]
    rows = [
        line(n, prompt=prompts[n % len(prompts)] + " in a long sentence" * 5, key="0" * 16, sha256="0" * 64)
        for n in range(10_000)
    ]
    write_jsonl(tmp_path / "metadata.jsonl", rows)
    paint(tmp_path / "000000.png", "red")
    gallery.write_page(tmp_path)
    tab.open(tmp_path / "gallery.html")
    assert float(tab.until(READY)) < 2000, "the page's own performance.now when the first tiles stood"
    assert len(tab.js(ROWS)) < 200, "only the tiles in sight exist"
    tab.press("/", '"blue wolf number 3"')
    assert tab.js("return document.documentElement.dataset.shown") == str(
        sum("blue wolf number 3" in row["prompt"] for row in rows)
    )
    assert float(tab.js("return document.documentElement.dataset.filterMs")) < 500
    tab.press("Escape", "End")
    assert tab.js(FOCUSED) == "9999"
    assert len(tab.js(ROWS)) < 200


@NEEDS_BROWSER
def test_a_page_sent_without_its_folder_shows_the_thumbnails(tab: browser.Browser, out: Path, tmp_path: Path) -> None:
    page = gallery.write_page(out, None, 32).rename(tmp_path / "alone.html")
    tab.open(page, "open=0")
    tab.until(READY)
    tab.until("document.querySelector('#stage img').naturalWidth === 32")
    assert "small copy" in tab.js("return document.querySelector('#stage').textContent")
    gallery.write_page(out)
