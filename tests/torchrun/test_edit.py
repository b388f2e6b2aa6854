"""`edit` on several ranks with the fake backend: bad images, saved inputs, kills."""

import hashlib
import io
import json
import random
import shutil
import time
from pathlib import Path
from typing import Any

from support.commands import dglaunch
from support.edit_images import MULTI, bomb, picture, png, save_pictures, save_table
from support.ranks import World, on_ranks
from support.results import difference, ledger, run_json, write_jsonl

FAKE = ["edit", "--backend", "fake"]


def bad_images(folder: Path) -> dict[str, tuple[Any, str]]:
    """Cell and what is said of it, for images that cannot be used."""
    good = png(1)
    jpeg = io.BytesIO()
    picture(2, (256, 256)).save(jpeg, "JPEG", quality=95)
    files = {
        "torn.png": good[: len(good) // 2],
        "torn.jpg": jpeg.getvalue()[: len(jpeg.getvalue()) // 2],
        "empty.png": b"",
        "bomb.png": bomb(),
        "small_bomb.png": bomb(10_000, 10_000),
        "text.png": b"this is no image, whatever its name",
    }
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / "folder.png").mkdir()
    return {
        "missing": ("bad/nowhere.png", "input image bad/nowhere.png there is no file"),
        "truncated PNG": ("bad/torn.png", "input image bad/torn.png is torn or damaged"),
        "truncated JPEG": ("bad/torn.jpg", "input image bad/torn.jpg is torn or damaged"),
        "0 bytes": ("bad/empty.png", "input image bad/empty.png is empty (0 bytes)"),
        "bomb": ("bad/bomb.png", "as a decompression bomb has"),
        "bomb that Pillow only warns of": ("bad/small_bomb.png", "as a decompression bomb has"),
        "no image": ("bad/text.png", "is no image that can be read"),
        "a folder": ("bad/folder.png", "cannot be read: Is a directory"),
        "two images": ("images/a.png, images/b.png", "2 input images, but flux1_kontext (FluxKontextPipeline) takes"),
        "none": ([], "0 input images"),
        "a URL": ("https://nobody.invalid/a.png", "Name or service not known"),
    }


def test_bad_images_fail_their_rows_and_the_others_are_made(tmp_path: Path) -> None:
    save_pictures(tmp_path / "images")
    bad = bad_images(tmp_path / "bad")
    cells = [cell for what in bad for cell in ("images/a.png", bad[what][0])]
    rows = [{"input_images": cell, "instruction": f"edit {n}"} for n, cell in enumerate(cells)]
    path = write_jsonl(tmp_path / "t.jsonl", rows)
    arguments = [*FAKE, "--input", path, "--batch_size", "4", "--output_dir", tmp_path / "out"]
    case = on_ranks(tmp_path, 2, *arguments)
    assert case.codes == [3, 3] and run_json(tmp_path / "out")["outcome"] == "failed", case.output
    failures = {line["index"]: line for line in ledger(tmp_path / "out", "failures.jsonl")}
    assert sorted(failures) == list(range(1, 2 * len(bad), 2))
    for (what, (_, said)), index in zip(bad.items(), sorted(failures)):
        error = failures[index]["error"]
        assert error.startswith(f"{path}, line {index + 1}: ") and said in error, (what, error)
        assert failures[index]["instruction"] == f"edit {index}"
    assert sorted(line["index"] for line in ledger(tmp_path / "out")) == list(range(0, 2 * len(bad), 2))
    told = run_json(tmp_path / "out")
    assert (told["num_ok"], told["num_failed"], told["num_total"]) == (len(bad), len(bad), 2 * len(bad))
    # All are known before a model is loaded, as `plan` shows.
    planned = dglaunch("plan", *arguments)
    assert planned.code == 0 and f"{len(bad)} images in" in planned.output, planned.output
    assert "cannot be made: " in planned.output and "more rows that cannot be made" in planned.output
    # What is mended is made by the same command.
    shutil.copy(tmp_path / "images" / "b.png", tmp_path / "bad" / "nowhere.png")
    again = dglaunch(*arguments)
    assert again.code == 3 and run_json(tmp_path / "out")["num_ok"] == 1, again.output


def test_ledger_saved_inputs_and_overwrite(tmp_path: Path) -> None:
    path = save_table(tmp_path / "t.csv", MULTI)
    out = tmp_path / "out"
    arguments = [*FAKE, "--model_type", "flux2", "--input", path, "--save_inputs", "--output_dir", out]
    assert on_ranks(tmp_path, 2, *arguments).codes == [0, 0]
    lines = {line["index"]: line for line in ledger(out)}
    assert lines[4]["input_images"] == [f"images/{name}.png" for name in "acd"]
    assert lines[4]["instruction"] == lines[4]["prompt"] == "make it snow"
    for line in lines.values():
        for name, copy, digest in zip(line["input_images"], line["input_file_names"], line["input_sha256"]):
            data = (out / copy).read_bytes()
            assert data == (tmp_path / name).read_bytes() and hashlib.sha256(data).hexdigest() == digest
    assert sorted(p.name for p in (out / "inputs").iterdir())[:3] == ["000000_0.png", "000001_0.png", "000001_1.png"]
    assert run_json(out)["num_batches"] in (6, 7), "the cut between two equal shares may fall into a set"
    (out / "inputs" / "mine.txt").write_text("stays")
    (out / "inputs" / "000009_0.png").unlink()
    assert dglaunch(*arguments, "--overwrite").code == 0
    assert (out / "inputs" / "000009_0.png").exists() and (out / "inputs" / "mine.txt").exists()


def test_sigkill_and_resume_on_another_world_size(tmp_path: Path) -> None:
    save_pictures(tmp_path / "images")
    rows = [
        {"input_images": [f"images/{n}.png" for n in MULTI[r % 12]], "instruction": f"{r} [sleep 0.1]"}
        for r in range(24)
    ]
    path = write_jsonl(tmp_path / "t.jsonl", rows)
    arguments = [*FAKE, "--model_type", "flux2", "--input", path, "--save_inputs"]
    assert dglaunch(*arguments, "--output_dir", tmp_path / "reference").code == 0
    for number in range(2):
        out = tmp_path / f"kill{number}"
        world = World(tmp_path, 2, [*arguments, "--batch_size", "2", "--output_dir", out])
        limit = time.monotonic() + 60
        while not ledger(out) and world.poll() is None and time.monotonic() < limit:
            time.sleep(0.01)
        time.sleep(random.Random(number).uniform(0, 0.5))
        world.kill()
        assert len(ledger(out)) < 24
        ended = dglaunch(*arguments, "--batch_size", "3", "--output_dir", out)
        assert ended.code == 0 and run_json(out)["num_skipped"] > 0, ended.output
        assert difference(out, tmp_path / "reference") == 0
        assert sorted(line["index"] for line in ledger(out)) == list(range(24))
        assert difference(out / "inputs", tmp_path / "reference" / "inputs") == 0


def test_json_of_the_ledger_is_whole(tmp_path: Path) -> None:
    """Bytes of a Parquet table do not end in the ledger."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"instruction": f"{n}", "input_images": [png(n)], "id": f"r{n}"} for n in range(3)]
    path = tmp_path / "genarena.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    case = on_ranks(tmp_path, 2, *FAKE, "--input", path, "--output_dir", tmp_path / "out", "--save_inputs")
    assert case.codes == [0, 0], case.output
    lines = sorted(ledger(tmp_path / "out"), key=lambda line: line["index"])
    assert [line["input_images"] for line in lines] == [["input_images[0]"]] * 3 and lines[1]["id"] == "r1"
    assert (tmp_path / "out" / lines[2]["input_file_names"][0]).read_bytes() == png(2)
    assert max(len(json.dumps(line)) for line in lines) < 2000


def test_a_folder_of_photographs_is_listed_once_for_all_ranks(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(1, 13):
        picture(number).save(tmp_path / "photos" / f"p{number}.png")
    words = [*FAKE, "--input", tmp_path / "photos", "--instruction", "make it night", "--output_dir", tmp_path / "out"]
    assert on_ranks(tmp_path, 2, *words, "--shares", "static").codes == [0, 0]
    before = ledger(tmp_path / "out")
    assert {line["rank"] for line in before} == {0, 1}
    picture(99).save(tmp_path / "photos" / "a.png")
    case = on_ranks(tmp_path, 2, *words, "--writer", "rank")
    assert case.codes == [0, 0] and case.output.count("input 13 images of") == 1, case.output
    after = {line["input_images"][0]: line for line in ledger(tmp_path / "out")}
    assert [after[f"p{number}.png"]["index"] for number in range(1, 13)] == list(range(12))
    assert (after["a.png"]["index"], after["a.png"]["file_name"]) == (12, "a.png") and len(after) == 13
    assert all(after[line["input_images"][0]] == line for line in before)
