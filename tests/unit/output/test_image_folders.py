"""Images in folders (--files_per_folder): names, the public view, what fixes them, and every command on such a folder."""

import json
import shutil
from pathlib import Path

import pytest

from dglaunch.output.image_folders import ImageFolders, Told
from support.commands import Ended, dglaunch
from support.results import ledger, run_json, write_jsonl


def words(folder: Path, rows: int = 12, column: bool = False) -> list[str | Path]:
    table = write_jsonl(
        folder / "p.jsonl", [{"prompt": f"p {n}", **({"name": f"cat_{n}"} if column else {})} for n in range(rows)]
    )
    return ["t2i", "--backend", "fake", "--prompts_file", table, "--output_dir", folder / "out"]


def run(folder: Path, *more: str | Path, rows: int = 12, column: bool = False) -> Ended:
    return dglaunch(*words(folder, rows, column), "--files_per_folder", "5", *more)


def image_folder(root: Path) -> dict[str, str]:
    """The images of a folder and their prompts, as `datasets` documents its ImageFolder: every image has its line in the
    metadata.jsonl that is nearest above it, whose `file_name` is relative to that file; and each line has an image."""
    found: dict[str, str] = {}
    for metadata in sorted(root.rglob("metadata.jsonl")):
        if any(part.startswith(".") for part in metadata.relative_to(root).parts):
            continue  # `datasets` looks into no hidden folder
        for line in metadata.read_text().splitlines():
            record = json.loads(line)
            path = metadata.parent / record["file_name"]
            near = next(above / "metadata.jsonl" for above in path.parents if (above / "metadata.jsonl").exists())
            assert near == metadata and path.is_file()
            name = path.relative_to(root).as_posix()
            assert name not in found
            found[name] = record["prompt"]
    assert sorted(found) == sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))
    return found


def test_the_folder_follows_from_the_index() -> None:
    assert ImageFolders.chosen(None, 10_000, 1) is None
    assert ImageFolders.chosen(0, 10**7, 1) is None
    of_many = ImageFolders.chosen(None, 10**7, 1)
    assert of_many is not None
    assert of_many.place(12_345, "012345.png") == "0001/012345.png"
    assert of_many.place(9_999_999, "9999999.png") == "0999/9999999.png"
    of_samples = ImageFolders.chosen(None, 10**5, 4)
    assert of_samples is not None
    assert of_samples.place(2_500, "002500_03.png") == "0001/002500_03.png"
    far_apart = {of_many.place(n * 10**12 + n, "x.png").partition("/")[0] for n in range(50_000)}
    assert len(far_apart) <= 10_000
    assert ImageFolders.read(of_many.record) == of_many
    assert ImageFolders.read({"files": -1, "samples": 1, "count": 3}) is None
    assert ImageFolders.read("no") is None


@pytest.mark.parametrize("column", [False, True])
def test_the_whole_and_each_part_are_an_image_folder(tmp_path: Path, column: bool) -> None:
    more = ["--output_name_column", "name"] if column else []
    assert run(tmp_path, *more, column=column).code == 0
    out = tmp_path / "out"
    names = ["cat_{}", "{:06d}"][not column]
    assert image_folder(out) == {f"{n // 5:04d}/{names.format(n)}.png": f"p {n}" for n in range(12)}
    assert image_folder(out / "0001") == {f"{names.format(n)}.png": f"p {n}" for n in range(5, 10)}
    assert [line["index"] for line in ledger(out / "0001")] == list(range(5, 10))
    assert not (out / "metadata.jsonl").exists()
    assert run_json(out)["image_folders"]["files"] == 5
    assert "12 are there already" in run(tmp_path, *more, column=column).output


def test_every_command_works_on_it(tmp_path: Path) -> None:
    assert run(tmp_path).code == 0
    out = tmp_path / "out"
    assert "12 images are right" in dglaunch("verify", out).output
    assert "12 of 12 images done" in dglaunch("status", out).output
    assert dglaunch("gallery", out).code == 0
    assert '"0001/000007.png"' in (out / "gallery.html").read_text()
    assert dglaunch("gallery", out, "--contact_sheet", tmp_path / "sheet.png").code == 0
    assert dglaunch("merge", out, "--output_dir", tmp_path / "all").code == 0
    assert image_folder(tmp_path / "all") == image_folder(out)
    again = dglaunch(*words(tmp_path)[:-1], tmp_path / "all")
    assert "12 are there already" in again.output
    assert dglaunch("redo", out, "--filter_rows", "7", "--seed_offset", "5").code == 0
    assert ledger(out / "0001")[2]["seed"] == 12
    shutil.rmtree(out / "replaced")
    assert len(image_folder(out)) == 12
    assert dglaunch(*words(tmp_path), "--layout", "webdataset").code == 0
    assert (out / "webdataset" / "00000.tar").exists()


def test_rows_that_were_added_and_images_that_are_gone(tmp_path: Path) -> None:
    assert run(tmp_path).code == 0
    (tmp_path / "out" / "0000" / "000003.png").unlink()
    shutil.rmtree(tmp_path / "out" / "0001")
    ended = run(tmp_path, rows=14)
    assert "6 are there already" in ended.output
    assert sorted(image_folder(tmp_path / "out").values()) == sorted(f"p {n}" for n in range(14))


def test_it_is_fixed_at_the_first_start(tmp_path: Path) -> None:
    assert run(tmp_path).code == 0
    assert "12 are there already" in dglaunch(*words(tmp_path)).output
    refused = dglaunch(*words(tmp_path), "--files_per_folder", "7")
    assert refused.code == 2
    assert "keeps its images in folders of 5 since the job's first start" in refused.output
    flat = [*words(tmp_path)[:-1], tmp_path / "flat"]
    assert dglaunch(*flat).code == 0
    assert (tmp_path / "flat" / "000000.png").exists()
    refused = dglaunch(*flat, "--files_per_folder", "5")
    assert refused.code == 2
    assert "in one folder since" in refused.output
    assert dglaunch(*flat, "--files_per_folder", "5", "--overwrite").code == 0
    assert len(image_folder(tmp_path / "flat")) == 12
    assert not (tmp_path / "flat" / "000000.png").exists()


@pytest.mark.parametrize(("rows", "named"), [(12, None), (12, "5"), (3, "5")])
def test_a_lost_run_json_does_not_lose_the_folders(tmp_path: Path, rows: int, named: str | None) -> None:
    """The names in the ledgers tell how many images there are to a folder; of one folder the flag has to."""
    assert run(tmp_path, rows=rows).code == 0
    (tmp_path / "out" / "run.json").unlink()
    ended = dglaunch(*words(tmp_path, 14), *(["--files_per_folder", named] if named else []))
    assert ended.code == 0 and f"{rows} there before, of 14" in ended.output, ended.output
    assert sorted(image_folder(tmp_path / "out").values()) == sorted(f"p {n}" for n in range(14))
    assert run_json(tmp_path / "out")["image_folders"]["files"] == 5


def test_what_the_names_leave_open_is_asked(tmp_path: Path) -> None:
    assert run(tmp_path, "--filter_rows", "0,8").code == 0
    (tmp_path / "out" / "run.json").unlink()
    for flag in ([], ["--files_per_folder", "9"]):
        ended = dglaunch(*words(tmp_path), *flag)
        assert ended.code == 2 and "Say --files_per_folder" in ended.output and "5 to 8" in ended.output, ended.output
    assert dglaunch(*words(tmp_path), "--files_per_folder", "5").code == 0
    assert len(image_folder(tmp_path / "out")) == 12


def test_ledgers_tell_the_folders() -> None:
    """Also where their numbers begin anew, for those that are asked about."""

    def told(way: ImageFolders, indices: range, *asked: ImageFolders) -> Told | None:
        return Told.of([{"index": n, "sample": 0, "file_name": way.place(n, f"{n:06d}.png")} for n in indices], asked)

    five, seven = ImageFolders(5, 1, 10_000), ImageFolders(7, 1, 10_000)
    found = told(five, range(12), seven, five)
    assert found is not None and found.fitting == [five] and (found.least, found.most) == (5, 5)
    found = told(five, range(7), seven)
    assert found is not None and found.fitting == [] and (found.least, found.most) == (5, 5)
    found = told(five, range(3), seven)
    assert found is not None and found.fitting == [seven]
    far_apart = told(five, range(0, 10**7, 49_999), seven, five)
    assert far_apart is not None and far_apart.fitting == [five]
    assert Told.of([{"index": 0, "sample": 0, "file_name": "000000.png"}], [five]) is None
    assert Told.of([], [five]) is None


@pytest.mark.parametrize("there", ["a file", "a link", "another job", "their metadata", "their picture"])
def test_nothing_of_the_users_is_written_to(tmp_path: Path, there: str) -> None:
    place = tmp_path / "out" / "0001"
    (tmp_path / "elsewhere").mkdir()
    place.parent.mkdir()
    if there == "a file":
        place.write_text("mine")
    elif there == "a link":
        place.symlink_to(tmp_path / "elsewhere")
    elif there == "another job":
        assert dglaunch(*words(tmp_path)[:-1], place).code == 0
    elif there == "their metadata":
        place.mkdir()
        (place / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "b"}\n')
    else:
        place.mkdir()
        (place / "000007.png").write_bytes(b"mine")
    ended = run(tmp_path)
    assert ended.code == 2, ended.output
    assert "0001" in ended.output
    assert not (tmp_path / "out" / "0000").exists()


def test_overwrite_takes_the_folders_away_and_leaves_what_is_theirs(tmp_path: Path) -> None:
    assert run(tmp_path).code == 0
    out = tmp_path / "out"
    (out / "0001" / "notes.txt").write_text("mine")
    assert dglaunch(*words(tmp_path), "--files_per_folder", "0", "--overwrite").code == 0
    assert (out / "000007.png").exists()
    assert (out / "0001" / "notes.txt").read_text() == "mine"
    assert not (out / "0000").exists()
    assert "12 images are right" in dglaunch("verify", out).output


def test_nodes_without_a_rendezvous_publish_together(tmp_path: Path) -> None:
    for node in ("1", "0"):
        assert run(tmp_path, "--node_rank", node, "--num_nodes", "2").code == 0
    out = tmp_path / "out"
    assert [line["index"] for name in ("0000", "0001", "0002") for line in ledger(out / name)] == list(range(12))
    assert "12 images are right" in dglaunch("verify", out).output
    assert "12 are there already" in run(tmp_path).output
    assert len(image_folder(out)) == 12
