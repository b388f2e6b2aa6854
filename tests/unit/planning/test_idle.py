"""What was given and does nothing is told: refused with its remedy in a new job where it is a mistake, else a line."""

from pathlib import Path

import pytest

from dglaunch.config import T2IConfig
from dglaunch.errors import UserError
from dglaunch.planning.job import prepare
from support.commands import Ended, dglaunch
from support.results import run_json, write_jsonl


@pytest.fixture(scope="module")
def models(families: Path) -> Path:
    from support.tiny_models import build

    for name in ("sd3", "zimage", "sdxl", "lumina2", "flux2_klein", "flux2_klein_base"):
        build(name, families / name)
    return families


def plan(folder: Path, *words: str | Path, rows: list[dict[str, object]] | None = None, **variables: str) -> Ended:
    table = write_jsonl(folder / "rows.jsonl", rows if rows is not None else [{"prompt": "a"}, {"prompt": "b"}])
    return dglaunch("plan", "t2i", "--prompts_file", table, *words, cwd=folder, **variables)


# -- guidance -----------------------------------------------------------------------------------------------------


def test_guidance_of_a_distilled_checkpoint_is_refused(tmp_path: Path) -> None:
    ended = plan(tmp_path, "--model_name", "tiny", "--guidance_scale", "4")
    assert ended.code == 2
    assert (
        "guidance_scale would do nothing" in ended.output
        and "guidance_embeds in its transformer/config.json" in ended.output
    )
    assert "Remove it (the column, or --guidance_scale)" in ended.output


def test_what_the_grid_gave_is_taken_out_there(tmp_path: Path) -> None:
    ended = plan(tmp_path, "--model_name", "tiny", "--grid", "guidance_scale=2,4", "seed=1,2")
    assert ended.code == 2 and "Remove it (guidance_scale of --grid), or choose" in ended.output


def test_the_refusal_says_in_which_rows(tmp_path: Path) -> None:
    rows = [{"prompt": "a"}, {"prompt": "b", "guidance_scale": 3}, {"prompt": "c"}]
    assert "would do nothing in row 1:" in plan(tmp_path, rows=rows).output


@pytest.mark.parametrize("scale", ["0", "1"])
def test_no_guidance_is_what_a_distilled_checkpoint_gives(tmp_path: Path, scale: str) -> None:
    """FLUX.1-schnell's own page says guidance_scale=0."""
    ended = plan(tmp_path, "--model_name", "tiny", "--guidance_scale", scale)
    assert ended.code == 0 and "nothing" not in ended.output


def test_the_pipelines_own_entry_tells_a_distilled_klein(tmp_path: Path, models: Path) -> None:
    words = ("--guidance_scale", "4", "--height", "64", "--width", "64", "--model_name")
    assert plan(tmp_path, *words, models / "flux2_klein_base").code == 0
    ended = plan(tmp_path, *words, models / "flux2_klein")
    assert ended.code == 2 and "is_distilled in its model_index.json" in ended.output


def test_a_folder_that_was_begun_before_goes_on(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "metadata.jsonl").write_text("{}\n")
    words = ("--model_name", "tiny", "--guidance_scale", "4", "--output_dir", "out")
    ended = plan(tmp_path, *words)
    assert ended.code == 0 and "guidance_scale does nothing: " in ended.output
    assert plan(tmp_path, *words, "--overwrite").code == 2


def test_an_image_that_was_made_with_it_is_made_again() -> None:
    config = T2IConfig(prompt="a", guidance_scale=4.0)
    told = prepare(config, {}, {}, excused={"guidance_scale"}).target.reasons
    assert told["guidance_scale"].startswith("does nothing: ")
    with pytest.raises(UserError, match="guidance_scale would do nothing"):
        prepare(config, {}, {}, excused={"seed"})


# -- negative prompts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "scale", "least"), [("sd3", "1", "1"), ("zimage", "0", "0")])
def test_a_negative_prompt_without_guidance_is_refused(
    tmp_path: Path, models: Path, model: str, scale: str, least: str
) -> None:
    ended = plan(tmp_path, "--model_name", models / model, "--negative_prompt", "ugly", "--guidance_scale", scale)
    assert ended.code == 2
    assert f"a guidance scale of {scale} means no guidance" in ended.output
    assert f"Give a --guidance_scale above {least}, or remove negative_prompt" in ended.output


@pytest.mark.parametrize(("model", "scale"), [("sd3", "1.5"), ("zimage", "0.5"), ("sd3", None)])
def test_a_negative_prompt_with_guidance_is_fine(tmp_path: Path, models: Path, model: str, scale: str | None) -> None:
    given = [] if scale is None else ["--guidance_scale", scale]
    ended = plan(tmp_path, "--model_name", models / model, "--negative_prompt", "ugly", *given)
    assert ended.code == 0 and "nothing" not in ended.output


def test_where_some_rows_have_guidance_the_others_are_counted(tmp_path: Path, models: Path) -> None:
    rows = [{"prompt": "a", "guidance_scale": scale} for scale in (4, 1, 0)]
    ended = plan(tmp_path, "--model_name", models / "sd3", "--negative_prompt", "ugly", rows=rows)
    assert ended.code == 0, ended.output
    assert (
        "negative_prompt does nothing in 2 of 3 rows (the first: 1): a guidance scale of 1 means no guidance"
        in ended.output
    )


def test_of_a_pipeline_that_is_not_known_it_is_only_told(tmp_path: Path, models: Path) -> None:
    words = ("--negative_prompt", "ugly", "--guidance_scale", "1")
    ended = plan(tmp_path, "--model_name", models / "sdxl", *words)
    assert ended.code == 0 and "a guidance scale of 1 usually means no guidance" in ended.output


# -- flags --------------------------------------------------------------------------------------------------------


def test_a_flag_that_every_row_overrules_is_told_in_the_run_and_its_record(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "seed": 7, "height": 64}, {"prompt": "b", "seed": 8}]
    table = write_jsonl(tmp_path / "rows.jsonl", rows)
    words = ("--prompts_file", table, "--seed", "5", "--height", "128", "--output_dir", tmp_path / "out")
    ended = dglaunch("t2i", "--backend", "fake", *words)
    assert ended.code == 0 and "seed does nothing: every row has its own" in ended.output
    assert "height does nothing" not in ended.output
    assert run_json(tmp_path / "out")["choices"]["seed"] == "does nothing: every row has its own"


def test_the_seed_of_which_a_grids_rows_begin_is_not_told_as_idle(tmp_path: Path) -> None:
    """Row 1 of the table begins with index 2; its images have the seed that its own number gives."""
    words = ("--backend", "fake", "--seed", "5", "--grid", "guidance_scale=1,2")
    assert "seed does nothing" not in plan(tmp_path, *words, "--filter_rows", "2:").output
    rows: list[dict[str, object]] = [{"prompt": "a", "seed": 7}, {"prompt": "b", "seed": 8}]
    assert "seed does nothing: every row has its own" in plan(tmp_path, *words, rows=rows).output


def test_what_comes_from_a_variable_is_told_too(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"prompt": "a", "num_images_per_prompt": 3}]
    ended = plan(tmp_path, "--backend", "fake", rows=rows, DG_NUM_IMAGES_PER_PROMPT="2")
    assert "num_images_per_prompt does nothing: every row has its own" in ended.output


def test_the_fake_backend_says_what_it_has_no_use_for(tmp_path: Path) -> None:
    ended = plan(tmp_path, "--backend", "fake", "--enable_vae_tiling", "--cache_type", "pab")
    assert ended.code == 0
    assert "enable_vae_tiling does nothing: --backend fake has no model" in ended.output
    assert "cache_type does nothing: --backend fake has no model" in ended.output


def test_a_kernel_that_xfusers_lumina2_takes_only_without_a_mask(tmp_path: Path, models: Path) -> None:
    words = ("--model_name", models / "lumina2", "--backend", "xdit", "--world_size", "2", "--attention_backend")
    said = plan(tmp_path, *words, "SDPA_MATH", DG_XDIT_ULYSSES_DEGREE="2").output
    assert "attention_backend does nothing where texts of different length share a batch" in said
    assert "attends with SDPA there" in said
    assert "nothing" not in plan(tmp_path, *words, "SDPA", DG_XDIT_ULYSSES_DEGREE="2").output


def test_plan_takes_num_gpus_for_the_ranks(tmp_path: Path) -> None:
    assert "4 replicas" in plan(tmp_path, "--backend", "fake", "--num_gpus", "4").output
    ended = plan(tmp_path, "--backend", "fake", "--num_gpus", "4", "--world_size", "8")
    assert ended.code == 2 and "give one of them" in ended.output
