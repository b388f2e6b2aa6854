"""Scores beside a ledger: what is read of them, what is refused, and where they are seen."""

import json
from pathlib import Path

import pytest

from dglaunch.output.gallery import write_page
from dglaunch.output.ledger import OutputFolder
from dglaunch.output.scores import Scores, present
from support.commands import dglaunch
from support.gallery_folder import data_of
from support.results import ledger, write_jsonl

MODULE = """
def brightness(images, lines):
    return [sum(image.resize((1, 1)).getpixel((0, 0))) for image in images]

def picky(images, lines):
    if any(line["index"] == 2 for line in lines):
        raise ValueError("not this one")
    return [line["sample"] - 10 * line["index"] for line in lines]

def short(images, lines):
    return [1.0]

def none(images, lines):
    return [None if line["index"] == 1 else float("nan") if line["index"] == 2 else "3.5" for line in lines]
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four prompts with two samples each."""
    folder = tmp_path_factory.mktemp("scored")
    table = write_jsonl(folder / "prompts.jsonl", [{"prompt": f"prompt {n}"} for n in range(4)])
    job = ["t2i", "--backend", "fake", "--prompts_file", table, "--num_images_per_prompt", "2"]
    assert dglaunch(*job, "--output_dir", folder / "out").code == 0
    (folder / "scorers_of_this_test.py").write_text(MODULE)
    return folder


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    """A copy of the folder, to be scored."""
    import shutil

    return Path(shutil.copytree(made / "out", tmp_path / "out"))


def score(out: Path, made: Path, *words: str | Path):
    return dglaunch("score", out, *words, cwd=made)


def scored(out: Path, name: str) -> dict[tuple[int, int], float]:
    return {(line["index"], line["sample"]): line["score"] for line in ledger(out / "scores", f"{name}.jsonl")}


def test_a_function_scores_each_image_once(made: Path, out: Path) -> None:
    before = (out / "metadata.jsonl").read_bytes()
    ended = score(out, made, "--with", "scorers_of_this_test:brightness", "--batch_size", "3")
    assert ended.code == 0 and "8 images scored" in ended.output, ended.output
    assert list(scored(out, "brightness")) == [(row, sample) for row in range(4) for sample in range(2)]
    assert (out / "metadata.jsonl").read_bytes() == before, "the ledger is not touched"
    assert sorted(path.name for path in (out / "scores").glob("[!.]*")) == ["brightness.json", "brightness.jsonl"]
    again = score(out, made, "--with", "scorers_of_this_test:brightness")
    assert again.code == 0 and "0 images scored (8 were before)" in again.output
    assert "score_brightness: 8 images scored" in dglaunch("status", out).output


def test_what_fails_is_told_and_the_rest_is_scored(made: Path, out: Path) -> None:
    """A batch that raises is tried image by image."""
    ended = score(out, made, "--with", "scorers_of_this_test:picky")
    assert ended.code == 3 and "000002_00.png: ValueError: not this one" in ended.output, ended.output
    assert scored(out, "picky") == {(row, n): n - 10 * row for row in (0, 1, 3) for n in (0, 1)}
    ended = score(out, made, "--with", "scorers_of_this_test:none")
    assert ended.code == 3 and "the function returned nan" in ended.output
    assert set(scored(out, "none").values()) == {3.5} and len(scored(out, "none")) == 4


def test_an_image_that_was_made_anew_is_scored_anew(made: Path, out: Path) -> None:
    score(out, made, "--with", "scorers_of_this_test:picky", "--name", "p")
    ended = dglaunch("redo", out, "--filter_rows", "score_p == 1", "--seed_offset", "100")
    assert ended.code == 0, ended.output
    assert [line["index"] for line in ledger(out) if "redo_of" in line] == [0]
    record = next(line for line in ledger(out) if "redo_of" in line)
    assert Scores.read(OutputFolder(out), "p").of(record) is None
    assert "score_p: 5 images scored" in dglaunch("status", out).output
    again = score(out, made, "--with", "scorers_of_this_test:picky", "--name", "p")
    assert "1 images scored (5 were before)" in again.output
    assert Scores.read(OutputFolder(out), "p").of(record) is not None and len(scored(out, "p")) == 6


def test_torn_and_foreign_lines_cost_themselves(made: Path, out: Path) -> None:
    score(out, made, "--with", "scorers_of_this_test:brightness")
    path = out / "scores" / "brightness.jsonl"
    lines = path.read_text().splitlines()
    others = ['{"index": 0, "sample": 0, "sha256": "x", "score": 1}', '{"index": -1}', "[]", '{"score": NaN}', "\x00"]
    (out / "scores" / "brightness-rank1of2.jsonl").write_text("\n".join([*lines[6:7], *others, lines[7][:30]]))
    path.write_text("\n".join([*lines[:6], '{"index": 9, "sample": 0, "sha256": "' + "0" * 64 + '", "score": 5}', ""]))
    ended = score(out, made, "--with", "scorers_of_this_test:brightness")
    assert ended.code == 0 and "1 images scored (7 were before)" in ended.output, ended.output
    assert path.read_text().splitlines() == lines, "one file, of the images that there are"


def test_the_page_has_the_scores(made: Path, out: Path) -> None:
    score(out, made, "--with", "scorers_of_this_test:picky")
    data = data_of(write_page(out))
    assert data["scores"] == ["score_picky"]
    assert data["columns"]["score_picky"] == [0, 1, -10, -9, None, None, -30, -29]
    assert data_of(write_page(made / "out", made / "gallery.html"))["scores"] == []


def test_layouts_carry_them(made: Path, out: Path) -> None:
    score(out, made, "--with", "scorers_of_this_test:picky")
    job = ["t2i", "--backend", "fake", "--prompts_file", made / "prompts.jsonl", "--num_images_per_prompt", "2"]
    assert dglaunch(*job, "--output_dir", out, "--layout", "parquet").code == 0
    from pyarrow import parquet

    rows = parquet.read_table(out / "parquet" / "00000.parquet").to_pylist()
    assert [json.loads(row["ledger"]).get("score_picky") for row in rows] == [0, 1, -10, -9, None, None, -30, -29]


def test_the_best_of_each_prompt(made: Path, out: Path) -> None:
    ended = score(out, made, "--with", "scorers_of_this_test:picky", "--best_of", "1")
    assert ended.code == 3 and "the best 3 images of 3 prompts" in ended.output
    view = out / "best_of_1_picky"
    names = ["000000_01.png", "000001_01.png", "000003_01.png"]
    assert sorted(path.name for path in view.glob("*.png")) == names
    assert [(line["file_name"], line["score_picky"]) for line in ledger(view)] == list(zip(names, [1, -9, -29]))
    assert (view / names[0]).read_bytes() == (out / names[0]).read_bytes()
    assert dglaunch("redo", out, "--filter_rows", "0", "--seed_offset", "9").code == 0
    (made / "other.py").write_text(MODULE.replace('line["sample"] - 10', '-line["sample"] - 10'))
    score(out, made, "--with", "other:picky", "--overwrite")
    renewed = dglaunch("score", out, "--name", "picky", "--best_of", "1")
    assert renewed.code == 0, renewed.output
    names = ["000000_00.png", "000001_00.png", "000003_00.png"]
    assert sorted(path.name for path in view.glob("*.png")) == names, "what is not the best any more is gone"
    assert (view / names[0]).read_bytes() == (out / names[0]).read_bytes()
    (view / names[0]).write_bytes(b"mine")
    (view / "mine.png").write_bytes(b"mine")
    refused = dglaunch("score", out, "--name", "picky", "--best_of", "1")
    assert refused.code == 2 and "mine.png" in refused.output and (view / "mine.png").read_bytes() == b"mine"


WRONG = {
    "no such model": (["--with", "clop"], "Do you mean clip?"),
    "no such module": (["--with", "nowhere:f"], "there is no module nowhere"),
    "no such function": (["--with", "scorers_of_this_test:f"], "has no function f"),
    "a file in place of a module": (["--with", "scorers_of_this_test.py:f"], "the module, not its file"),
    "too few numbers": (["--with", "scorers_of_this_test:short"], "one number for each image"),
    "an aesthetic score without a head": (["--with", "aesthetic"], "needs --head"),
    "a head of a function": (
        ["--with", "scorers_of_this_test:short", "--head", "scorers_of_this_test.py"],
        "--head does nothing",
    ),
    "a head that is no file": (["--with", "clip", "--head", "nowhere.safetensors"], "there is no such file"),
    "a pickle without a head": (["--with", "clip", "--allow_pickle"], "--allow_pickle does nothing"),
    "a name that is none": (["--with", "clip", "--name", "a-b"], "letters, digits and _"),
    "nothing": ([], "Name what scores"),
    "a view of no scores": (["--name", "clip", "--best_of", "1"], "has no scores of this name"),
    "a view of none": (["--with", "clip", "--best_of", "0"], "must be 1 or more"),
    "only a batch size": (["--batch_size", "4"], "does nothing without --with"),
    "a model that is not here": (["--with", "nobody/nothing"], "hf download nobody/nothing"),
}


@pytest.mark.parametrize("case", WRONG)
def test_mistakes(made: Path, out: Path, case: str) -> None:
    words, told = WRONG[case]
    ended = score(out, made, *words)
    assert ended.code == 2 and told in ended.output, ended.output
    assert "Traceback" not in ended.output


def test_nothing_of_the_users_is_touched(made: Path, out: Path) -> None:
    (out / "scores").mkdir()
    (out / "scores" / "brightness.jsonl").write_text("mine\n")
    ended = score(out, made, "--with", "scorers_of_this_test:brightness")
    assert ended.code == 2 and "did not write" in ended.output
    assert (out / "scores" / "brightness.jsonl").read_text() == "mine\n" and present(OutputFolder(out)) == []


def test_scores_of_another_function_are_not_mixed(made: Path, out: Path) -> None:
    assert score(out, made, "--with", "scorers_of_this_test:brightness").code == 0
    kept = (out / "scores" / "brightness.jsonl").read_bytes()
    ended = score(out, made, "--with", "scorers_of_this_test:picky", "--name", "brightness")
    assert (
        ended.code == 2 and "scorers_of_this_test:brightness" in ended.output and "--name brightness_2" in ended.output
    )
    assert (out / "scores" / "brightness.jsonl").read_bytes() == kept


def test_a_column_of_the_table_is_not_hidden(made: Path, tmp_path: Path) -> None:
    table = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "a", "score_clip": "good"}])
    assert dglaunch("t2i", "--backend", "fake", "--prompts_file", table, "--output_dir", tmp_path / "out").code == 0
    ended = score(tmp_path / "out", made, "--with", "scorers_of_this_test:brightness", "--name", "clip")
    assert ended.code == 2 and "column score_clip of their own" in ended.output


@pytest.mark.parametrize("store", ["webdataset", "parquet"])
def test_images_in_shards_are_scored_and_the_best_are_files(made: Path, tmp_path: Path, store: str) -> None:
    out = tmp_path / "out"
    job = ["t2i", "--backend", "fake", "--prompts_file", made / "prompts.jsonl", "--num_images_per_prompt", "2"]
    assert dglaunch(*job, "--store", store, "--output_dir", out).code == 0
    ended = score(out, made, "--with", "scorers_of_this_test:brightness", "--best_of", "1")
    assert ended.code == 0, ended.output
    assert len(scored(out, "brightness")) == 8
    view = next(out.glob("best_of_1_*"))
    assert len(list(view.glob("*.png"))) == 4
