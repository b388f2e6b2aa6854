"""Checkpoints of diffusers' modular pipelines draw what diffusers' own call draws with them one by one, or are refused with the
reason. One process, no network."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dglaunch import BackendConfig
from dglaunch.errors import UserError
from dglaunch.models.checkpoint import Checkpoint, as_editor, resolve
from support.checkpoint_folders import write_json
from support.commands import Ended, dglaunch
from support.hub_server import HubServer
from support.lora_files import write_lora
from support.modular_checkpoints import by_diffusers, index_of, modular, write_index
from support.new_family_runs import PROMPTS, Case, plain
from support.results import images, ledger, write_jsonl
from support.selection import rarely

pytestmark = pytest.mark.timeout(1800)

ROWS = [{"prompt": prompt} for prompt in PROMPTS]
SIZE = {"height": 64, "width": 64, "num_inference_steps": 2}
NEGATIVE = ("--negative_prompt", "ugly")
GUIDED = ("--guidance_scale", "4", *NEGATIVE)


@pytest.fixture
def model(request: pytest.FixtureRequest, families: Path, tmp_path: Path) -> Path:
    """A modular checkpoint of its own for each test: a copy, whose index goes on saying where its parts lay first."""
    family: str = request.param
    return Path(shutil.copytree(modular(families, family), tmp_path / "model"))


def t2i(model: Path | str, out: Path, *words: str | Path, batch: int = 3, rows: list[dict[str, Any]] = ROWS) -> Ended:
    size = [word for name, value in SIZE.items() for word in (f"--{name}", str(value))]
    table = write_jsonl(out.with_suffix(".jsonl"), rows)
    command = ("t2i", "--model_name", model, "--prompts_file", table, "--batch_size", str(batch), *size, *words)
    return dglaunch(*command, "--cache_dir", out.parent / "cache", "--output_dir", out, COLUMNS="3000")


def furthest(found: list[np.ndarray], expected: list[np.ndarray]) -> int:
    assert len(found) == len(expected)
    return max(int(np.abs(a.astype(int) - b).max()) for a, b in zip(found, expected))


def assert_drawn(model: Path, tmp_path: Path, words: tuple[str, ...], expected: list[np.ndarray], batch: int) -> str:
    """One by one, and in calls of `batch`: what was asked for. The images differ from each other."""
    said = ""
    for size in (1, 3):
        ended = t2i(model, out := tmp_path / f"out{size}", *words, batch=size)
        assert ended.code == 0, ended.output
        assert furthest(list(images(out).values()), expected) <= 1
        assert {line["batch_size"] for line in ledger(out)} == {min(size, batch)}
        said += ended.output
    assert furthest([expected[0]], [expected[1]]) > 20, "else the comparison could not fail"
    return said


@pytest.mark.slow
@pytest.mark.parametrize("model", ["flux"], indirect=True)
def test_flux_draws_what_its_ordinary_pipeline_draws(model: Path, families: Path, tmp_path: Path) -> None:
    expected = by_diffusers(model, ROWS, guidance_scale=4.0, **SIZE)
    said = assert_drawn(model, tmp_path, ("--guidance_scale", "4"), expected, batch=3)
    assert "FluxModularPipeline, which has no row in dglaunch's table: several prompts a call are right" in said
    assert "(kept in " in said, "the second run knows what the first has found"
    assert furthest(expected, plain(families / "flux", Case((), {"guidance_scale": 4.0}))) <= 1


@pytest.mark.parametrize("model", ["sdxl"], indirect=True)
def test_guidance_reaches_the_guider(model: Path, tmp_path: Path) -> None:
    """Of each row, and its own where none is asked for."""
    row = {"prompt": PROMPTS[0], "seed": 0}
    rows = [row | {"guidance_scale": 4}, row | {"guidance_scale": 1}, row]
    ended = t2i(model, tmp_path / "out", *NEGATIVE, rows=rows)
    assert ended.code == 0, ended.output
    found = list(images(tmp_path / "out").values())
    assert furthest(found, by_diffusers(model, [row] * 3, (4.0, 1.0, 7.5), negative_prompt="ugly", **SIZE)) <= 1
    assert furthest(found[:2], found[1:]) > 5
    assert [line["guidance_scale"] for line in ledger(tmp_path / "out")] == [4.0, 1.0, 7.5]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["sdxl"], indirect=True)
def test_a_guider_that_comes_with_the_checkpoint(model: Path, tmp_path: Path) -> None:
    write_json(
        model / "guider" / "guider_config.json", {"_class_name": "ClassifierFreeGuidance", "guidance_scale": 3.0}
    )
    kind = ["diffusers", "ClassifierFreeGuidance"]
    spec = {"pretrained_model_name_or_path": str(model), "subfolder": "guider", "type_hint": kind}
    write_index(model, index_of(model) | {"guider": [*kind, spec]})
    ended = t2i(model, tmp_path / "out", *NEGATIVE)
    assert ended.code == 0, ended.output
    expected = by_diffusers(model, ROWS, negative_prompt="ugly", **SIZE)
    assert furthest(list(images(tmp_path / "out").values()), expected) <= 1
    assert {line["guidance_scale"] for line in ledger(tmp_path / "out")} == {3.0}


@pytest.mark.slow
@pytest.mark.parametrize("model", ["sdxl"], indirect=True)
def test_sdxl_batches(model: Path, tmp_path: Path) -> None:
    expected = by_diffusers(model, ROWS, [4.0] * 3, negative_prompt="ugly", **SIZE)
    assert_drawn(model, tmp_path, GUIDED, expected, batch=3)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["qwenimage"], indirect=True)
def test_what_fails_with_two_prompts_is_made_one_by_one(model: Path, tmp_path: Path) -> None:
    expected = by_diffusers(model, ROWS, [4.0] * 3, negative_prompt="ugly", **SIZE)
    said = assert_drawn(model, tmp_path, GUIDED, expected, batch=1)
    assert "one image a call (a call with two prompts fails: " in said


@pytest.mark.slow
@pytest.mark.parametrize("model", ["flux"], indirect=True)
def test_flags_of_the_loaded_networks(model: Path, tmp_path: Path) -> None:
    expected = by_diffusers(model, ROWS, tiled=True, guidance_scale=4.0, **SIZE)
    words = (
        "--enable_vae_slicing",
        "--enable_vae_tiling",
        "--enable_channels_last",
        "--attention_backend",
        "_native_math",
    )
    ended = t2i(model, tmp_path / "out", "--guidance_scale", "4", *words)
    assert ended.code == 0, ended.output
    assert furthest(list(images(tmp_path / "out").values()), expected) <= 1


# -- refusals ---------------------------------------------------------------------------------------------------------


REFUSED = [
    ("flux", NEGATIVE, "the blocks of FluxModularPipeline have no input for it"),
    ("flux", ("--scheduler", "unipc"), "--scheduler does not go with"),
    ("flux", ("--vae", "."), "--vae does not go with"),
    ("flux", ("--enable_cpu_offload",), "--enable_cpu_offload does not go with"),
    ("flux", ("--cache_type", "first_block_cache"), "--cache_type first_block_cache does not go with"),
    ("flux", ("--backend", "xdit"), "--backend xdit has no FluxModularPipeline"),
    ("sdxl", ("--max_sequence_length", "64"), "the blocks of StableDiffusionXLModularPipeline have no input for it"),
    ("sdxl", ("--guidance_scale", "1", *NEGATIVE), "a guidance scale of 1 means no guidance"),
    ("flux2_klein", ("--guidance_scale", "4"), "Flux2KleinModularPipeline has no guider"),
    ("zimage", ("--guidance_scale", "4"), "ClassifierFreeGuidance, is switched off"),
    ("zimage", NEGATIVE, "ClassifierFreeGuidance, is switched off"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("model", "words", "said"),
    rarely(REFUSED, [each for each in REFUSED if each[0] not in ("flux", "sdxl")]),
    indirect=["model"],
)
def test_what_would_do_nothing_is_refused(model: Path, tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    ended = t2i(model, tmp_path / "out", *words)
    assert ended.code == 2 and said in " ".join(ended.output.split()), ended.output
    assert not images(tmp_path / "out") and not (tmp_path / "cache" / "self_tests").exists()


@pytest.mark.parametrize("model", ["flux"], indirect=True)
def test_loras_are_refused(model: Path, tmp_path: Path) -> None:
    ended = t2i(model, tmp_path / "out", "--lora", write_lora(tmp_path / "style.safetensors"))
    assert ended.code == 2 and "--lora does not go with" in ended.output, ended.output


@pytest.mark.parametrize("model", ["flux"], indirect=True)
def test_ranks_do_not_share_it(model: Path, tmp_path: Path) -> None:
    words = ("--model_name", model, "--prompt", "x", "--shard", "fsdp", "--world_size", "2")
    ended = dglaunch("plan", "t2i", *words, "--cache_dir", tmp_path / "cache", COLUMNS="2000", DG_SHARD_DEGREE="2")
    assert ended.code == 2 and "--shard does not go with" in ended.output, ended.output


@pytest.mark.parametrize("model", ["sdxl"], indirect=True)
def test_a_row_with_what_no_block_takes_is_refused_with_the_row(model: Path, tmp_path: Path) -> None:
    write_index(model, index_of(model) | {"_class_name": "Flux2KleinModularPipeline", "_blocks_class_name": None})
    ended = t2i(model, tmp_path / "out", rows=[*ROWS, {"prompt": "x", "guidance_scale": 3}])
    assert ended.code == 2 and "in row 3" in ended.output and "has no guider" in ended.output, ended.output


OTHER_BLOCKS = {
    "WanModularPipeline": "draw no images of prompts",
    "QwenImageEditModularPipeline": "draw no images of prompts",
    "NovelModularPipeline": "which diffusers",
    "FluxPipeline": "names no modular pipeline",
}


@pytest.mark.parametrize("class_name", OTHER_BLOCKS)
@pytest.mark.parametrize("model", ["flux"], indirect=True)
def test_blocks_that_make_no_images_or_are_not_there(model: Path, tmp_path: Path, class_name: str) -> None:
    write_index(model, index_of(model) | {"_class_name": class_name, "_blocks_class_name": None})
    ended = t2i(model, tmp_path / "out")
    assert ended.code == 2 and OTHER_BLOCKS[class_name] in " ".join(ended.output.split()), ended.output


@pytest.mark.slow
@pytest.mark.parametrize("model", ["flux"], indirect=True)
def test_prompts_are_encoded_as_they_are(model: Path) -> None:
    """FLUX.3's step that rewrites them is taken out, and Ideogram's is switched off."""

    def of(class_name: str) -> Checkpoint:
        write_index(model, index_of(model) | {"_class_name": class_name, "_blocks_class_name": None})
        return resolve(BackendConfig(model_name=str(model)))

    flux3 = of("Flux3DistilledModularPipeline")
    assert flux3.takes is not None and "prompt" in flux3.takes and "max_new_tokens" not in flux3.takes
    ideogram = of("Ideogram4ModularPipeline")
    assert ideogram.takes is not None and ideogram.takes["height"] is None
    assert ("prompt_upsampling", False) in ideogram.family.arguments


@pytest.mark.parametrize("model", ["flux"], indirect=True)
def test_what_is_no_blocks(model: Path, tmp_path: Path) -> None:
    write_index(model, index_of(model) | {"_blocks_class_name": "FluxPipeline"})
    ended = t2i(model, tmp_path / "out")
    assert ended.code == 2 and "names the blocks FluxPipeline" in " ".join(ended.output.split()), ended.output


def own_blocks(model: Path) -> None:
    """Blocks of its own that draw upside down."""
    (model / "modular_config.json").write_text('{"auto_map": {"ModularPipelineBlocks": "blocks.Upside"}}')
    (model / "blocks.py").write_text(
        "from diffusers import FluxAutoBlocks\n\n\nclass Upside(FluxAutoBlocks):\n"
        "    def __call__(self, pipeline, state):\n"
        "        pipeline, state = super().__call__(pipeline, state)\n"
        '        state.set("images", [image.transpose(1) for image in state.get("images")])\n'
        "        return pipeline, state\n"
        "    def get_workflow(self, name):\n        return self\n"
    )


@pytest.mark.parametrize("model", ["flux"], indirect=True)
def test_blocks_that_come_with_the_checkpoint_are_not_run_unasked(model: Path, tmp_path: Path) -> None:
    own_blocks(model)
    ended = t2i(model, tmp_path / "out")
    assert ended.code == 2 and "(blocks.py)" in ended.output and "add --trust_remote_code" in ended.output


@pytest.mark.slow
@pytest.mark.parametrize("model", ["flux"], indirect=True)
def test_blocks_that_are_trusted_run(model: Path, tmp_path: Path) -> None:
    expected = by_diffusers(model, ROWS, **SIZE)
    own_blocks(model)
    ended = t2i(model, tmp_path / "out", "--trust_remote_code")
    assert ended.code == 0, ended.output
    assert furthest(list(images(tmp_path / "out").values()), [image[::-1] for image in expected]) <= 1


# -- parts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["flux"], indirect=True)
def test_a_part_that_cannot_be_loaded_ends_the_run(model: Path, tmp_path: Path) -> None:
    """diffusers itself only warns."""
    weights = model / "text_encoder_2" / "model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    ended = t2i(model, tmp_path / "out")
    assert ended.code == 2 and "The text_encoder_2 of" in ended.output and "--allow_pickle" in ended.output, (
        ended.output
    )


@pytest.mark.slow
@pytest.mark.parametrize("model", ["flux"], indirect=True)
def test_parts_from_other_folders(model: Path, tmp_path: Path) -> None:
    expected = by_diffusers(model, ROWS, **SIZE)
    other = tmp_path / "other"
    other.mkdir()
    shutil.move(model / "transformer", other / "net")
    index = index_of(model)
    index["transformer"][2] |= {"pretrained_model_name_or_path": str(other), "subfolder": "net"}
    write_index(model, index)
    assert resolve(BackendConfig(model_name=str(model))).parameters["transformer"] > 0
    ended = t2i(model, tmp_path / "out")
    assert ended.code == 0, ended.output
    assert furthest(list(images(tmp_path / "out").values()), expected) <= 1
    assert not (tmp_path / "cache" / "self_tests").exists(), "what lies elsewhere may change unseen"


@pytest.mark.slow
@pytest.mark.parametrize("model", ["flux"], indirect=True)
def test_parts_from_the_hub(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what is loaded comes, of both models, and is there when the hub is not."""
    expected, ours, other = by_diffusers(model, ROWS, **SIZE), "someone/modular", "another/model"
    (tmp_path / "other").mkdir()
    shutil.move(model / "vae", tmp_path / "other" / "vae")
    (tmp_path / "other" / "vae" / "x.bin").write_bytes(b"a pickle")
    index = index_of(model)
    for name, entry in index.items():
        if isinstance(entry, list):
            entry[2]["pretrained_model_name_or_path"] = other if name == "vae" else ours
    write_index(model, index)
    with HubServer({ours: model, other: tmp_path / "other"}) as hub:
        hub.in_use(monkeypatch, tmp_path / "hub")
        ended = t2i(ours, tmp_path / "out")
    assert ended.code == 0, ended.output
    again = t2i(ours, tmp_path / "again")
    assert again.code == 0, again.output
    for folder in (tmp_path / "out", tmp_path / "again"):
        assert furthest(list(images(folder).values()), expected) <= 1
    assert "vae/config.json" in hub.fetched and "vae/x.bin" not in hub.fetched


@pytest.mark.parametrize("model", ["flux"], indirect=True)
def test_its_plan_knows_its_blocks(model: Path, tmp_path: Path) -> None:
    words = ("--model_name", model, "--prompt", "x", "--cache_dir", tmp_path / "cache")
    ended = dglaunch("plan", "t2i", *words, COLUMNS="3000")
    assert ended.code == 0 and "tried out once the model is loaded" in ended.output, ended.output
    checkpoint = resolve(BackendConfig(model_name=str(model)))
    assert checkpoint.num_steps(None) == 50 and set(checkpoint.parameters) >= {"transformer", "vae", "text_encoder_2"}


@pytest.mark.traced
@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "how"),
    [("flux", "traced with"), ("sdxl", "traced with"), ("qwenimage", "a formula, as it could not be traced")],
    indirect=["model"],
)
def test_its_plan_has_figures(model: Path, tmp_path: Path, how: str) -> None:
    """Of Qwen's blocks the trace does not know how long their template is."""
    words = ("--model_name", model, "--prompt", "x", "--gpu", "H100 SXM", "--cache_dir", tmp_path / "cache")
    ended = dglaunch("plan", "t2i", *words, "--height", "64", "--width", "64", COLUMNS="3000")
    assert ended.code == 0 and how in ended.output, ended.output


def test_it_does_not_edit(families: Path) -> None:
    model = modular(families, "flux")
    with pytest.raises(UserError, match="for text to image alone"):
        as_editor(resolve(BackendConfig(model_name=str(model))), "qwen")


def test_a_single_file_needs_an_ordinary_checkpoint(families: Path, tmp_path: Path) -> None:
    model = modular(families, "flux")
    weights = shutil.copy(model / "vae" / "diffusion_pytorch_model.safetensors", tmp_path / "x.safetensors")
    ended = t2i(Path(weights), tmp_path / "out", "--model_config", model)
    assert ended.code == 2 and "--model_config" in ended.output and "modular pipelines" in ended.output, ended.output
