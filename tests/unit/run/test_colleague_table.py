"""A colleague's table as a user hands it in: what is used, what is kept, what is refused, and that an old folder goes on."""

import gzip
import json
from pathlib import Path

import pytest

from support.commands import dglaunch
from support.edit_images import picture
from support.results import images, ledger, run_json, write_jsonl

FAKE = ["t2i", "--backend", "fake"]


def table(path: Path, header: str = "Prompt,id,Seed", count: int = 3) -> Path:
    path.write_text(header + "\n" + "".join(f"a fox {n},q{n},{n + 40}\n" for n in range(count)))
    return path


def test_a_colleagues_csv_at_the_first_try(tmp_path: Path) -> None:
    words = [*FAKE, "--prompts_file", table(tmp_path / "c.csv"), "--output_dir", tmp_path / "out"]
    said = dglaunch("plan", *words).output
    assert "used: prompt, seed; kept: id\n" in said
    ended = dglaunch(*words)
    assert ended.code == 0 and ended.output.count("used: prompt, seed; kept: id\n") == 1
    lines = sorted(ledger(tmp_path / "out"), key=lambda line: line["index"])
    assert [(line["prompt"], line["seed"], line["id"]) for line in lines] == [(f"a fox {n}", n + 40, f"q{n}") for n in range(3)]  # fmt: skip
    assert run_json(tmp_path / "out")["columns"] == {
        "used": {"prompt": "Prompt", "seed": "Seed"}, "kept": ["id"], "exact_names": False
    }  # fmt: skip
    again = dglaunch(*words)
    assert again.code == 0 and run_json(tmp_path / "out")["num_skipped"] == 3


def test_one_cause_is_one_error_with_a_count(tmp_path: Path) -> None:
    path = table(tmp_path / "c.csv", header="Caption,id,Seed", count=20)
    ended = dglaunch(*FAKE, "--prompts_file", path, "--output_dir", tmp_path / "out")
    assert ended.code == 2 and ended.output.count("no prompt") == 1, ended.output
    assert "20 bad rows" in ended.output and "the same in 19 more rows" in ended.output
    assert "(there are: Caption, id, Seed); --prompt_column says" in ended.output
    assert dglaunch("plan", *FAKE, "--prompts_file", path, "--prompt_column", "caption").code == 0
    rows = [{"prompt": "a", "seed": f"x{n}"} for n in range(30)] + [{"prompt": "a", "width": 0}]
    ended = dglaunch("plan", *FAKE, "--prompts_file", write_jsonl(tmp_path / "p.jsonl", rows))
    assert ended.output.count("not a whole number") == 1 and "29 more rows: line 2, line 3" in ended.output
    assert "line 31: width is 0" in ended.output


def test_a_misspelt_setting_is_refused_in_a_new_job_and_an_older_one_goes_on(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "guidence_scale": 3, "Seed": 7}]
    words = [*FAKE, "--prompts_file", write_jsonl(tmp_path / "p.jsonl", rows), "--output_dir", tmp_path / "out"]
    refused = dglaunch(*words)
    assert refused.code == 2 and "guidence_scale: rename it guidance_scale (line 1)" in refused.output
    assert not (tmp_path / "out").exists() and dglaunch("plan", *words).code == 2
    # As an earlier dglaunch began it: it knew neither the near miss nor the seed in capitals.
    assert dglaunch(*words, "--ignore_columns", "guidence_scale", "Seed").code == 0
    run = run_json(tmp_path / "out")
    del run["columns"]
    (tmp_path / "out" / "run.json").write_text(json.dumps(run))
    (tmp_path / "out" / "000000.png").unlink()
    for _ in range(2):  # the first of them writes a run.json of today
        goes_on = dglaunch(*words)
        assert goes_on.code == 0 and "kept: guidence_scale, Seed" in goes_on.output, goes_on.output
    (line,) = ledger(tmp_path / "out")
    assert (line["seed"], line["Seed"], line["guidence_scale"]) == (0, 7, 3)
    assert (
        dglaunch(*words, "--overwrite").code == 2 and dglaunch(*words, "--ignore_columns", "guidence_scale").code == 0
    )


def test_several_files_a_pattern_and_packed_ones(tmp_path: Path) -> None:
    table(tmp_path / "b.csv")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "packed"}\n'))
    out = ["--output_dir", tmp_path / "out"]
    ended = dglaunch(*FAKE, "--prompts_file", tmp_path / "a.jsonl.gz", f"{tmp_path}/*.csv", *out)
    assert ended.code == 0, ended.output
    lines = sorted(ledger(tmp_path / "out"), key=lambda line: line["index"])
    assert [line["prompt"] for line in lines] == ["packed", "a fox 0", "a fox 1", "a fox 2"]
    assert run_json(tmp_path / "out")["config"]["prompts_file"]["value"] == [
        f"{tmp_path}/a.jsonl.gz",
        f"{tmp_path}/*.csv",
    ]
    ended = dglaunch("plan", *FAKE, "--prompts_file", "-", tmp_path / "b.csv")
    assert ended.code == 2 and "Name it alone" in ended.output


def test_variables_hold_several_words(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "a", "cfg": 1, "my size": 2}])
    ended = dglaunch("plan", *FAKE, "--prompts_file", path, DG_IGNORE_COLUMNS="cfg 'my size'", DG_GRID="seed=1,2")
    assert ended.code == 0 and "2 images" in ended.output, ended.output
    ended = dglaunch("plan", *FAKE, "--prompts_file", path, DG_IGNORE_COLUMNS="'cfg")
    assert ended.code == 2 and "quote that does not end" in ended.output


@pytest.fixture
def albums(tmp_path: Path) -> list[Path]:
    """Tables in two folders, each with a picture of the same name."""
    for n, name in enumerate("ab"):
        (tmp_path / name).mkdir()
        picture(n).save(tmp_path / name / "1.png")
        (tmp_path / name / "t.tsv").write_text("Photo\tWhat\n1.png\tmake it red\n")
    return [tmp_path / "a" / "t.tsv", tmp_path / "b" / "t.tsv"]


def test_edits_of_tables_in_several_folders(tmp_path: Path, albums: list[Path]) -> None:
    words = [
        "edit",
        "--backend",
        "fake",
        "--image_column",
        "photo",
        "--instruction_column",
        "what",
        "--output_dir",
        tmp_path / "out",
    ]
    ended = dglaunch(*words, "--input", *albums, "--gallery")
    assert ended.code == 0 and "used: instruction (What), input_images (Photo)\n" in ended.output, ended.output
    lines = sorted(ledger(tmp_path / "out"), key=lambda line: line["index"])
    assert [line["input_images"] for line in lines] == [["a/1.png"], ["b/1.png"]]
    assert len({line["input_sha256"][0] for line in lines}) == 2 and len(images(tmp_path / "out")) == 2
    page = (tmp_path / "out" / "gallery.html").read_text(encoding="utf-8")
    assert "../a/1.png" in page and "../b/1.png" in page
    ended = dglaunch("replay", tmp_path / "out" / "000001.png", "--output", tmp_path / "again.png")
    assert ended.code == 0 and "pixel for pixel" in ended.output, ended.output


def test_the_old_name_of_a_flag_is_gone(tmp_path: Path, albums: list[Path]) -> None:
    ended = dglaunch("edit", "--backend", "fake", "--input", albums[0], "--instruction_key", "What")
    assert ended.code == 2 and "--instruction_key" in ended.output


def test_a_list_that_is_given_twice_is_one() -> None:
    ended = dglaunch("plan", *FAKE, "--prompt", "a", "--grid", "seed=1,2", "--grid", "guidance_scale=2,3")
    assert ended.code == 0 and "grid 4 images of each" in ended.output, ended.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--grid", "--debug"], "--grid needs a value"),
        (["--debug", "--ignore-columns"], "--ignore_columns needs a value"),
    ],
)
def test_a_list_without_a_value_is_refused(words: list[str], said: str) -> None:
    ended = dglaunch("plan", *FAKE, "--prompt", "a", *words)
    assert ended.code == 2 and said in ended.output


def test_files_with_the_same_ids_are_numbered_anew(tmp_path: Path) -> None:
    files = [tmp_path / "a.csv", tmp_path / "b.csv"]
    for path in files:
        path.write_text("ID,prompt\n0,a\n1,b\n")
    ended = dglaunch("plan", *FAKE, "--prompts_file", *files)
    assert ended.code == 2, ended.output
    assert "used already in line 2 of a.csv; --ignore_columns ID numbers the rows anew" in ended.output
    ended = dglaunch("plan", *FAKE, "--prompts_file", *files, "--ignore_columns", "id")
    assert ended.code == 0 and "4 images" in ended.output and "kept: ID" in ended.output


def test_a_grid_of_a_template_in_run_json_and_in_each_ledger_line(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("Name,Style,note\nAda,oil,x\nBo,ink,y\n")
    words = [*FAKE, "--prompts_file", tmp_path / "c.csv", "--prompt_template", "{style} photo of {name}"]
    words += ["--grid", "guidance_scale=2,4,7", "seed=1,2", "--output_dir", tmp_path / "out"]
    ended = dglaunch(*words)
    assert ended.code == 0 and "grid 6 images of each: 3 of guidance_scale x 2 of seed" in ended.output, ended.output
    assert "used: Name (in --prompt_template), Style (in --prompt_template); kept: note\n" in ended.output
    run = run_json(tmp_path / "out")
    assert run["grid"] == {"guidance_scale": [2, 4, 7], "seed": [1, 2]} and run["num_tasks"] == 12
    assert [*run].index("grid") == [*run].index("settings") + 1 and list(run["grid"]) == ["guidance_scale", "seed"]
    lines = sorted(ledger(tmp_path / "out"), key=lambda line: line["index"])
    assert (lines[9]["prompt"], lines[9]["guidance_scale"], lines[9]["seed"], lines[9]["Style"]) == (
        "ink photo of Bo",
        4,
        2,
        "ink",
    )
    assert dglaunch(*words).code == 0 and run_json(tmp_path / "out")["num_skipped"] == 12
    changed = dglaunch(*[word if word != "seed=1,2" else "seed=1,3" for word in words])
    assert changed.code == 2 and "row 1, seed: 2 -> 3" in changed.output, changed.output
    again = dglaunch("replay", tmp_path / "out" / "000009.png", "--output", tmp_path / "again.png")
    assert again.code == 0 and "pixel for pixel" in again.output


def test_edits_in_a_grid_share_their_image(tmp_path: Path) -> None:
    picture(1).save(tmp_path / "a.png")
    path = write_jsonl(tmp_path / "t.jsonl", [{"input_images": "a.png", "what": "red"}])
    words = ["edit", "--backend", "fake", "--input", path, "--prompt_template", "make it {what}", "--grid", "seed=1,2"]
    ended = dglaunch(*words, "--output_dir", tmp_path / "out", "--save_inputs")
    assert ended.code == 0, ended.output
    lines = sorted(ledger(tmp_path / "out"), key=lambda line: line["index"])
    assert [(line["instruction"], line["seed"]) for line in lines] == [("make it red", 1), ("make it red", 2)]
    assert lines[0]["input_sha256"] == lines[1]["input_sha256"]
