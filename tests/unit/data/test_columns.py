"""What the columns of a table are taken for: any case, other names by flag, and what merely looks like a setting."""

from collections.abc import Sequence
from typing import Any

import pytest

from dglaunch import EditingConfig, T2IConfig
from dglaunch.config import RunConfig
from dglaunch.data.columns import Columns, Past, near_miss
from dglaunch.data.prompts import read_prompts
from dglaunch.data.task import Task
from dglaunch.errors import InputError, UserError
from support.results import write_jsonl


def columns(past: Past = Past.NEW, **flags: Any) -> Columns:
    return Columns(T2IConfig(prompts_file="t.csv", **flags), lambda: past)  # type: ignore[arg-type]  # never read


@pytest.fixture
def read(tmp_path):
    def read(*rows: dict[str, Any], past: Past = Past.NEW, **flags: Any) -> tuple[Sequence[Task], Columns]:
        config: RunConfig = T2IConfig(prompts_file=write_jsonl(tmp_path / "t.jsonl", rows), **flags)
        found = Columns(config, lambda: past)
        return read_prompts(config, 16, None, found), found  # type: ignore[arg-type]  # a T2IConfig

    return read


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("guidence_scale", "rename it guidance_scale"), ("Guidance Scale", "rename it guidance_scale"),
        ("cfg", "rename it guidance_scale"), ("CFG scale", "rename it guidance_scale"),
        ("num_steps", "rename it num_inference_steps"), ("step", "rename it steps"), ("size", "width and height"),
        ("n", "rename it num_images_per_prompt"), ("Sampler", "by --scheduler"), ("heigth", "rename it height"),
        ("Seeds", "rename it seed, or give --seed_column Seeds"), ("prompt_2", "the same prompt"),
        ("Negative prompt", "--negative_prompt_column 'Negative prompt'"), ("max_sequence_length", "--max_sequence_length"),
    ],
)  # fmt: skip
def test_what_looks_like_a_setting_and_is_none_has_its_remedy(name: str, remedy: str) -> None:
    found = near_miss(name)
    assert found is not None and remedy in found


ORDINARY = [
    "id",
    "ID",
    "index",
    "tag",
    "note",
    "category",
    "prompt_id",
    "prompt_file",
    "prompt_en",
    "caption",
    "speed",
    "weight",
    "weights",
    "score",
    "style",
    "name",
    "file_name",
    "sha256",
    "key",
    "rank",
    "node",
    "batch_size",
    "seconds",
    "time",
    "sample",
    "bytes",
    "include",
    "exclude",
    "challenge",
    "source",
    "title",
    "url",
    "author",
    "date",
    "seed",
    "Seed",
    "text",
    "image",
    "images",
    "input",
    "output",
    "model",
    "target",
    "label",
    "class",
    "color",
    "shape",
    "subject",
    "split",
    "width",
    "HEIGHT",
    "steps",
]


@pytest.mark.parametrize("name", ORDINARY)
def test_what_a_table_may_well_have_is_kept(name: str) -> None:
    assert near_miss(name) is None


def test_names_match_whatever_their_case_and_the_rest_is_kept(read) -> None:
    (task,), found = read({"Prompt": "a fox", "id": "q1", "SEED": 7, "Width": 64, "Steps": 4, "Tag": "x"})
    assert (task.prompt, task.seed, task.width, task.num_inference_steps) == ("a fox", 7, 64, 4)
    assert task.extra == {"id": "q1", "Tag": "x"}
    assert found.summary == "used: prompt, seed, width, steps; kept: id, Tag"


def test_a_whole_number_as_id_is_the_index_whatever_its_case(read) -> None:
    (task,), found = read({"PROMPT": "a", "ID": 8})
    assert (task.index, task.extra, found.summary) == (8, None, "used: prompt, id")


def test_flags_name_columns_and_those_of_the_usual_names_are_kept(read) -> None:
    row = {"caption": "a fox", "prompt": "other", "S": 3, "seed": 4, "avoid": "blur"}
    (task,), found = read(row, prompt_column="Caption", seed_column="s", negative_prompt_column="avoid")
    assert (task.prompt, task.seed, task.negative_prompt) == ("a fox", 3, "blur")
    assert task.extra == {"prompt": "other", "seed": 4}
    assert found.summary == "used: prompt (caption), seed (S), negative_prompt (avoid); kept: prompt, seed"


def test_a_flag_that_names_no_column_is_refused(read) -> None:
    with pytest.raises(UserError, match=r"--seed_column sed: .* has no such column \(there are: prompt, Seed\)"):
        read({"prompt": "a", "Seed": 1}, seed_column="sed")
    with pytest.raises(UserError, match="--ignore_columns cfg"):
        read({"prompt": "a"}, ignore_columns=("cfg",))


def test_near_misses_are_refused_once_each_with_a_count_or_ignored_by_name(read) -> None:
    rows = [{"prompt": "a", "cfg": 7, "Sampler": "euler", "size": None}, {"prompt": "b", "cfg": 8}]
    with pytest.raises(UserError) as caught:
        read(*rows)
    said = str(caught.value)
    assert "cfg: rename it guidance_scale (line 1 and 1 more)" in said and "Sampler" in said and "size" not in said
    assert "--ignore_columns cfg Sampler" in said
    tasks, found = read(*rows, ignore_columns=("CFG", "Sampler"))
    assert [task.extra for task in tasks] == [{"cfg": 7, "Sampler": "euler"}, {"cfg": 8}]
    assert found.summary == "used: prompt; kept: cfg, Sampler"


@pytest.mark.parametrize("past", [Past.BEGUN, Past.EXACT])
def test_a_folder_that_was_begun_before_goes_on(read, past: Past) -> None:
    (task,), _ = read({"prompt": "a", "cfg": 7, "Seed": 9}, past=past)
    assert task.extra is not None and task.extra["cfg"] == 7
    assert task.seed == (0 if past is Past.EXACT else 9)


def test_two_columns_of_one_name_in_different_case(read) -> None:
    with pytest.raises(InputError, match="has the columns 'prompt' and 'Prompt', and one only can be the prompt"):
        read({"Prompt": "a", "prompt": "b"})
    (task,), _ = read({"Prompt": "a", "prompt": "b"}, ignore_columns=("Prompt",))
    assert (task.prompt, task.extra) == ("b", {"Prompt": "a"})
    (task,), _ = read({"Prompt": "a", "prompt": "b"}, past=Past.EXACT)
    assert (task.prompt, task.extra) == ("b", {"Prompt": "a"})


def test_the_past_is_asked_only_if_something_depends_on_it(read) -> None:
    asked: list[int] = []
    found = Columns(T2IConfig(prompt="x"), lambda: asked.append(1) or Past.NEW)  # type: ignore[func-returns-value]
    found.name({"prompt": "a", "seed": 1, "tag": 2})
    assert not asked and found.record["columns"]["exact_names"] is False
    found.name({"Prompt": "a"})
    found.name({"Prompt": "b", "Seed": 1})
    assert asked == [1]


@pytest.mark.parametrize("flags", [{"seed_column": "s"}, {"prompt_template": "{a}"}, {"ignore_columns": ("cfg",)}])
def test_flags_about_columns_without_a_table_are_refused(flags: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"--{next(iter(flags))} would do nothing without a table"):
        T2IConfig(prompt="a fox", **flags)


def test_a_template_and_a_column_of_prompts_exclude_each_other() -> None:
    with pytest.raises(UserError, match="--prompt_column would do nothing"):
        columns(prompt_template="{a}", prompt_column="b")
    with pytest.raises(UserError, match="--instruction_column would do nothing"):
        EditingConfig(input="t.csv", prompt_template="{a}", instruction_column="b")  # type: ignore[arg-type]  # never read
