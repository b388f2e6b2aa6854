"""--grid: rows times values, their order and their seeds, and what is no grid."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from dglaunch import T2IConfig
from dglaunch.data.prompts import read_prompts
from dglaunch.data.task import Task
from dglaunch.errors import InputError, UserError
from support.results import write_jsonl

ROWS = [{"prompt": "a"}, {"prompt": "b", "tag": "x"}]


def read(folder: Path, rows: list[dict[str, Any]], *grid: str, **flags: Any) -> Sequence[Task]:
    path = write_jsonl(folder / "t.jsonl", rows)
    return read_prompts(T2IConfig(prompts_file=path, grid=grid, **flags))


def test_each_row_is_made_with_each_combination_the_first_axis_slowest(tmp_path: Path) -> None:
    tasks = read(tmp_path, ROWS, "guidance_scale=2,4,7", "seed=1,2")
    assert [(task.index, task.prompt, task.guidance_scale, task.seed) for task in tasks] == [
        (6 * row + 2 * g + s, prompt, guidance, seed)
        for row, prompt in enumerate("ab") for g, guidance in enumerate((2, 4, 7)) for s, seed in enumerate((1, 2))
    ]  # fmt: skip
    assert [task.stem for task in tasks] == [f"{n:06d}" for n in range(12)]
    assert tasks[6].extra == {"tag": "x"} and len({task.key for task in tasks}) == 12


def test_images_of_a_row_have_its_own_seed_where_the_grid_has_none(tmp_path: Path) -> None:
    rows = [{"prompt": "a"}, {"prompt": "b", "seed": 50}]
    tasks = read(tmp_path, rows, "Steps=4,8", seed=10, num_images_per_prompt=2)
    assert [(task.index, task.sample, task.seed, task.num_inference_steps) for task in tasks] == [
        (0, 0, 10, 4), (0, 1, 11, 4), (1, 0, 10, 8), (1, 1, 11, 8), (2, 0, 50, 4), (2, 1, 51, 4), (3, 0, 50, 8), (3, 1, 51, 8)
    ]  # fmt: skip


def test_an_index_of_the_rows_own_names_and_texts_with_commas(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "index": 5, "name": "cat"}]
    tasks = read(tmp_path, rows, 'negative_prompt=,"ugly, old"', output_name_column="Name")
    assert [(task.index, task.stem, task.negative_prompt) for task in tasks] == [
        (10, "cat_00", ""),
        (11, "cat_01", "ugly, old"),
    ]


def test_a_name_of_the_template_is_an_axis_too(tmp_path: Path) -> None:
    rows = [{"name": "Ada"}, {"name": "Bo", "style": None}]
    tasks = read(tmp_path, rows, "style=oil,ink", prompt_template="{style} of {name}")
    assert [task.prompt for task in tasks] == ["oil of Ada", "ink of Ada", "oil of Bo", "ink of Bo"]
    assert tasks[1].extra == {"name": "Ada", "style": "ink"}
    with pytest.raises(InputError, match="style is set in the row, and --grid varies it"):
        read(tmp_path, [{"name": "Ada", "Style": "x"}], "style=oil,ink", prompt_template="{style} of {name}")


def test_a_single_prompt_may_have_a_grid() -> None:
    tasks = read_prompts(T2IConfig(prompt="a fox", grid=("seed=3,4",)))
    assert [(task.index, task.seed) for task in tasks] == [(0, 3), (1, 4)]


WRONG: dict[str, tuple[tuple[str, ...], dict[str, Any], str]] = {
    "no name": (("cgf=1,2",), {}, "nothing called 'cgf' to vary. The nearest is"),
    "a column": (("tag=1,2",), {}, "and what --prompt_template names"),
    "no values": (("seed=",), {}, "seed has no values"),
    "no sign": (("seed",), {}, "a name and values are needed"),
    "bad value": (("seed=1,x",), {}, "seed is 'x', not a whole number"),
    "bad size": (("width=64,0",), {}, "width is 0, not between"),
    "open quote": (('negative_prompt="a',), {}, "negative_prompt"),
    "twice": (("seed=1", "Seed=2"), {}, "seed is varied twice"),
    "a value twice": (("guidance_scale=2,2.0",), {}, "has 2.0 twice"),
    "a flag": (("guidance_scale=2,3",), {"guidance_scale": 5.0}, "--guidance_scale would do nothing"),
    "the seed's flag": (("seed=2,3",), {"seed": 5}, "--seed would do nothing"),
    "a row": (("seed=2,3",), {}, "seed is set in the row"),
    "a seed that is too large": ((f"seed=1,{2**63 - 1}",), {"num_images_per_prompt": 2}, "is too large for 2 images"),
}


@pytest.mark.parametrize("what", WRONG)
def test_grids_that_are_none(tmp_path: Path, what: str) -> None:
    grid, flags, said = WRONG[what]
    rows = [{"prompt": "a", "tag": 1, **({"SEED": 5} if what == "a row" else {})}]
    with pytest.raises(UserError, match=said.replace("?", ".")):
        read(tmp_path, rows, *grid, **flags)
