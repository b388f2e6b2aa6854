"""A real headless Chromium for the tests of the gallery: a WebDriver client of 60 lines (Debian: chromium-driver).

python tests/support/browser.py outputs/demo/gallery.html docs/gallery.webp     what the README shows
"""

import base64
import contextlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

KEYS = {"Escape": "\ue00c", "Left": "\ue012", "Up": "\ue013", "Right": "\ue014", "Down": "\ue015", "Enter": "\ue007"}
KEYS |= {"Tab": "\ue004", "End": "\ue010", "Home": "\ue011"}


def missing() -> str | None:
    """What is not installed here, if anything."""
    absent = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"no {' and '.join(absent)} here (Debian: apt-get install chromium chromium-driver)" if absent else None


class Browser:
    """One tab. Commands are WebDriver's (https://www.w3.org/TR/webdriver2/)."""

    def __init__(self, server: str, *arguments: str) -> None:
        self.session = server
        options = {"args": ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", *arguments]}
        wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        told = self.call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self.session = f"{server}/session/{told['sessionId']}"

    def call(self, method: str, path: str, body: Any = None) -> Any:
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(self.session + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)["value"]

    def open(self, page: Path | str, state: str = "") -> None:
        """Load a page from the disk or from an address, with its state after the #."""
        self.call("POST", "/url", {"url": "about:blank"})
        self.complaints()  # those of the page before are not this one's
        self.call("POST", "/url", {"url": f"{page if isinstance(page, str) else page.resolve().as_uri()}#{state}"})

    def js(self, script: str, *arguments: Any) -> Any:
        """`return ...` of a script."""
        return self.call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def until(self, condition: str, timeout: float = 20) -> Any:
        """Wait for a JavaScript expression to be true."""
        limit = time.monotonic() + timeout
        while not (value := self.js(f"return {condition}")):
            assert time.monotonic() < limit, f"never true: {condition}"
            time.sleep(0.03)
        return value

    def press(self, *keys: str) -> None:
        """Real key strokes: names in KEYS, else the characters themselves."""
        values = [letter for key in keys for letter in ([KEYS[key]] if key in KEYS else key)]
        actions = [{"type": kind, "value": value} for value in values for kind in ("keyDown", "keyUp")]
        self.call("POST", "/actions", {"actions": [{"type": "key", "id": "keys", "actions": actions}]})

    def click(self, x: int, y: int) -> None:
        """A real click at a place in the window."""
        steps = [
            {"type": "pointerMove", "x": x, "y": y},
            {"type": "pointerDown", "button": 0},
            {"type": "pointerUp", "button": 0},
        ]
        self.call("POST", "/actions", {"actions": [{"type": "pointer", "id": "mouse", "actions": steps}]})

    def complaints(self) -> list[str]:
        """Errors on the console since the last call, or since a page was opened: of scripts, of the Content-Security-Policy, of missing files."""
        return [
            entry["message"]
            for entry in self.call("POST", "/se/log", {"type": "browser"})
            if entry["level"] == "SEVERE"
        ]

    def download_to(self, folder: Path) -> None:
        """Put what pages give to download into a folder, without asking."""
        command = {"cmd": "Browser.setDownloadBehavior", "params": {"behavior": "allow", "downloadPath": str(folder)}}
        self.call("POST", "/goog/cdp/execute", command)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("GET", "/screenshot")))


@contextlib.contextmanager
def browser(*arguments: str) -> Iterator[Browser]:
    """Start chromedriver and a Chromium; both end with the block."""
    driver, port = _driver()
    tab: Browser | None = None
    try:
        tab = Browser(f"http://127.0.0.1:{port}", "--window-size=1280,900", *arguments)
        yield tab
    finally:
        if tab is not None:
            with contextlib.suppress(OSError):
                tab.call("DELETE", "")
        driver.terminate()
        driver.communicate(timeout=20)


def _driver() -> tuple[subprocess.Popen[str], str]:
    """A chromedriver and its port. On a busy machine the port that it has chosen may be taken before it listens: it ends, and
    another one is started."""
    for _ in range(5):
        driver = subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, text=True)
        assert driver.stdout is not None
        for line in driver.stdout:
            if found := re.search(r"successfully on port (\d+)", line):
                return driver, found[1]
        driver.communicate(timeout=20)
    raise AssertionError("chromedriver does not start")


def main(page: Path, picture: Path) -> None:
    """A picture of a page with all its images."""
    from PIL import Image

    with browser() as tab, tempfile.TemporaryDirectory() as scratch:
        tab.open(page)
        tab.until("document.documentElement.dataset.ready")
        tab.until(
            "[...document.querySelectorAll('#grid img')].every((image) => image.complete && image.naturalWidth > 0)"
        )
        tab.screenshot(Path(scratch) / "seen.png")
        with Image.open(Path(scratch) / "seen.png") as seen:
            seen.convert("RGB").save(picture, quality=85)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
