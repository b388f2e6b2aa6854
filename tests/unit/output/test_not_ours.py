"""Files in an output folder that are not dglaunch's: no command writes, moves or deletes them, whatever they are called.

Each folder is looked at before and after: what is not ours has the same bytes.
"""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from PIL import EpsImagePlugin, Image

from dglaunch.output.encode import encode
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
    Image.new("RGB", (64, 64), "teal").save(path)
    return path


CAPTIONS = '{"file_name": "a.jpg", "text": "a caption"}\n'

# -- a start ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metadata.jsonl", CAPTIONS),
        ("failures.jsonl", CAPTIONS),
        ("failures.jsonl", "my own notes\n"),
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
    assert "would be overwritten (000001.png)" in run(tmp_path / "out", code=2)
    assert before.items() <= contents(tmp_path / "out").items()
    picture.unlink()
    run(tmp_path / "out")
    run(tmp_path / "out", "--overwrite")
    assert file.exists() and len(images(tmp_path / "out")) == 3


def test_a_row_more_does_not_replace_a_picture_of_the_users(tmp_path: Path) -> None:
    run(tmp_path / "out")
    picture = photo(tmp_path / "out" / "000003.png").read_bytes()
    assert "would be overwritten (000003.png)" in run(tmp_path / "out", count=4, code=2)
    assert (tmp_path / "out" / "000003.png").read_bytes() == picture and len(ledger(tmp_path / "out")) == 3


def test_what_a_killed_run_left_is_replaced_and_another_image_is_not(tmp_path: Path) -> None:
    run(tmp_path / "out")
    lines = sorted(ledger(tmp_path / "out"), key=lambda line: line["index"])
    write_jsonl(tmp_path / "out" / "metadata.jsonl", lines[:2])
    run(tmp_path / "out")
    assert len(ledger(tmp_path / "out")) == 3
    write_jsonl(tmp_path / "out" / "metadata.jsonl", lines[:2])
    shutil.copy(tmp_path / "out" / "000000.png", tmp_path / "out" / "000002.png")
    assert "would be overwritten (000002.png)" in run(tmp_path / "out", code=2)


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
    api = ["--backend", "openai", "--model_name", "gpt-image-2"]
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
            assert ended.code in (0, 1, 2, 130) and "Traceback" not in ended.output, ended.output
        path.unlink()


@pytest.mark.parametrize("kind", ["a FIFO", "a device"])
def test_an_input_image_that_is_no_file_fails_its_row(tmp_path: Path, kind: str) -> None:
    table = save_table(tmp_path / "edits.csv", SINGLE[:2])
    path = tmp_path / "images" / "a.png"
    path.unlink()
    os.mkfifo(path) if kind == "a FIFO" else path.symlink_to("/dev/zero")
    ended = dglaunch("edit", "--backend", "fake", "--input", table, "--output_dir", tmp_path / "out")
    assert ended.code == 3 and "Traceback" not in ended.output, ended.output
    assert "no regular file" in ledger(tmp_path / "out", "failures.jsonl")[0]["error"]
    assert len(ledger(tmp_path / "out")) == 1


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n%%EndProlog\nshowpage\n"


def test_no_program_is_started_for_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow gives an EPS to ghostscript, whatever the file is called."""
    started: list[object] = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *given, **_: started.append(given))
    out, eps = tmp_path / "out", tmp_path / "a.png"
    run(out)
    eps.write_bytes(EPS)
    shutil.copy(eps, out / "000000.png")
    lines = [line | {"bytes": len(EPS), "sha256": sha256(EPS).hexdigest()} for line in ledger(out)]
    write_jsonl(out / "metadata.jsonl", lines)
    table = write_jsonl(tmp_path / "t.jsonl", [{"input_images": "a.png", "instruction": "x"}])
    for words in (
        ["verify", out], ["gallery", out, "--thumbnails", "16", "--contact_sheet", tmp_path / "s.png"],
        ["replay", out / "000000.png"], ["merge", out, "--output_dir", tmp_path / "m"], ["verify", out, "--repair"],
        ["edit", "--backend", "fake", "--input", table, "--output_dir", tmp_path / "edited"],
    ):  # fmt: skip
        ended = dglaunch(*words)
        assert ended.code in (0, 1, 2, 3) and "Traceback" not in ended.output, ended.output
    assert not started


# -- what only looks ----------------------------------------------------------------------------------------------


def test_what_only_looks_leaves_no_trace(tmp_path: Path) -> None:
    """A copy without its dot-files: not even a lock is made there."""
    out = tmp_path / "out"
    run(out)
    for path in out.glob(".*"):
        path.unlink()
    (out / "000001.png").write_bytes(b"damaged")
    before, times = contents(tmp_path), {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    table = tmp_path / "prompts3.jsonl"
    for words in (
        ["status", out], ["verify", out], ["plan", *FAKE, "--prompts_file", table, "--output_dir", out],
        ["plan", *FAKE, "--prompts_file", table, "--output_dir", tmp_path / "new"],
    ):  # fmt: skip
        assert dglaunch(*words).code in (0, 1, 130)
        assert contents(tmp_path) == before
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == times


def test_merge_writes_into_an_empty_folder_and_leaves_the_parts(tmp_path: Path) -> None:
    run(tmp_path / "out")
    mine(tmp_path / "full" / "notes.txt")
    before = contents(tmp_path)
    assert dglaunch("merge", tmp_path / "out", "--output_dir", tmp_path / "full").code == 2
    assert contents(tmp_path) == before
    assert dglaunch("merge", tmp_path / "out", "--output_dir", tmp_path / "merged").code == 0
    assert before.items() <= contents(tmp_path).items()
    assert not any(path.is_symlink() for path in (tmp_path / "merged").rglob("*"))


# -- what a command was told to write -----------------------------------------------------------------------------


def test_a_page_of_the_users_is_not_replaced_and_ours_is(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(out)
    page = mine(out / "gallery.html", "<title>my holidays</title>")
    ended = dglaunch("gallery", out)
    assert ended.code == 2 and "gallery.html is there" in ended.output
    assert "was not written" in run(out, "--gallery") and page.read_text() == "<title>my holidays</title>"
    page.unlink()
    assert [dglaunch("gallery", out).code for _ in range(2)] == [0, 0]


def test_a_contact_sheet_replaces_nothing_but_a_contact_sheet(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(out)
    before = contents(out)
    for target in (out / "000001.png", photo(tmp_path / "photo.jpg")):
        assert dglaunch("gallery", out, "--contact_sheet", target).code == 2
    assert {name: data for name, data in contents(out).items() if name != "gallery.html"} == before
    assert [dglaunch("gallery", out, "--contact_sheet", tmp_path / "s.webp").code for _ in range(2)] == [0, 0]


def test_replay_replaces_nothing_but_what_replay_made(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(out)
    before = contents(out)
    for target in (out / "000001.png", photo(tmp_path / "photo.png")):
        assert dglaunch("replay", out / "000000.png", "--output", target).code == 2
    assert contents(out) == before
    again = ["replay", out / "000000.png", "--output", tmp_path / "again.png"]
    assert [dglaunch(*again).code for _ in range(2)] == [0, 0]


@pytest.mark.parametrize("name", ["run.json", "metadata.jsonl", "000000.png", "report.json", "link.json", "folder"])
def test_a_plan_replaces_nothing_but_a_plan(tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    run(out)
    mine(out / "report.json", '{"reasons": {}}')
    (out / "link.json").symlink_to(mine(tmp_path / "precious.json"))
    (out / "folder").mkdir()
    before = contents(out)
    ended = dglaunch("plan", *FAKE, "--prompt", "x", "--json", out / name)
    assert ended.code == 2 and name in ended.output and "Name another file" in ended.output, ended.output
    assert contents(out) == before and (out / "link.json").is_symlink()
    assert (tmp_path / "precious.json").read_text() == "mine"
    again = ["plan", *FAKE, "--prompt", "x", "--json", tmp_path / "plan.json"]
    assert [dglaunch(*again).code for _ in range(2)] == [0, 0]


def test_a_column_of_the_users_makes_no_result_a_report(tmp_path: Path) -> None:
    rows = [{"prompt": "x", "dglaunch": "plan", "contact_sheet": 3}]
    table = write_jsonl(tmp_path / "rows.jsonl", rows)
    assert dglaunch(*FAKE, "--prompts_file", table, "--output_dir", tmp_path / "out").code == 0
    before = contents(tmp_path / "out")
    for name in ("metadata.jsonl", "000000.png"):
        assert dglaunch("plan", *FAKE, "--prompt", "x", "--json", tmp_path / "out" / name).code == 2
    assert dglaunch("gallery", tmp_path / "out", "--contact_sheet", tmp_path / "out" / "000000.png").code == 2
    assert before.items() <= contents(tmp_path / "out").items()


def test_a_layouts_folder_of_the_users_is_not_written_to(tmp_path: Path) -> None:
    out = tmp_path / "out"
    mine(out / "webdataset" / "00000.tar")
    before = contents(out)
    assert "dglaunch did not make it" in run(out, "--layout", "webdataset", code=2)
    assert before.items() <= contents(out).items() and not images(out)
    (out / "webdataset").rename(tmp_path / "mine")
    for _ in range(2):
        run(out, "--layout", "webdataset")
    assert (out / "webdataset" / "00000.tar").stat().st_size > 1000


COPIES = ["cp -r out copy", "cp -rL out copy", "mkdir copy && tar -C out -c . | tar -C copy -x"]


@pytest.mark.parametrize("command", COPIES)
@pytest.mark.parametrize("layout", ["webdataset", "genarena"])
def test_a_view_of_ours_is_ours_in_a_copy_too(tmp_path: Path, command: str, layout: str) -> None:
    run(tmp_path / "out", "--layout", layout)
    subprocess.run(command, shell=True, cwd=tmp_path, check=True)
    copy = tmp_path / "copy"
    for count in (3, 4):
        assert f"{count} images for {layout}" in run(copy, "--layout", layout, count=count)
    assert len(contents(copy / layout)) == (4 if layout == "genarena" else 1)
    assert not (copy / ".dglaunch-aside").exists()


def test_a_file_that_somebody_put_into_a_view_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(out, "--layout", "genarena")
    picture = photo(out / "genarena" / "000003.png")
    before = contents(out)
    said = run(out, "--layout", "genarena", count=4, code=2)
    assert "dglaunch did not make (000003.png)" in said
    assert contents(out) == before
    picture.unlink()
    mine(out / "genarena" / "scores.json")
    run(out, "--layout", "genarena", count=4)
    assert (out / "genarena" / "scores.json").read_text() == "mine"


def test_what_was_changed_in_a_view_is_moved_aside(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(out, "--layout", "genarena")
    for name in ("000001.png", "000002.png"):
        (out / "genarena" / name).unlink()
    mine(out / "genarena" / "000001.png")
    (out / "genarena" / "000002.png").symlink_to(mine(tmp_path / "precious"))
    run(out, "--layout", "genarena")
    assert contents(out / ".dglaunch-aside") == {"000001.png": b"mine"}
    assert (tmp_path / "precious").read_text() == "mine"
    assert (out / "genarena" / "000001.png").samefile(out / "000001.png")


NAMED = {"file_name": "00000.tar", "sha256": "0" * 64}
LINES = [NAMED, NAMED | {"index": 0, "sample": 0}, NAMED | {"file_name": "../a"}, NAMED | {"sha256": "0"}]


@pytest.mark.parametrize("line", [*(json.dumps(line) + "\n" for line in LINES), "1234", "[" * 2000])
def test_no_mark_gives_a_file_away(tmp_path: Path, line: str) -> None:
    """A stranger's mark, one of an older dglaunch, or one that is no text of ours."""
    out = tmp_path / "out"
    tar = mine(out / "webdataset" / "00000.tar")
    mine(out / ".dglaunch-view-webdataset", line)
    named = line == json.dumps(NAMED) + "\n"
    run(out, "--layout", "webdataset", code=0 if named else 2)
    assert (out / ".dglaunch-view-webdataset").read_text().startswith(line)
    assert (out / ".dglaunch-aside" / "00000.tar" if named else tar).read_text() == "mine"


def test_a_mark_that_a_kill_has_cut_names_what_is_whole(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(out, "--layout", "webdataset")
    mark = out / ".dglaunch-view-webdataset"
    mark.write_bytes(mark.read_bytes() + b'{"file_name": "00001.t')
    for count in (4, 5):
        run(out, "--layout", "webdataset", count=count)
    assert not (out / ".dglaunch-aside").exists()


def test_copies_of_inputs_are_ours_in_a_copy_of_a_killed_run_too(tmp_path: Path) -> None:
    table = save_table(tmp_path / "edits.csv", SINGLE[:3])
    words = ["edit", "--backend", "fake", "--input", table, "--save_inputs", "--output_dir"]
    assert dglaunch(*words, tmp_path / "out").code == 0
    copy = shutil.copytree(tmp_path / "out", tmp_path / "copy")
    lines = ledger(copy)
    write_jsonl(copy / "metadata.jsonl", [line for line in lines if line["index"] != 1])
    (copy / "000001.png").unlink()
    mine(copy / "inputs" / "Thumbs.db")
    assert dglaunch(*words, copy).code == 0
    assert len(ledger(copy)) == 3 and not (copy / ".dglaunch-aside").exists()


def test_a_link_inside_of_a_layouts_folder_is_not_followed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(out, "--layout", "t2i_compbench")
    (tmp_path / "elsewhere").mkdir()
    shutil.rmtree(out / "t2i_compbench" / "samples")
    (out / "t2i_compbench" / "samples").symlink_to(tmp_path / "elsewhere")
    run(out, "--layout", "t2i_compbench", code=1)
    assert not list((tmp_path / "elsewhere").iterdir())


# -- another user's -----------------------------------------------------------------------------------------------


@pytest.fixture
def as_nobody(tmp_path: Path) -> Iterator[Path]:
    """Results that root made and keeps to itself, looked at by a user without rights."""
    if os.geteuid() != 0:
        pytest.skip("another user can only be taken on by root")
    with tempfile.TemporaryDirectory(prefix="dglaunch-rights-") as name:
        out = Path(name) / "out"
        run(out)
        for words in (["status", out], ["verify", out, "--repair"], ["gallery", out]):
            assert dglaunch(*words).code == 0  # what they import, nobody could not read here
        Path(name).chmod(0o755)
        os.seteuid(65534)
        try:
            yield Path(name) / "out"
        finally:
            os.seteuid(0)


@pytest.mark.parametrize("name", ["metadata.jsonl", "run.json", ".dglaunch.lock", "000001.png", ""])
def test_what_belongs_to_somebody_else_is_told(as_nobody: Path, name: str) -> None:
    os.seteuid(0)
    table = write_jsonl(as_nobody.parent / "rows.jsonl", [{"prompt": "prompt 0"}])
    table.chmod(0o644)
    (as_nobody / name).chmod(0o700 if not name else 0o600)
    os.seteuid(65534)
    for words in (
        ["status", as_nobody],
        ["verify", as_nobody],
        ["verify", as_nobody, "--repair"],
        ["gallery", as_nobody],
    ):
        ended = dglaunch(*words)
        assert ended.code in (0, 1, 2) and "Traceback" not in ended.output, ended.output
    ended = dglaunch(*FAKE, "--prompts_file", table, "--output_dir", as_nobody)
    assert ended.code == 2 and "Traceback" not in ended.output, ended.output


# -- found by somebody who tried to break it ----------------------------------------------------------------------


def test_another_job_does_not_replace_images_whose_ledger_is_gone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(out)
    (out / "metadata.jsonl").unlink()
    before = contents(out)
    other = write_jsonl(tmp_path / "other.jsonl", [{"prompt": "another"}])
    ended = dglaunch(*FAKE, "--prompts_file", other, "--output_dir", out)
    assert ended.code == 2 and "000000.png" in ended.output
    assert before.items() <= contents(out).items()


def test_overwrite_follows_no_name_of_a_copy_out_of_its_folder(tmp_path: Path) -> None:
    out, victim = tmp_path / "out", mine(tmp_path / "victim" / "inputs" / "photo.txt")
    run(out)
    (out / "lnk").symlink_to(tmp_path / "victim")
    lines = ledger(out)
    lines[0] |= {"input_file_names": ["lnk/inputs/photo.txt"], "input_sha256": [sha256(b"mine").hexdigest()]}
    write_jsonl(out / "metadata.jsonl", lines)
    run(out, "--overwrite")
    assert victim.read_text() == "mine"


def test_save_inputs_does_not_take_the_users_files_for_its_copies(tmp_path: Path) -> None:
    out = tmp_path / "out"
    picture = photo(out / "inputs" / "000000_0.png")
    table = write_jsonl(out / "t.jsonl", [{"input_images": "inputs/000000_0.png", "instruction": "x"}])
    before = contents(out)
    ended = dglaunch("edit", "--backend", "fake", "--input", table, "--output_dir", out, "--save_inputs")
    assert ended.code == 2 and "000000_0.png" in ended.output
    assert before.items() <= contents(out).items() and picture.exists()


@pytest.mark.parametrize("name", ["metadata.jsonl", "failures.jsonl"])
def test_a_file_of_one_endless_line_is_not_ours(tmp_path: Path, name: str) -> None:
    file = mine(tmp_path / "out" / name, json.dumps({"mine": "x" * (17 << 20)}))
    size = file.stat().st_size
    run(tmp_path / "out", code=2)
    assert file.stat().st_size == size


def test_an_input_in_a_view_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(out, "--layout", "genarena")
    before = contents(out)
    table = write_jsonl(tmp_path / "t.jsonl", [{"input_images": "out/genarena/000001.png", "instruction": "x"}] * 3)
    words = ["edit", "--backend", "fake", "--input", table, "--output_dir", out, "--layout", "genarena", "--overwrite"]
    ended = dglaunch(*words)
    assert ended.code == 2 and "is read and would be written" in ended.output, ended.output
    assert contents(out) == before


@pytest.mark.parametrize("name", [".dglaunch-view-parquet", ".dglaunch-aside/metadata.jsonl", ".dglaunch.lock"])
def test_a_fifo_of_our_name_does_not_hang(tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    run(out)
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).unlink(missing_ok=True)
    os.mkfifo(out / name)
    with (out / "metadata.jsonl").open("a") as lines:
        lines.write("garbage\n")
    for words in (["verify", out, "--repair"], [*FAKE, "--prompt", "x", "--output_dir", out, "--layout", "parquet"]):
        ended = dglaunch(*words)
        assert ended.code in (0, 1, 2) and "Traceback" not in ended.output, ended.output


def test_a_backup_by_hard_links_is_not_written_to(tmp_path: Path) -> None:
    out, backup = tmp_path / "out", tmp_path / "backup"
    run(out)
    backup.mkdir()
    for path in [path for path in out.iterdir() if path.is_file()]:
        os.link(path, backup / path.name)
    before = contents(backup)
    run(out, count=4)
    assert contents(backup) == before and len(ledger(out)) == 4


def test_lines_of_others_keep_their_bytes(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(out)
    foreign, bad = '{"f":"caf\u00e9 \ufffd"}\n'.encode("utf-8", "surrogateescape"), b"{no json \xe9} my note"
    with (out / "metadata.jsonl").open("ab") as lines:
        lines.write(foreign + bad)
    run(out)
    assert foreign in (out / "metadata.jsonl").read_bytes()
    assert bad in (out / ".dglaunch-aside" / "metadata.jsonl").read_bytes()


def test_lines_of_images_that_were_moved_away_are_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(out)
    lines = (out / "metadata.jsonl").read_text().splitlines()
    for path in out.glob("*.png"):
        path.rename(tmp_path / path.name)
    other = write_jsonl(tmp_path / "other.jsonl", [{"prompt": "another"}])
    assert dglaunch(*FAKE, "--prompts_file", other, "--output_dir", out).code == 0
    assert set(lines) <= set((out / ".dglaunch-aside" / "metadata.jsonl").read_text().splitlines())


def test_status_counts_what_is_there(tmp_path: Path) -> None:
    run(tmp_path / "out")
    (tmp_path / "out" / "000000.png").unlink()
    ended = dglaunch("status", tmp_path / "out")
    assert ended.code == 130 and "2 of 3 images done" in ended.output


def test_no_link_brings_a_file_from_elsewhere_into_a_result(tmp_path: Path) -> None:
    out, secret = tmp_path / "out", mine(tmp_path / "secret", "secret " * 9)
    run(out)
    (out / "000000.png").unlink()
    (out / "000000.png").symlink_to(secret)
    lines = ledger(out)
    for line in lines:
        line["bytes"] = secret.stat().st_size if line["file_name"] == "000000.png" else line["bytes"]
    write_jsonl(out / "metadata.jsonl", lines)
    run(out, "--layout", "webdataset")
    assert b"secret" not in (out / "webdataset" / "00000.tar").read_bytes()


def test_a_view_of_the_users_in_the_place_of_ours_is_not_written_to(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(out, "--layout", "t2i_compbench")
    (out / "t2i_compbench").rename(out / "old")
    mine(out / "t2i_compbench" / "samples" / "mine.png")
    assert "dglaunch did not make (samples/mine.png)" in run(out, "--layout", "t2i_compbench", code=2)


LONG = "n" * 300


@pytest.mark.parametrize(
    "words",
    [
        ["status", LONG], ["verify", LONG], ["gallery", LONG], ["merge", LONG, "--output_dir", "m"], ["merge", "out", "--output_dir", LONG],
        ["replay", LONG + ".png"], ["replay", "out/000000.png", "--output", LONG + ".png"], ["gallery", "out", "--output", LONG],
        ["t2i", "--backend", "fake", "--prompts_file", LONG + ".jsonl"], ["plan", "t2i", "--prompt", "x", "--model_name", LONG],
        ["merge", "out", "--output_dir", "prompts3.jsonl"],
    ],
)  # fmt: skip
def test_a_name_that_cannot_be_is_told(tmp_path: Path, words: list[str]) -> None:
    run(tmp_path / "out")
    ended = dglaunch(*words, cwd=tmp_path)
    assert ended.code == 2 and "Traceback" not in ended.output and "dglaunch: " in ended.output, ended.output


@pytest.mark.parametrize(
    "changed",
    [
        {"images_per_s": 10**400}, {"config": {"input": {"value": "x" * 5000}}}, {"tasks": "0:9,3:5x2" * 9}, {"num_tasks": 10**10},
        {"tasks": ",".join(f"{k}:{60_000 - k}x{k % 9999 + 1}" for k in range(20_000))},
    ],
    ids=["speed", "table", "nonsense", "many", "overlapping"],
)  # fmt: skip
def test_what_a_run_json_says_costs_no_command(tmp_path: Path, changed: dict[str, object]) -> None:
    out = tmp_path / "out"
    run(out)
    (out / "run.json").write_text(json.dumps(run_json(out) | changed))
    for words in (["status", out], ["verify", out], ["gallery", out]):
        ended = dglaunch(*words)
        assert ended.code in (0, 1, 130) and "Traceback" not in ended.output, ended.output[-500:]


@pytest.mark.parametrize(
    "changed", [{"backend": []}, {"backend": {}}, {"input_images": ["x"] * 5000, "input_sha256": ["y"] * 5000}]
)
def test_what_an_image_says_costs_no_replay(tmp_path: Path, changed: dict[str, object]) -> None:
    text = {"index": 0, "sample": 0, "prompt": "x", "seed": 1, "model": "tiny", "backend": "fake", **changed}
    (tmp_path / "a.png").write_bytes(encode(Image.new("RGB", (64, 64)), "png", text))
    ended = dglaunch("replay", tmp_path / "a.png", cwd=tmp_path)
    assert ended.code == 2 and "Traceback" not in ended.output, ended.output


def test_a_file_named_like_a_note_about_memory_stays(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(out)
    note = out / ".dglaunch-oom-64x64-4.json"
    note.write_bytes(b"mine")
    run(out, "--overwrite")
    assert note.read_bytes() == b"mine"
