"""From Python: prompts as a list, paths as texts, and what a result hands back, in the order of index."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dglaunch import BackendConfig, EditingConfig, OptimizationConfig, T2IConfig, edit, t2i
from dglaunch.config import leaf_fields, settings
from dglaunch.errors import InputError, UserError
from dglaunch.output.contact_sheet import PREVIEW_MOST
from support.commands import dglaunch
from support.edit_images import picture
from support.results import run_json, write_jsonl


def config(folder: Path, prompts: Any, **more: Any) -> T2IConfig:
    return T2IConfig(backend=BackendConfig(backend="fake"), prompts=prompts, output_dir=str(folder / "out"), **more)


def test_a_list_of_prompts_and_rows(tmp_path: Path) -> None:
    rows = ["a red fox", {"prompt": "a cat", "seed": 7, "num_images_per_prompt": 2, "style": "oil"}, "x [item error]"]
    result = t2i(config(tmp_path, rows, seed=100))
    assert (result.outcome, result.counts.num_ok, result.output_dir) == ("failed", 3, tmp_path / "out")
    assert [(row["index"], row["sample"], row["prompt"], row["seed"], row.get("style")) for row in result.rows] == [
        (0, 0, "a red fox", 100, None), (1, 0, "a cat", 7, "oil"), (1, 1, "a cat", 8, "oil"),
    ]  # fmt: skip
    again = t2i(config(tmp_path, (*rows[:2], "y"), seed=100))  # rows may be added, as to a table
    assert (again.outcome, again.counts.num_skipped, again.counts.num_ok) == ("done", 3, 1) and not again.failures
    with pytest.raises(UserError, match="row 0, prompt: 'a red fox' -> 'a blue fox'"):
        t2i(config(tmp_path, ["a blue fox", *rows[1:]], seed=100))


def test_the_same_rows_in_a_file_are_the_same_job(tmp_path: Path) -> None:
    rows = [{"prompt": "a"}, {"prompt": "b", "seed": 3}]
    t2i(config(tmp_path, rows))
    table = write_jsonl(tmp_path / "p.jsonl", rows)
    ended = dglaunch("t2i", "--backend", "fake", "--prompts_file", table, "--output_dir", tmp_path / "out")
    assert ended.code == 0 and "2 there before" in ended.output


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("a red fox", "prompts is a str; give a list of texts or of dictionaries"),
        ({"prompt": "a"}, "prompts is a dict"),
        ([], "prompts is an empty list"),
        (iter(["a"]), "prompts is a list_iterator"),
    ],
)
def test_what_is_no_list_of_rows_is_told(tmp_path: Path, given: object, said: str) -> None:
    with pytest.raises(UserError, match=said):
        config(tmp_path, given)
    with pytest.raises(UserError, match="Give one of prompts, prompts_file and prompt"):
        T2IConfig(prompts=["a"], prompt="b")


def test_bad_rows_are_told_all_at_once_by_their_place(tmp_path: Path) -> None:
    with pytest.raises(InputError) as told:
        t2i(config(tmp_path, ["", 3, {1: "a"}, {"prompt": "a", "seed": "x"}, {"style": "oil"}]))
    assert told.value.problems == [
        "item 0: prompt is '', not a text",
        "item 1: is 3; a text or a dictionary of columns is needed",
        "item 2: has a column 1, whose name is no text",
        "item 3: seed is 'x', not a whole number",
        "item 4: no prompt (there are: style); --prompt_column says what it is called here",
    ]
    assert not (tmp_path / "out").exists()


def test_prompts_are_no_flag(tmp_path: Path) -> None:
    assert "prompts" not in [item.name for item in leaf_fields(T2IConfig)]
    assert "prompts" not in settings(config(tmp_path, ["a"]))
    assert replace(config(tmp_path, ["a"]), seed=1).prompts == ["a"]
    t2i(config(tmp_path, ["a"]))
    assert "prompts" not in run_json(tmp_path / "out")["config"]
    ended = dglaunch("t2i", "--backend", "fake", "--prompts", "a")
    assert ended.code == 2 and "--prompts" in ended.output
    assert dglaunch("t2i", "--backend", "fake", "--prompt", "a", DG_PROMPTS="b").code == 2


def test_texts_are_paths_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_jsonl(tmp_path / "p.jsonl", [{"prompt": "a"}])
    parts: dict[str, Any] = {
        "backend": BackendConfig(backend="fake", cache_dir="~/cache"),
        "optimization": OptimizationConfig(embedding_cache="~/embeddings"),
    }
    job = T2IConfig(prompts_file="~/p.jsonl", output_dir="~/out", **parts)
    assert (job.prompts_file, job.output_dir) == (tmp_path / "p.jsonl", tmp_path / "out")
    assert (job.backend.cache, job.optimization.embedding_cache) == (tmp_path / "cache", tmp_path / "embeddings")
    for field in ("prompts_file", "output_dir"):
        with pytest.raises(UserError, match=f"--{field} is an empty text"):
            T2IConfig(**{"prompts_file": "p.jsonl", field: ""})
    (tmp_path / "photos").mkdir()
    picture(1).save(tmp_path / "photos" / "a.jpg")
    edits = EditingConfig(
        backend=BackendConfig(backend="fake"), input=f"{tmp_path}/photos", instruction="x", output_dir=f"{tmp_path}/e"
    )
    assert edit(edits).paths == [tmp_path / "e" / "a.png"]


def test_a_result_hands_back_images_paths_and_rows_in_order(tmp_path: Path) -> None:
    result = t2i(config(tmp_path, [f"p{n}" + " [item error]" * (n in (2, 7)) for n in range(12)], batch_size=5))
    made = [n for n in range(12) if n not in (2, 7)]
    assert [row["index"] for row in result.rows] == made and [row["index"] for row in result.failures] == [2, 7]
    assert (len(result.rows), result.rows[-1]["index"], [row["index"] for row in result.rows[2:4]]) == (10, 11, [3, 4])
    with pytest.raises(IndexError):
        result.rows[10]
    assert result.paths == [tmp_path / "out" / f"{n:06d}.png" for n in made]
    pictures = result.images()
    assert isinstance(next(pictures), Image.Image)
    result.paths[1].unlink()
    with pytest.raises(UserError, match=r"000001\.png cannot be read: No such file.*is made anew"):
        next(pictures)
    pixels = [image.tobytes() for image in t2i(config(tmp_path, [f"p{n}" for n in range(12)])).images()]
    assert len(set(pixels)) == 12


def test_scripts_that_called_rows_still_run(tmp_path: Path) -> None:
    result = t2i(config(tmp_path, ["a", "b [item error]"]))
    assert [row["prompt"] for row in result.rows()] == ["a"] and next(result.failures())["index"] == 1


def test_a_notebook_shows_a_contact_sheet(tmp_path: Path) -> None:
    result = t2i(config(tmp_path, [f"p{n}" for n in range(PREVIEW_MOST + 5)]))
    data = result._repr_png_()
    assert data is not None
    sheet = Image.open(io.BytesIO(data))
    assert sheet.format == "PNG" and sheet.width > 1000 and sheet.height > 800
    for path in result.paths:
        path.write_bytes(b"gone")
    assert result._repr_png_() is None
