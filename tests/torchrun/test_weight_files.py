"""--transformer, --text_encoder and --vae: equal to plain diffusers with the same weights, and every silent fault refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from support.commands import dglaunch
from support.matrix import measured, refused
from support.plain_diffusers import OF_TABLE, apart, made_images, plain_images, words_for
from support.ranks import launch
from support.results import images, run_json
from support.selection import rarely
from support.tiny_models import build
from support.weight_files import (
    flux_own_keys,
    save,
    save_gguf,
    scaled_fp8,
    set_state,
    state_of,
    unscaled,
    zimage_own_keys,
)

LOADED = [
    "flux", "flux2", "flux2_klein", "qwenimage", "zimage", "sd3", "lumina2", "flux_kontext", "qwenimage_edit",
    "qwenimage_edit_plus", "sdxl",
]  # fmt: skip
NOT_LOADED = ["pixart_sigma", "longcat_edit", "glm_image"]
FAST = {"flux"}


def other(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights that are not the checkpoint's own."""
    return {key: value * 0.8 if value.dim() > 1 else value for key, value in state.items()}


def denoiser(family: str) -> str:
    return "unet" if family == "sdxl" else "transformer"


@pytest.mark.parametrize("family", rarely(LOADED, set(LOADED) - FAST))
def test_a_file_in_diffusers_keys(families: Path, tmp_path: Path, family: str) -> None:
    model = build(family, families / family)
    state = other(state_of(model, denoiser(family)))
    file = save(state, tmp_path / "x.safetensors")
    made = made_images(family, model, tmp_path / "out", "--transformer", file)
    difference = apart(plain_images(family, model, set_state(denoiser(family), state)), made)
    assert difference <= 2 / 255
    measured(OF_TABLE[family], "single file", difference)
    told = run_json(tmp_path / "out")
    assert "x.safetensors" in told["effects"][denoiser(family)]
    assert len(told["settings"][f"{denoiser(family)}_sha256"]) == 64


@pytest.mark.parametrize("family", rarely(LOADED, set(LOADED) - FAST))
def test_gguf(families: Path, tmp_path: Path, family: str) -> None:
    """Against diffusers' own loader of the same file; how far the file is from the whole weights is the file's."""
    import diffusers

    model = build(family, families / family)
    part = denoiser(family)
    file = save_gguf(other(state_of(model, part)), tmp_path / "x.gguf")

    def change(pipeline: Any) -> None:
        loaded = type(getattr(pipeline, part)).from_single_file(
            str(file), config=str(model), subfolder=part, torch_dtype=torch.float32,
            quantization_config=diffusers.GGUFQuantizationConfig(compute_dtype=torch.float32),
        )  # fmt: skip
        setattr(pipeline, part, loaded)

    made = made_images(family, model, tmp_path / "out", "--transformer", file)
    difference = apart(plain_images(family, model, change), made)
    assert difference <= 2 / 255
    measured(OF_TABLE[family], "GGUF", difference)
    assert "linear layers quantised" in run_json(tmp_path / "out")["effects"][part]


@pytest.mark.parametrize("family", rarely(NOT_LOADED, set(NOT_LOADED) - {"pixart_sigma"}))
def test_families_without_a_loader_are_refused_by_name(families: Path, tmp_path: Path, family: str) -> None:
    model = build(family, families / family)
    file = save(state_of(model), tmp_path / "x.safetensors")
    said = refusal(family, model, tmp_path, "--transformer", file)
    assert "cannot load a" in said and "from a single file" in said
    for column in ("single file", "GGUF"):
        refused(OF_TABLE[family], column, "diffusers has no loader of single files")


@pytest.mark.parametrize("prefix", rarely(["", "model.diffusion_model."], ["", "model.diffusion_model."]))
def test_the_models_own_keys(families: Path, tmp_path: Path, prefix: str) -> None:
    model = build("zimage", families / "zimage")
    state = other(state_of(model))
    file = save(zimage_own_keys(state, prefix), tmp_path / "x.safetensors")
    made = made_images("zimage", model, tmp_path / "out", "--transformer", file)
    assert apart(plain_images("zimage", model, set_state("transformer", state)), made) <= 2 / 255
    extra = zimage_own_keys(state, prefix) | {f"{prefix}layers.0.attention.extra.weight": torch.zeros(2, 2)}
    said = refusal("zimage", model, tmp_path, "--transformer", save(extra, file))
    assert "layers.0.attention.extra.weight" in said


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_flux_own_keys_at_true_size(prefix: str) -> None:
    """diffusers' conversion takes FLUX.1's width for granted, so that no tiny model can be loaded so: keys and sizes alone,
    and what it would drop."""
    from dglaunch.backends.diffusers.weight_files import _as_the_part_has_them
    from dglaunch.models.building import build as built
    from dglaunch.models.catalogue import known

    entry = known("black-forest-labs/FLUX.1-dev")
    assert entry is not None
    component = entry.components["transformer"]
    with torch.device("meta"):
        transformer = built(component)
    state = transformer.state_dict()
    own = flux_own_keys(state, prefix, blocks=(19, 38))
    given, dropped = _as_the_part_has_them(transformer, component, dict(own), "x")
    assert {key: value.shape for key, value in given.items()} == {key: value.shape for key, value in state.items()}
    assert not dropped
    extra = own | {f"{prefix}double_blocks.0.extra.weight": torch.empty(2, 2, device="meta")}
    assert _as_the_part_has_them(transformer, component, dict(extra), "x")[1] == ["double_blocks.0.extra.weight"]


@pytest.mark.parametrize("ending", rarely([".scale_weight", ".weight_scale"], [".weight_scale"]))
def test_scaled_fp8_is_multiplied_by_its_scales(families: Path, tmp_path: Path, ending: str) -> None:
    model = build("flux", families / "flux")
    state = scaled_fp8(state_of(model), ending)
    file = save(state, tmp_path / "x.safetensors")
    made = made_images("flux", model, tmp_path / "out", "--transformer", file)
    assert apart(plain_images("flux", model, set_state("transformer", unscaled(state))), made) <= 2 / 255
    assert "multiplied by their scales" in run_json(tmp_path / "out")["choices"]["transformer"]


def test_float8_without_scales_is_taken_as_it_is_and_said(families: Path, tmp_path: Path) -> None:
    """diffusers upcasts it without a word: no memory is saved."""
    model = build("flux", families / "flux")
    state = {
        key: value.to(torch.float8_e4m3fn) if value.dim() == 2 else value for key, value in state_of(model).items()
    }
    file = save(state, tmp_path / "x.safetensors")
    made = made_images("flux", model, tmp_path / "out", "--transformer", file)
    whole = {key: value.float() for key, value in state.items()}
    assert apart(plain_images("flux", model, set_state("transformer", whole)), made) <= 2 / 255
    assert "taken as they are (there are no scales)" in run_json(tmp_path / "out")["choices"]["transformer"]


def refusal(family: str, model: Path, tmp_path: Path, *words: str | Path) -> str:
    """What is said where a command ends with 2 before anything is written."""
    ended = dglaunch(*words_for(family, model, tmp_path / "refused"), *words)
    assert ended.code == 2, ended.output
    assert not (tmp_path / "refused").exists()
    return " ".join(ended.output.split())


def test_silent_faults_are_refused(families: Path, tmp_path: Path) -> None:
    flux = build("flux", families / "flux")
    state = state_of(flux)

    def said(change: dict[str, torch.Tensor], *words: str) -> str:
        return refusal("flux", flux, tmp_path, "--transformer", save(change, tmp_path / "x.safetensors"), *words)

    few = {key: value for key, value in state.items() if key != "proj_out.weight"}
    assert "proj_out.weight" in said(few)
    assert "lora.weight" in said(state | {"lora.weight": torch.zeros(2, 2)})
    assert "x_embedder.bias" in said(state | {"x_embedder.bias": torch.zeros(3)})
    assert "other keys or sizes" in said({f"{key}.x": value for key, value in state.items()})
    packed = state | {"proj_out.weight": torch.zeros(16, 32, dtype=torch.uint8)}
    assert "stored as U8" in said(packed)
    lost = scaled_fp8(state)
    del lost["proj_out.weight"]
    assert "scaled in a way that is not known" in said(lost)


def test_gguf_goes_with_nothing_that_changes_weights(families: Path, tmp_path: Path) -> None:
    flux = build("flux", families / "flux")
    file = save_gguf(state_of(flux), tmp_path / "x.gguf")
    for words in (["--enable_layerwise_casting"], ["--enable_fuse_qkv"], ["--quantization", "int8"]):
        assert "has quantised already" in refusal("flux", flux, tmp_path, "--transformer", file, *words), words
    (tmp_path / "torn.gguf").write_bytes(file.read_bytes()[:900])
    assert "no whole GGUF file" in refusal("flux", flux, tmp_path, "--transformer", tmp_path / "torn.gguf")
    assert "the transformer alone" in refusal("flux", file, tmp_path)
    (tmp_path / "x.pt").write_bytes(b"x")
    assert "pickle" in refusal("flux", flux, tmp_path, "--transformer", tmp_path / "x.pt")
    assert "no such file" in refusal("flux", flux, tmp_path, "--transformer", tmp_path / "none.gguf")
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(save(state_of(flux), tmp_path / "x.safetensors").read_bytes()[:-100])
    assert "it is shorter than its header says" in refusal("flux", flux, tmp_path, "--transformer", torn)


@pytest.mark.slow
def test_int8_is_done_to_the_weights_of_a_file_and_counted(families: Path, tmp_path: Path) -> None:
    """diffusers drops a TorchAoConfig for a single file in silence; dglaunch quantises what was loaded."""
    model = build("flux", families / "flux")
    file = save(state_of(model), tmp_path / "x.safetensors")
    made = made_images("flux", model, tmp_path / "file", "--transformer", file, "--quantization", "int8")
    own = made_images("flux", model, tmp_path / "own", "--quantization", "int8")
    assert apart(own, made) == 0
    effects = [run_json(tmp_path / name)["effects"]["quantization"] for name in ("file", "own")]
    assert effects[0] == effects[1] and "linear layers" in effects[0]


@pytest.mark.parametrize("part", rarely(["vae", "text_encoder_2"], ["vae"]))
def test_another_vae_or_text_encoder(families: Path, tmp_path: Path, part: str) -> None:
    model = build("flux", families / "flux")
    state = {key: value * 0.9 if value.dim() > 1 else value for key, value in state_of(model, part).items()}
    file = save(state, tmp_path / "x.safetensors")
    given = ["--vae", str(file)] if part == "vae" else ["--text_encoder", f"text_encoder_2={file}"]
    made = made_images("flux", model, tmp_path / "out", *given)

    def change(pipeline: Any) -> None:
        missing, unexpected = getattr(pipeline, part).load_state_dict(state, strict=False)
        assert not unexpected and all("embed_tokens" in key for key in missing)

    assert apart(plain_images("flux", model, change), made) <= 2 / 255
    assert part in run_json(tmp_path / "out")["effects"]


def test_text_encoders_are_named_and_checked(families: Path, tmp_path: Path) -> None:
    model = build("flux", families / "flux")
    file = save(state_of(model, "text_encoder"), tmp_path / "clip.safetensors")
    assert "Say which one" in refusal("flux", model, tmp_path, "--text_encoder", file)
    assert "Its text encoders: text_encoder" in refusal(
        "flux", model, tmp_path, "--text_encoder", f"text_encoder_9={file}"
    )
    said = refusal("flux", model, tmp_path, "--text_encoder", f"text_encoder_2={file}")
    assert "is not the text_encoder_2 of this checkpoint" in said


@pytest.mark.slow
def test_a_folder_that_torchao_has_quantised(families: Path, tmp_path: Path) -> None:
    import diffusers
    from torchao.quantization import Int8WeightOnlyConfig

    model = build("flux", families / "flux")
    config = diffusers.TorchAoConfig(Int8WeightOnlyConfig(version=2))
    whole = diffusers.FluxTransformer2DModel.from_pretrained(
        model, subfolder="transformer", quantization_config=config, torch_dtype=torch.float32
    )
    whole.save_pretrained(tmp_path / "int8")
    saved = json.loads((tmp_path / "int8" / "config.json").read_text())
    assert saved["quantization_config"]["quant_method"] == "torchao"

    def change(pipeline: Any) -> None:
        pipeline.transformer = whole

    made = made_images("flux", model, tmp_path / "out", "--transformer", tmp_path / "int8")
    assert apart(plain_images("flux", model, change), made) <= 2 / 255
    assert "quantised" in run_json(tmp_path / "out")["effects"]["transformer"]
    folder = shutil.copytree(model, tmp_path / "checkpoint")
    shutil.rmtree(folder / "transformer")
    shutil.copytree(tmp_path / "int8", folder / "transformer")
    in_folder = made_images("flux", folder, tmp_path / "in folder")
    assert apart(made, in_folder) == 0
    told = run_json(tmp_path / "in folder")["effects"]["transformer"]
    assert "quantised by torchao: " in told and "linear layers quantised" in told
    words = ["--transformer", tmp_path / "int8", "--enable_layerwise_casting"]
    assert "torchao has quantised already" in refusal("flux", model, tmp_path, *words)


def test_other_weights_are_another_job_and_a_moved_file_is_not(families: Path, tmp_path: Path) -> None:
    model = build("flux", families / "flux")
    file = save(state_of(model), tmp_path / "x.safetensors")
    words = words_for("flux", model, tmp_path / "out")
    assert dglaunch(*words, "--transformer", file).code == 0
    moved = file.rename(tmp_path / "y.safetensors")
    assert dglaunch(*words, "--transformer", moved).code == 0
    (image, _) = sorted((tmp_path / "out").glob("*.png"))
    again = dglaunch("replay", image, "--output", tmp_path / "again.png")
    assert again.code == 2 and "no such file" in again.output, again.output
    found = dglaunch("replay", image, "--set", f"transformer={moved}", "--output", tmp_path / "again.png")
    assert found.code == 0, found.output
    save(other(state_of(model)), file)
    ended = dglaunch(*words, "--transformer", file)
    assert ended.code == 2 and "transformer_sha256" in ended.output
    replayed = dglaunch("replay", image, "--output", tmp_path / "again2.png")
    assert replayed.code == 2 and "is another than the one" in " ".join(replayed.output.split())


@pytest.mark.slow
def test_plan_counts_what_the_file_holds(families: Path, tmp_path: Path) -> None:
    import gguf

    model = build("flux", families / "flux")
    state = state_of(model)
    whole, small = save(state, tmp_path / "x.safetensors"), save_gguf(state, tmp_path / "x.gguf", "Q4_0")

    def planned(file: Path) -> float:
        out = tmp_path / f"{file.suffix}.json"
        words = [
            "plan",
            *words_for("flux", model, tmp_path / "out"),
            "--transformer",
            file,
            "--gpu",
            "H100",
            "--json",
            out,
        ]
        ended = dglaunch(*words, "--cache_dir", tmp_path / "cache")
        assert ended.code == 0 and file.name in ended.output, ended.output
        return float(json.loads(out.read_text())["memory"]["stages"]["denoise"]["weights_gib"]) * 2**30

    num_bytes = sum(int(tensor.n_bytes) for tensor in gguf.GGUFReader(small).tensors)
    half = sum(value.numel() for value in state.values()) * 2
    assert planned(whole) - planned(small) == pytest.approx(half - num_bytes, rel=0.03)


XDIT = [
    ("flux", "gguf"),
    ("flux2", "safetensors"),
    ("qwenimage", "gguf"),
    ("zimage", "safetensors"),
    ("sd3", "gguf"),
    ("lumina2", "safetensors"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "kind"), XDIT)
def test_with_xdit(families: Path, tmp_path: Path, family: str, kind: str) -> None:
    model = build(family, families / family)
    state = other(state_of(model))
    file = (save_gguf if kind == "gguf" else save)(state, tmp_path / f"x.{kind}")
    one = made_images(family, model, tmp_path / "one", "--transformer", file)
    words = [*words_for(family, model, tmp_path / "two"), "--transformer", file, "--backend", "xdit"]
    (case,) = launch(tmp_path, 2, [(words, {"DG_XDIT_ULYSSES_DEGREE": "2"})])
    assert case.codes == [0, 0], case.output
    assert apart(one, list(images(tmp_path / "two").values())) <= 2 / 255
