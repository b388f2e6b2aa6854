"""The gallery in a real headless Chromium, with real keys and clicks. What the page holds: unit/output/test_gallery.py."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from dglaunch.output import gallery, gallery_rows
from support import browser
from support.gallery_folder import BIG_SEED, EVIL, failure, fill, line, paint
from support.gallery_rows import row_files
from support.results import write_jsonl

pytestmark = pytest.mark.skipif(browser.missing() is not None, reason=str(browser.missing()))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("odd place #1 'quoted' & ünï") / "out")


@pytest.fixture(scope="module")
def tab() -> Iterator[browser.Browser]:
    with browser.browser() as tab:
        yield tab


READY = "document.documentElement.dataset.ready"


ROWS = "return [...document.querySelectorAll('#grid li')].map((item) => Number(item.dataset.row))"


FOCUSED = "return document.activeElement.closest('li')?.dataset.row ?? document.activeElement.id"


TITLE = "return document.getElementById('view').open && document.getElementById('view-title').textContent"


LOADED = "[...document.querySelectorAll('{} img')].every((image) => image.complete && image.naturalWidth > 0)"


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


def test_scores_filter_and_sort(tab: browser.Browser, tmp_path: Path) -> None:
    out = fill(tmp_path / "out")
    (out / "scores").mkdir()
    for name, values in (("clip", [0.25, 0.5, 0.125]), ("beauty", [5, 6])):
        (out / "scores" / f"{name}.json").write_text('{"dglaunch": "score"}')
        rows = [{"index": n, "sample": 0, "sha256": "0" * 64, "score": value} for n, value in enumerate(values)]
        write_jsonl(out / "scores" / f"{name}.jsonl", rows)
    gallery.write_page(out)
    for state, rows in {
        "sort=score_clip&descending=1": [1, 0, 2, 3],
        "score=clip%3E0.2": [0, 1],
        "score=clip%20%3C%3D%200.25,%20beauty%3E%3D5": [0],
        "score=score_beauty%3E5.5": [1],
        "score=%3C6": [0],
        "score=nonsense": [0, 1, 2, 3],
    }.items():
        tab.open(out / "gallery.html", state)
        tab.until(READY)
        shown = tab.js(ROWS.replace("]", "].sort((a, b) => a.ariaPosInSet - b.ariaPosInSet)", 1))
        assert shown == rows, state
        invalid = tab.js("return document.getElementById('score').getAttribute('aria-invalid')")
        assert invalid == str("nonsense" in state).lower()
    tab.open(out / "gallery.html", "sort=score_clip")
    tab.until(READY)
    assert "0.250" in tab.js("return document.querySelector('[data-row=\"0\"] .name').textContent")
    assert tab.complaints() == []


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


def test_a_large_job_whose_rows_lie_in_files(
    tab: browser.Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery_rows, "MOST_IN_PAGE", 10)
    monkeypatch.setattr(gallery_rows, "ROWS_OF_FILE", 4)
    out = tmp_path / "odd place #1 'quoted' & ünï"
    rows = [
        line(2 * n, prompt=f"{'wolf' if n % 50 == 7 else 'fox'} {99 - n}", seed=1000 + n, rank=n // 50)
        for n in range(97)
    ]
    rows[1] |= {"prompt": EVIL, "__proto__": {"hacked": 1}, "it's": "'); window.hacked = 4; ('"}
    paint(out / rows[0]["file_name"], "red")
    for row in rows[1:]:
        (out / row["file_name"]).hardlink_to(out / rows[0]["file_name"])
    write_jsonl(out / "metadata.jsonl", rows)
    write_jsonl(out / "failures.jsonl", [failure(500, prompt="a wolf that failed", seed=5000)])
    page = gallery.write_page(out)
    tab.open(page)
    tab.until(READY)
    tab.until(f"!document.querySelector('.waiting') && {LOADED.format('#grid')}")
    count = "document.getElementById('count').textContent"
    assert tab.js(f"return {count}") == "98 images, 1 failed"
    assert tab.js("return document.querySelectorAll('li .text')[1].textContent") == EVIL
    assert tab.js("return [window.hacked ?? null, ({}).hacked ?? null]") == [None, None]
    for made in ("made.textContent = 'window.hacked = 3'", "made.src = 'data:text/javascript,window.hacked = 5'"):
        refused = f"const made = document.createElement('script'); try {{ {made} }} catch (e) {{ return e.name }}"
        assert tab.js(refused + "document.body.append(made)") == "TypeError", "the policy lets no other script run"
    assert tab.js("return window.hacked ?? null") is None
    tab.complaints()
    in_order = ROWS.replace("]", "].sort((a, b) => a.ariaPosInSet - b.ariaPosInSet)", 1)
    for state, found, text in (
        ("query=wolf", [7, 57, 97], "3 of 98 images, 1 failed"),
        ("query=wolf&descending=1", [97, 57, 7], "3 of 98 images, 1 failed"),
        ("query=wolf&sort=prompt", [97, 57, 7], "3 of 98 images, 1 failed"),
        ("query=wolf&sort=seed&descending=1", [97, 57, 7], "3 of 98 images, 1 failed"),
        ("status=failed", [97], "1 of 98 images, 1 failed"),
        ("seed=1009-1010,%205000", [9, 10, 97], "3 of 98 images, 1 failed"),
        ("rank=1&query=wolf", [57], "1 of 98 images"),
        ("query=no%20such", [], "0 of 98 images"),
    ):
        tab.open(page, state)
        tab.until(f"{READY} && {count} === '{text}' && !document.querySelector('.waiting')")
        assert tab.js(in_order) == found, state
    tab.open(page, "query=wolf&open=57")
    tab.until(f"(() => {{ {TITLE} }})() === '000114.png'")
    tab.press("Left")
    tab.until(f"(() => {{ {TITLE} }})() === '000014.png'")
    tab.open(page)
    tab.until(READY)
    tab.js("document.getElementById('goto').value = '121'; document.getElementById('goto').onchange()")
    tab.until(f"(() => {{ {FOCUSED} }})() === '61'")  # of index 122, as there is no 121
    tab.press("End")
    tab.until(f"(() => {{ {FOCUSED} }})() === '97' && !document.querySelector('.waiting')")
    tab.press("Enter")
    tab.until(f"(() => {{ {TITLE} }})() === 'index 500, failed'")
    assert tab.complaints() == []
    (row_files(page)[0]).unlink()
    tab.open(page)
    tab.until("document.querySelector('.missing')?.textContent.includes('is not along with this page')")
    tab.press("/", "f", "o", "x")
    tab.until(f"{count}.includes('1 files of rows are not along with this page and were not searched')")


def test_a_page_sent_without_its_folder_shows_the_thumbnails(tab: browser.Browser, out: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "deeper" / "alone.html"
    elsewhere.parent.mkdir()
    page = gallery.write_page(out, elsewhere, 32).rename(tmp_path / "alone.html")
    tab.open(page, "open=0")
    tab.until(READY)
    tab.until("document.querySelector('#stage img').naturalWidth === 32")
    told = tab.js("const told = document.getElementById('along'); return told.checkVisibility() && told.textContent")
    assert "not along with this page" in told and "small copy" in told
    assert not tab.js("return document.getElementById('file').checkVisibility()"), "there is no file to open"
    tab.open(page, "open=2")
    tab.until(READY)
    tab.until("document.querySelector('#stage .before').naturalWidth === 32")
    assert tab.until("document.getElementById('along').checkVisibility()")
