"""What the tests of the API backends share: commands, and what a run must have left."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from support.api_servers import KEY, ApiServer, colour_of
from support.edit_images import picture
from support.results import ledger, write_jsonl

for package in ("openai", "google.genai"):
    pytest.importorskip(package)

MODELS = {"openai": "gpt-image-1.5", "google_genai": "gemini-2.5-flash-image"}


def words(server: ApiServer, backend: str, rows: Path, out: Path, *more: Any) -> list[str]:
    """A command: `edit` for a table of images (edits.jsonl), else `t2i`."""
    address = server.openai if backend == "openai" else server.google
    command = ["edit", "--input", rows] if rows.stem == "edits" else ["t2i", "--prompts_file", rows]
    given = [*command, "--backend", backend, "--output_dir", out, "--api_base", address]
    model = [] if "--model_name" in more else ["--model_name", MODELS[backend]]
    return [str(word) for word in (*given, *model, "--retry_delay", "0.02", *more)]


def rows_of(folder: Path, prompts: list[str], **columns: Any) -> Path:
    return write_jsonl(folder / "rows.jsonl", [{"prompt": prompt} | columns for prompt in prompts])


def edits_of(folder: Path, prompts: Sequence[str], count: int, **columns: Any) -> tuple[Path, dict[str, list[bytes]]]:
    """A table of edits, and the bytes of the `count` images of each of its instructions: PNG, JPEG and WebP files, of
    which no two rows that follow one another have the same in the same place."""
    names = [f"images/{n}.{('png', 'jpg', 'webp')[n % 3]}" for n in range(7)]
    (folder / "images").mkdir(exist_ok=True)
    for n, name in enumerate(names):
        picture(n).save(folder / name)
    chosen = {prompt: [names[(n + 2 * k) % len(names)] for k in range(count)] for n, prompt in enumerate(prompts)}
    rows = [{"instruction": prompt, "input_images": chosen[prompt]} | columns for prompt in prompts]
    given = {prompt: [(folder / name).read_bytes() for name in images] for prompt, images in chosen.items()}
    return write_jsonl(folder / "edits.jsonl", rows), given


def assert_right_images(out: Path, prompts: list[str], given: Mapping[str, Sequence[bytes]] | None = None) -> None:
    """Every prompt has its own picture (of an edit: made from its own input images), and nothing else lies there."""
    lines = ledger(out)
    assert sorted(line["prompt"] for line in lines) == sorted(prompts)
    for line in lines:
        pixel = np.asarray(Image.open(out / line["file_name"]).convert("RGB"))[3, 3]
        assert tuple(pixel) == colour_of(line["prompt"], (given or {}).get(line["prompt"], ())), line


def assert_no_key(out: Path, *texts: str) -> None:
    for path in out.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path
    assert not any(KEY in text or KEY[:10] in text for text in texts)


def wait_for(what: Callable[[], bool], timeout: float = 180) -> None:
    until = time.monotonic() + timeout
    while not what():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)
