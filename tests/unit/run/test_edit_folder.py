"""`edit` of a folder of photographs, as a user runs it, with the fake backend."""

import hashlib
import os
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

from support.commands import Ended, dglaunch
from support.edit_images import picture
from support.results import images, ledger, write_jsonl


def photos(folder: Path, *names: str) -> Path:
    """A folder with these photographs; no two look alike."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(int(hashlib.sha256(name.encode()).hexdigest()[:6], 16)).save(path)
    return folder


def edit(folder: Path, out: Path, *flags: str) -> Ended:
    return dglaunch("edit", "--backend", "fake", "--input", folder, "--instruction", "make it night", "--output_dir", out, *flags)  # fmt: skip


def results(out: Path) -> dict[str, tuple[int, str, int]]:
    """By photograph: index, file and seed of its result."""
    return {str(*line["input_images"]): (line["index"], line["file_name"], line["seed"]) for line in ledger(out)}  # type: ignore[misc]


def digests(folder: Path) -> dict[str, str]:
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_of_photographs(tmp_path: Path) -> None:
    folder = photos(
        tmp_path / "photos", "IMG_10.jpg", "IMG_2.jpg", "IMG_1.png", "IMG_1.jpg", ".hidden.jpg", "day/x.png"
    )
    (folder / "notes.TXT").write_text("hello")
    (folder / "IMG_1.jpg.json").write_text("{}")
    before = digests(folder)
    out = tmp_path / "out"
    ended = edit(folder, out)
    assert ended.code == 0, ended.output
    said = f"input 4 images of {folder}; left out: 1 hidden file, 2 files that are no images (.txt, .json), 1 folder (--recursive looks into folders)"  # fmt: skip
    assert ended.output.count(said) == 1 or ended.output.count(said.replace(".txt, .json", ".json, .txt")) == 1
    assert "columns" not in ended.output, "there is no table"
    assert results(out) == {
        "IMG_1.jpg": (0, "000000.png", 0), "IMG_1.png": (1, "000001.png", 1), "IMG_2.jpg": (2, "IMG_2.png", 2),
        "IMG_10.jpg": (3, "IMG_10.png", 3),
    }  # fmt: skip
    assert {line["instruction"] for line in ledger(out)} == {"make it night"} and digests(folder) == before
    assert dglaunch("verify", out).code == 0
    again = edit(folder, out)
    assert again.code == 0 and "0 made, 0 failed, 4 there before" in again.output


def test_one_photograph_and_several_samples(tmp_path: Path) -> None:
    folder, out = photos(tmp_path / "photos", "a, b.jpg", "c.jpg"), tmp_path / "out"
    assert edit(folder / "a, b.jpg", out, "--num_images_per_prompt", "2").code == 0
    assert sorted(images(out)) == ["a, b_00.png", "a, b_01.png"]


def test_photographs_may_come_later(tmp_path: Path) -> None:
    folder, out = photos(tmp_path / "photos", "b.jpg", "c.jpg", "d.jpg"), tmp_path / "out"
    (folder / "c.jpg").write_bytes(b"torn")
    assert edit(folder, out).code == 3
    first, before = results(out), digests(out)
    assert ledger(out, "failures.jsonl")[0]["input_images"] == ["c.jpg"]
    assert set(first) == {"b.jpg", "d.jpg"} and [line["index"] for line in ledger(out, "failures.jsonl")] == [1]
    photos(folder, "a.jpg", "b.png", "c.jpg")
    ended = edit(folder, out)
    assert ended.code == 0 and "3 made, 0 failed, 2 there before" in ended.output, ended.output
    assert results(out) == first | {"c.jpg": (1, "c.png", 1), "a.jpg": (3, "a.png", 3), "b.png": (4, "000004.png", 4)}
    assert all(digests(out)[name] == digest for name, digest in before.items() if name.endswith(".png"))
    assert dglaunch("verify", out).code == 0


def test_what_was_to_be_made_keeps_its_index_too(tmp_path: Path) -> None:
    """A repair takes a line out of the ledger; meanwhile another photograph has come."""
    folder, out = photos(tmp_path / "photos", "b.jpg", "c.jpg"), tmp_path / "out"
    assert edit(folder, out).code == 0
    first = results(out)
    (out / "b.png").unlink()
    photos(folder, "a.jpg")
    assert edit(folder, out).code == 0
    assert results(out) == first | {"a.jpg": (2, "a.png", 2)}


def test_photographs_may_go(tmp_path: Path) -> None:
    folder, out = photos(tmp_path / "photos", "a.jpg", "b.jpg", "c.jpg"), tmp_path / "out"
    (folder / "b.jpg").write_bytes(b"torn")
    assert edit(folder, out).code == 3
    (folder / "a.jpg").unlink()
    (folder / "b.jpg").unlink()
    ended = edit(folder, out)
    assert ended.code == 0 and "0 made, 0 failed, 2 there before, of 2" in ended.output, ended.output
    assert "1 of an earlier start are not there any more, their results stay" in ended.output
    assert set(images(out)) == {"a.png", "c.png"} and ledger(out, "failures.jsonl") == []


def test_another_photograph_or_folder_is_another_job(tmp_path: Path) -> None:
    folder, out = photos(tmp_path / "photos", "a.jpg", "b.jpg"), tmp_path / "out"
    assert edit(folder, out).code == 0
    ended = dglaunch("edit", "--backend", "fake", "--input", folder, "--instruction", "day", "--output_dir", out)
    assert ended.code == 2 and "row 0, prompt: 'make it night' -> 'day'" in ended.output
    picture(99).save(folder / "a.jpg")
    ended = edit(folder, out)
    assert ended.code == 2 and "row 0, input_sha256: [" in ended.output
    ended = edit(photos(tmp_path / "others", "x.jpg"), out)
    assert ended.code == 2 and "2 images made there have no row any more (a.png, b.png)" in ended.output
    assert edit(photos(tmp_path / "others", "x.jpg"), out, "--overwrite").code == 0
    assert results(out) == {"x.jpg": (0, "x.png", 0)}


def test_without_the_kept_list_the_ledger_says_it(tmp_path: Path) -> None:
    """As after a merge."""
    folder, out = photos(tmp_path / "photos", "b.jpg", "c.jpg", "c.png"), tmp_path / "out"
    assert edit(folder, out).code == 0
    first = results(out)
    (out / ".dglaunch.prompts").unlink()
    photos(folder, "a.jpg")
    assert edit(folder, out).code == 0
    assert results(out) == first | {"a.jpg": (3, "a.png", 3)}


def test_nodes_agree_on_the_indexes_although_a_photograph_came_between(tmp_path: Path) -> None:
    folder, out = photos(tmp_path / "photos", *(f"p{n}.jpg" for n in range(6))), tmp_path / "out"
    assert edit(folder, out, "--node_rank", "0", "--num_nodes", "2").code == 0
    photos(folder, "a.jpg")
    for node in ("1", "0"):
        assert edit(folder, out, "--node_rank", node, "--num_nodes", "2").code == 0
    assert results(out) == {f"p{n}.jpg": (n, f"p{n}.png", n) for n in range(6)} | {"a.jpg": (6, "a.png", 6)}
    assert dglaunch("verify", out).code == 0


def test_results_in_the_folder_are_not_eaten(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", "a.jpg", "day/b.jpg", "day/.cache/c.jpg", "night/d.png")
    (folder / "again").symlink_to(folder)  # no endless walk
    before = digests(folder)
    for out in (folder / "out", folder / "day" / "out", folder / "new"):
        for made in (4 - 1, 0):
            ended = edit(folder, out, "--recursive")
            assert ended.code == 0 and f"{made} made" in ended.output, ended.output
    assert results(folder / "new") == {
        "a.jpg": (0, "a.png", 0), "day/b.jpg": (1, "b.png", 1), "night/d.png": (2, "d.png", 2),
    }  # fmt: skip
    assert "3 folders of dglaunch's results" in ended.output and before.items() <= digests(folder).items()


def test_an_instruction_for_the_rows_that_have_none(tmp_path: Path) -> None:
    photos(tmp_path, "a.jpg", "b.jpg")
    table = write_jsonl(
        tmp_path / "t.jsonl", [{"input_images": "a.jpg"}, {"input_images": "b.jpg", "instruction": "day"}]
    )
    assert edit(table, tmp_path / "out").code == 0
    assert [line["prompt"] for line in sorted(ledger(tmp_path / "out"), key=lambda line: line["index"])] == [
        "make it night",
        "day",
    ]
    table = write_jsonl(tmp_path / "t.jsonl", [{"input_images": "b.jpg", "instruction": "day"}])
    ended = edit(table, tmp_path / "other")
    assert ended.code == 2 and "--instruction does nothing" in ended.output


def test_replay_and_the_gallery_find_the_photographs(tmp_path: Path) -> None:
    folder, out = photos(tmp_path / "photos", "a.jpg", "b.jpg"), tmp_path / "out"
    assert edit(folder, out, "--gallery").code == 0
    assert "../photos/a.jpg" in (out / "gallery.html").read_text()
    assert dglaunch("replay", out / "b.png", "--output", tmp_path / "again.png").code == 0
    (folder / "b.jpg").unlink()
    ended = dglaunch("replay", out / "b.png", "--output", tmp_path / "again.png")
    assert ended.code == 2 and "b.jpg was not found" in ended.output, ended.output


def test_what_cannot_be_is_told_with_its_remedy(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", "a.jpg")
    mixed = photos(tmp_path / "mixed", "a.jpg")
    (mixed / "edits.parquet").write_bytes(b"")
    above = photos(tmp_path / "above", "day/a.jpg").resolve()
    table = write_jsonl(tmp_path / "t.jsonl", [{"input_images": "photos/a.jpg"}])
    night = ["--instruction", "night"]
    for flags, said in (
        ([folder], f"The images of {folder} have no instruction. Give one for all, such as --instruction"),
        ([folder / "a.jpg"], "has no instruction"),
        ([folder, "--instruction", " "], "--instruction is empty"),
        ([mixed, *night], "holds both images (1) and Parquet tables (1)"),
        ([above, *night], "holds neither images nor Parquet tables; there are 1 folder"),
        ([above, *night], "or add --recursive."),
        ([tmp_path / "phots", *night], "There is no file or folder"),
        ([folder, *night, "--output_dir", folder], "is the folder of the photographs"),
        ([folder, *night, "--output_name_column", "x"], "have no columns"),
        ([table, *night, "--recursive"], "is a table; drop it"),
        ([folder / "a.jpg", *night, "--recursive"], "is an image; drop it"),
    ):
        ended = dglaunch("edit", "--backend", "fake", "--output_dir", tmp_path / "out", "--input", *flags)
        assert ended.code == 2 and said in ended.output and "Traceback" not in ended.output, ended.output
    assert not (tmp_path / "out").exists()


def test_a_name_that_is_no_text_is_told(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", "a.jpg")
    shutil.copy(folder / "a.jpg", os.fsencode(folder) + b"/\xe4.jpg")
    ended = edit(folder, tmp_path / "out")
    assert ended.code == 2 and "is not UTF-8" in ended.output and "Rename" in ended.output


def test_a_phone_s_photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    exif = Image.Exif()
    exif[0x0112] = 6
    folder, out = tmp_path / "photos", tmp_path / "out"
    folder.mkdir()
    for n in range(3):
        picture(n, (96, 64)).save(folder / f"IMG_{n}.HEIC", "HEIF", exif=exif.tobytes())
    ended = edit(folder, out, "--save_inputs")
    assert ended.code == 0, ended.output
    assert sorted(images(out)) == ["IMG_0.png", "IMG_1.png", "IMG_2.png"] and (out / "inputs/000002_0.heic").exists()
    assert {(line["width"], line["height"]) for line in ledger(out)} == {(64, 96)}
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    ended = edit(folder, tmp_path / "other")
    assert ended.code == 2 and ended.output == (
        f"dglaunch: Reading 3 HEIC images of {folder} needs the package pillow-heif, which is not installed. Install it: "
        "pip install 'dglaunch[photos]'\n"
    )
