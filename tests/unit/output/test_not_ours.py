"""Files in an output folder that are not dglaunch's: no command writes, moves or deletes them, whatever they are called.

Each folder is looked at before and after: what is not ours has the same bytes.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from support.commands import dglaunch
from support.edit_images import SINGLE, save_table
from support.results import images, ledger, run_json, write_jsonl

FAKE = ["t2i", "--backend", "fake"]


def run(out: Path, *words: str | Path, count: int = 3, code: int = 0) -> str:
    """A job of some prompts into a folder; what it said."""
    table = write_jsonl(out.parent / f"prompts{count}.jsonl", [{"prompt": f"prompt {n}"} for n in range(count)])
    ended = dglaunch(*FAKE, "--prompts_file", table, "--output_dir", out, *words)
    assert ended.code == code and "Traceback" not in ended.output, ended.output
    return ended.output


def contents(folder: Path) -> dict[str, bytes]:
    """Every regular file of a folder, hidden ones too."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


def mine(path: Path, text: str = "mine") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def photo(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), "teal").save(path)
    return path


CAPTIONS = '{"file_name": "a.jpg", "text": "a caption"}\n'

# -- a start ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metadata.jsonl", CAPTIONS),
        ("failures.jsonl", CAPTIONS),
        ("run.json", '{"lr": 0.1}'),
        ("run.json", "not json"),
        ("metadata-node0of2.jsonl", CAPTIONS),
    ],
)
def test_a_file_of_our_name_that_is_not_ours_stops_the_start(
    tmp_path: Path, name: str, text: str, overwrite: list[str]
) -> None:
    mine(tmp_path / "out" / name, text)
    said = run(tmp_path / "out", *overwrite, code=2)
    assert name in said and "did not write and would replace" in said
    assert (tmp_path / "out" / name).read_text() == text and not images(tmp_path / "out")


def test_captions_beside_an_edits_table_stay(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    table = save_table(photos / "edits.csv", SINGLE[:2])
    mine(photos / "metadata.jsonl", CAPTIONS)
    before = contents(photos)
    ended = dglaunch("edit", "--backend", "fake", "--input", table, "--output_dir", photos)
    assert ended.code == 2 and "metadata.jsonl" in ended.output
    assert before.items() <= contents(photos).items()


def test_a_table_that_the_run_would_replace_is_refused(tmp_path: Path) -> None:
    run(tmp_path / "out")
    table = tmp_path / "out" / "metadata.jsonl"
    before = contents(tmp_path / "out")
    ended = dglaunch(*FAKE, "--prompts_file", table, "--output_dir", tmp_path / "out", "--overwrite")
    assert ended.code == 2 and "is read and would be written" in ended.output
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("foreign", ["run_config.json", "run-1.json", "metadata_val.jsonl", "failures_old.jsonl"])
def test_what_is_only_called_alike_is_nobodys_business(tmp_path: Path, foreign: str) -> None:
    """Nor does it switch the check for pictures off."""
    file = mine(tmp_path / "out" / foreign, '{"outcome": "done", "num_tasks": 1}')
    picture = photo(tmp_path / "out" / "000001.png")
    before = contents(tmp_path / "out")
    assert "would overwrite (000001.png)" in run(tmp_path / "out", code=2)
    assert before.items() <= contents(tmp_path / "out").items()
    picture.unlink()
    run(tmp_path / "out")
    run(tmp_path / "out", "--overwrite")
    assert file.exists() and len(images(tmp_path / "out")) == 3


def test_a_row_more_does_not_replace_a_picture_of_the_users(tmp_path: Path) -> None:
    run(tmp_path / "out")
    picture = photo(tmp_path / "out" / "000003.png").read_bytes()
    assert "would overwrite (000003.png)" in run(tmp_path / "out", count=4, code=2)
    assert (tmp_path / "out" / "000003.png").read_bytes() == picture and len(ledger(tmp_path / "out")) == 3


def test_what_a_killed_run_left_is_replaced_and_another_image_is_not(tmp_path: Path) -> None:
    run(tmp_path / "out")
    lines = sorted(ledger(tmp_path / "out"), key=lambda line: line["index"])
    write_jsonl(tmp_path / "out" / "metadata.jsonl", lines[:2])
    run(tmp_path / "out")
    assert len(ledger(tmp_path / "out")) == 3
    write_jsonl(tmp_path / "out" / "metadata.jsonl", lines[:2])
    shutil.copy(tmp_path / "out" / "000000.png", tmp_path / "out" / "000002.png")
    assert "would overwrite (000002.png)" in run(tmp_path / "out", code=2)


def test_a_result_that_was_changed_is_moved_aside_and_made_again(tmp_path: Path) -> None:
    run(tmp_path / "out")
    painted = photo(tmp_path / "out" / "000001.png").read_bytes()
    run(tmp_path / "out")
    assert (tmp_path / "out" / ".dglaunch-aside" / "000001.png").read_bytes() == painted
    assert dglaunch("verify", tmp_path / "out").code == 0


# -- --overwrite --------------------------------------------------------------------------------------------------


def test_overwrite_removes_nothing_before_all_is_well(tmp_path: Path) -> None:
    """A forgotten key, a model that does not load: the earlier images are still there, and still a job."""
    out = tmp_path / "out"
    run(out)
    before = contents(out)
    table = write_jsonl(tmp_path / "other.jsonl", [{"prompt": "another"}])
    api = ["--backend", "openai", "--model_name", "gpt-image-1.5"]
    ended = dglaunch("t2i", *api, "--prompts_file", table, "--output_dir", out, "--overwrite", OPENAI_API_KEY="")
    assert ended.code == 2 and "OPENAI_API_KEY" in ended.output
    assert contents(out) == before
    run(out)
    assert run_json(out)["num_skipped"] == 3


def test_overwrite_removes_what_is_ours_and_moves_aside_what_was_changed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(out)
    painted = photo(out / "000001.png").read_bytes()
    kept = [mine(out / "notes.txt"), photo(out / "20250714_153012.jpg"), mine(out / "metadata_val.jsonl", CAPTIONS)]
    before = {path: path.read_bytes() for path in kept}
    with (out / "metadata.jsonl").open("a") as lines:
        lines.write(json.dumps(ledger(out)[0] | {"index": 9, "file_name": "notes.txt"}) + "\n")
        lines.write(CAPTIONS)
    run(out, "--overwrite", count=1)
    assert {path: path.read_bytes() for path in kept} == before
    assert (out / ".dglaunch-aside" / "000001.png").read_bytes() == painted
    assert CAPTIONS in (out / ".dglaunch-aside" / "metadata.jsonl").read_text()
    assert [line["file_name"] for line in ledger(out)] == ["000000.png"] and not (out / "000002.png").exists()


def test_a_column_called_as_the_copies_of_inputs_deletes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    picture = photo(out / "inputs" / "1_1.png")
    rows: list[dict[str, Any]] = [{"prompt": "a", "input_file_names": ["inputs/1_1.png"], "input_sha256": ["0" * 64]}]
    table = write_jsonl(tmp_path / "rows.jsonl", rows)
    for more in ([], ["--overwrite"]):
        ended = dglaunch(*FAKE, "--prompts_file", table, "--output_dir", out, *more)
        assert ended.code == 0, ended.output
    assert picture.exists()


# -- verify, merge ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["20250714_153012.jpg", "000000000139.jpg", "000099.png", "sheet.webp", "IMG_1.JPEG"])
def test_verify_leaves_the_users_pictures_and_finds_nothing_wrong(tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    run(out)
    (photo(out / "x.png")).rename(out / name)
    before = contents(out)
    for words in (["verify", out], ["verify", out, "--repair"]):
        ended = dglaunch(*words)
        assert ended.code == 0 and f"{name} has no ledger line (left alone)" in ended.output, ended.output
    assert contents(out) == before
    assert dglaunch("merge", out, "--output_dir", tmp_path / "merged").code == 0


def test_repair_with_an_empty_ledger_loses_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(out)
    pixels = {name: path.tobytes() for name, path in images(out).items()}
    (out / "metadata.jsonl").write_text("")
    assert dglaunch("verify", out, "--repair").code == 1
    assert {name: path.tobytes() for name, path in images(out / ".dglaunch-aside").items()} == pixels
    run(out)
    assert dglaunch("verify", out).code == 0


def test_repair_leaves_a_foreign_folder_as_it_is(tmp_path: Path) -> None:
    mine(tmp_path / "ds" / "metadata.jsonl", CAPTIONS)
    photo(tmp_path / "ds" / "a.jpg")
    before = contents(tmp_path / "ds")
    dglaunch("verify", tmp_path / "ds", "--repair")
    after = contents(tmp_path / "ds")
    after.pop(".dglaunch.lock", None)
    assert after == before


def test_repair_takes_the_lock_of_a_folder_that_was_copied_without_it(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(out)
    (out / ".dglaunch.lock").unlink()
    (out / "000001.png").write_bytes(b"damaged")
    assert dglaunch("verify", out, "--repair").code == 1
    assert (out / ".dglaunch.lock").exists()


def test_a_torn_run_json_is_a_problem(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(out)
    (out / "run.json").write_text((out / "run.json").read_text()[:100])
    ended = dglaunch("verify", out)
    assert ended.code == 1 and "run.json cannot be read" in ended.output
    run(out)
    assert dglaunch("verify", out).code == 0


# -- links --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [".dglaunch.lock", "metadata.jsonl", "failures.jsonl", "run.json", "000001.png"])
def test_no_link_leads_what_is_written_out_of_the_folder(tmp_path: Path, name: str) -> None:
    target = mine(tmp_path / "precious.txt", "")
    out = tmp_path / "out"
    out.mkdir()
    (out / name).symlink_to(target)
    run(out, code=2)
    assert target.read_text() == "" and (out / name).is_symlink()


@pytest.mark.parametrize("name", ["parquet", ".dglaunch-aside", "inputs"])
def test_no_folder_that_is_a_link_is_written_to(tmp_path: Path, name: str) -> None:
    elsewhere, out = tmp_path / "elsewhere", tmp_path / "out"
    elsewhere.mkdir()
    out.mkdir()
    (out / name).symlink_to(elsewhere)
    if name == "inputs":
        table = save_table(tmp_path / "edits.csv", SINGLE[:2])
        words = ["edit", "--backend", "fake", "--input", table, "--save_inputs", "--output_dir", out]
        assert dglaunch(*words).code in (1, 2)
    elif name == "parquet":
        run(out, "--layout", "parquet", code=2)
    else:
        run(out)
        (out / "000001.png").write_bytes(b"damaged")
        assert dglaunch("verify", out, "--repair").code == 1
    assert not list(elsewhere.iterdir())


def test_a_folder_named_by_a_link_is_written_to(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    run(tmp_path / "out")
    assert len(images(tmp_path / "disk")) == 3


@pytest.mark.parametrize("kind", ["a FIFO", "a device"])
def test_what_is_no_file_does_not_hang_a_command(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    run(out)
    for name in ("000001.png", "metadata-node0of2.jsonl"):
        path = out / name
        path.unlink(missing_ok=True)
        os.mkfifo(path) if kind == "a FIFO" else path.symlink_to("/dev/zero")
        for words in (
            ["verify", out],
            ["status", out],
            ["gallery", out],
            ["merge", out, "--output_dir", tmp_path / "m"],
        ):
            ended = dglaunch(*words)
            assert ended.code in (0, 1, 2) and "Traceback" not in ended.output, ended.output
        path.unlink()
