"""A pipeline class that dglaunch has never heard of draws the images that it draws by itself, one by one, or is refused with
the reason. One process, no network."""

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from dglaunch import BackendConfig
from dglaunch.models import unlisted
from dglaunch.models.checkpoint import resolve
from support import novel_pipelines
from support.commands import ROOT, Ended, dglaunch
from support.ranks import launch
from support.results import images, ledger, run_json, write_jsonl

PROMPTS = ["a red cat", "two blue dogs on the moon, at night", "x"]
SOURCE = Path(novel_pipelines.__file__)
TINY = ROOT / "dglaunch" / "tiny" / "weights"


@pytest.fixture
def here(tmp_path: Path) -> Path:
    shutil.copy(SOURCE, tmp_path / "novel.py")
    shutil.copytree(TINY, tmp_path / "model", ignore=shutil.ignore_patterns("dglaunch.json"))
    write_jsonl(tmp_path / "p.jsonl", [{"prompt": prompt} for prompt in PROMPTS])
    return tmp_path


@pytest.fixture
def in_diffusers(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint of a pipeline class that has appeared in diffusers this week."""
    folder = here / "diffusers"
    (folder / "pipelines" / "novel").mkdir(parents=True)
    shutil.copy(SOURCE, folder / "pipelines" / "novel" / "pipeline_novel.py")
    spec = importlib.util.find_spec("diffusers")
    assert spec is not None and spec.submodule_search_locations is not None
    monkeypatch.setattr(spec, "submodule_search_locations", [*spec.submodule_search_locations, str(folder)])
    monkeypatch.setattr(diffusers, "NovelPipeline", novel_pipelines.NovelPipeline, raising=False)
    for cached in (unlisted.takes_of, unlisted._file_of):
        cached.cache_clear()
    model = here / "model"
    index = json.loads((model / "model_index.json").read_text()) | {"_class_name": "NovelPipeline"}
    (model / "model_index.json").write_text(json.dumps(index))
    return model


def t2i(here: Path, out: str, *words: str | Path, table: str = "p.jsonl") -> Ended:
    """Two steps in batches of four, with findings kept in a folder of the test's own."""
    command = (
        "t2i",
        "--model_name",
        here / "model",
        "--prompts_file",
        table,
        "--batch_size",
        "4",
        "--cache_dir",
        "cache",
        "--output_dir",
        out,
    )
    return dglaunch(*command, *words, cwd=here, COLUMNS="2000")


def own(here: Path, name: str, *words: str | Path, out: str = "out", table: str = "p.jsonl") -> Ended:
    return t2i(here, out, "--pipeline", f"novel:{name}", *words, table=table)


def by_itself(name: str, state: bool = False, **arguments: Any) -> list[np.ndarray]:
    """What the class draws one by one, with the seeds that dglaunch gives; `state`: which seed the global state, too."""
    pipeline = getattr(novel_pipelines, name)(None, None)
    made = []
    for seed, prompt in enumerate(PROMPTS):
        if state:
            torch.manual_seed(seed)
        given = {each: [value] if isinstance(value, str) else value for each, value in arguments.items()}
        generator = [torch.Generator().manual_seed(seed)]
        made.append(np.asarray(pipeline(prompt=[prompt], generator=generator, **given).images[0]))
    return made


def assert_equal(folder: Path, expected: list[np.ndarray]) -> None:
    found = list(images(folder).values())
    assert len(found) == len(expected) and all(np.array_equal(a, b) for a, b in zip(found, expected))


def kept(here: Path) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in (here / "cache" / "self_tests").glob("*.json")]


def test_one_that_appeared_in_diffusers_this_week(here: Path, in_diffusers: Path) -> None:
    """Its guidance goes by its own name, what it rewrites at random is off, and prompts share calls."""
    words = ("--guidance_scale", "5", "--negative_prompt", "ugly", "--height", "72")
    ended = t2i(here, "out", *words, "--num_inference_steps", "3")
    assert ended.code == 0, ended.output
    given = {"distilled_guidance_scale": 5.0, "negative_prompt": "ugly", "height": 72, "num_inference_steps": 3}
    assert_equal(here / "out", by_itself("NovelPipeline", rewrite_prompts=False, **given))
    assert [line["batch_size"] for line in ledger(here / "out")] == [3, 3, 3]
    said = "NovelPipeline, which has no row in dglaunch's table: several prompts a call are right; the seeds alone decide the images; sizes in multiples of 8 (tried out now)"  # fmt: skip
    assert said in ended.output
    assert ledger(here / "out")[0]["guidance_scale"] == 5.0


def test_its_plan_knows_its_signature(here: Path, in_diffusers: Path) -> None:
    ended = dglaunch("plan", "t2i", "--model_name", in_diffusers, "--prompt", "x", "--cache_dir", "cache", cwd=here)
    assert ended.code == 0, ended.output
    assert "tried out once the model is loaded" in ended.output
    assert resolve(BackendConfig(model_name=str(in_diffusers))).num_steps(None) == 7


def test_what_was_found_is_kept(here: Path, in_diffusers: Path) -> None:
    assert t2i(here, "first").code == 0
    again = t2i(here, "again")
    assert again.code == 0 and "(kept in " in again.output and len(kept(here)) == 1
    weights = in_diffusers / "transformer" / "config.json"
    weights.write_text(weights.read_text() + "\n")
    another = t2i(here, "another")
    assert "(tried out now)" in another.output and len(kept(here)) == 2


@pytest.mark.slow
def test_all_ranks_go_the_same_way(here: Path) -> None:
    """Rank 0 finds out for both; what the global state decides is the same on any number of ranks."""
    words = ["t2i", "--model_name", here / "model", "--prompts_file", here / "p.jsonl", "--batch_size", "2"]
    words += [
        "--pipeline",
        "support.novel_pipelines:Hidden",
        "--cache_dir",
        here / "cache",
        "--output_dir",
        here / "out",
    ]
    (case,) = launch(here, 2, [(words, {})])
    assert case.codes == [0, 0], case.output
    assert_equal(here / "out", by_itself("Hidden", state=True))
    assert {line["rank"] for line in ledger(here / "out")} == {0, 1} and len(kept(here)) == 1


def test_chance_from_the_global_state_is_seeded_for_each_image(here: Path) -> None:
    ended = own(here, "Hidden")
    assert ended.code == 0 and "its images depend on the global random state" in ended.output, ended.output
    assert_equal(here / "out", by_itself("Hidden", state=True))
    assert {line["batch_size"] for line in ledger(here / "out")} == {1}


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("Padded", "two prompts in a call give images that are up to"),
        ("Alone", "a call with two prompts fails: ValueError"),
    ],
)
def test_what_is_wrong_together_is_made_one_by_one(here: Path, name: str, why: str) -> None:
    ended = own(here, name)
    assert ended.code == 0 and f"one image a call ({why}" in ended.output, ended.output
    assert_equal(here / "out", by_itself(name))


def test_chance_that_nothing_seeds_is_refused(here: Path) -> None:
    ended = own(here, "Forgetful")
    assert ended.code == 2 and "it draws from a random source that nothing seeds" in ended.output, ended.output
    assert not images(here / "out") and not kept(here)


@pytest.mark.parametrize(("flag", "where"), [(True, ""), (False, " in row 1")])
def test_a_guidance_scale_that_has_no_parameter_is_refused_with_what_sounds_like_one(
    here: Path, flag: bool, where: str
) -> None:
    rows = [{"prompt": "a"}, {"prompt": "b"} if flag else {"prompt": "b", "guidance_scale": 4}]
    write_jsonl(here / "rows.jsonl", rows)
    ended = own(here, "Strict", *(["--guidance_scale", "4"] if flag else []), table="rows.jsonl")
    assert ended.code == 2, ended.output
    assert f"guidance_scale would do nothing{where}: the call of novel:Strict has no parameter for it" in ended.output
    assert "does not know what its cfg_strength mean" in ended.output and not (here / "cache").exists()


def test_sizes_are_found_by_trying_and_refused_before_the_next_load(here: Path) -> None:
    words = ("--width", "64", "--height", "80")
    first = own(here, "Strict", *words)
    assert (
        first.code == 2
        and "novel:Strict draws in multiples of 32 only (found by trying). Near: 64, 96." in first.output
    )
    assert not images(here / "out")
    second = own(here, "Strict", *words)
    assert second.code == 2 and "multiple" in second.output and "found by trying" not in second.output, second.output
    assert own(here, "Strict", "--height", "96").code == 0


@pytest.mark.parametrize(
    ("name", "said"), [("Rounding", "in multiples of 16 only"), ("OwnSize", "at a size of its own")]
)
def test_a_size_that_changes_in_silence_is_refused(here: Path, name: str, said: str) -> None:
    ended = own(here, name, "--height", "72", "--width", "96")
    assert ended.code == 2 and said in ended.output, ended.output
    assert own(here, name, *([] if name == "OwnSize" else ["--height", "96"])).code == 0
    assert run_json(here / "out")["outcome"] == "done"


def test_videos_are_none_of_ours(here: Path, in_diffusers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diffusers, "Filming", novel_pipelines.Filming, raising=False)
    index = json.loads((in_diffusers / "model_index.json").read_text()) | {"_class_name": "Filming"}
    (in_diffusers / "model_index.json").write_text(json.dumps(index))
    ended = t2i(here, "out")
    assert ended.code == 2 and "it draws videos (num_frames)" in ended.output, ended.output


def test_prompts_in_a_form_of_their_own_are_the_jobs(here: Path) -> None:
    write_jsonl(here / "rows.jsonl", [{"prompt": json.dumps({"caption": text})} for text in PROMPTS])
    ended = own(here, "Captions", table="rows.jsonl")
    assert ended.code == 0 and "several prompts a call are right" in ended.output, ended.output
    shutil.rmtree(here / "cache")
    refused = own(here, "Captions", out="refused")
    assert refused.code == 2 and "draws no image: ValueError: no JSON caption" in refused.output, refused.output
