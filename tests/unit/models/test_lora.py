"""LoRA files before a model is loaded: what each must be, what is wrong with it, which one a --lora and a row mean."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dglaunch.errors import UserError
from dglaunch.models.lora import read_loras, text_of
from support.commands import dglaunch
from support.lora_files import LAYERS, write_lora

A, B = "lora_A.weight", "lora_B.weight"
FIRST = LAYERS[0]


def said_of(*words: str | Path) -> str:
    """What is said of a --lora that is refused."""
    with pytest.raises(UserError) as refused:
        read_loras([str(word) for word in words])
    return str(refused.value)


# -- what diffusers would do wrong without a word -------------------------------------------------------------------


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "a first factor is missing": (
        {"change": {f"{FIRST}.{A}": None}},
        f"layers with one factor of two, of which the other would be drawn at random: {FIRST} (up only)",
    ),
    "a second factor is missing": ({"change": {f"{FIRST}.{B}": None}}, f"{FIRST} (down only)"),
    "the ranks of two factors differ": (
        {"change": {f"{FIRST}.{B}": np.ones((64, 8), np.float32)}},
        f"layers whose two factors have different ranks: {FIRST}",
    ),
    "alpha of some layers only": (
        {"change": {f"{FIRST}.alpha": np.array(1, np.float32)}},
        f"1 of 2 layers have an alpha; the others would get the commonest one: {LAYERS[1]}",
    ),
    "NaN": ({"change": {f"{FIRST}.{A}": np.full((4, 64), np.nan, np.float32)}}, f"NaN or infinity in {FIRST}.{A}"),
    "infinity in half precision": (
        {"change": {f"{FIRST}.{A}": np.full((4, 64), np.inf, np.float16)}},
        f"NaN or infinity in {FIRST}.{A}",
    ),
    "zeros, as before training": (
        {"change": {f"{layer}.{B}": np.zeros((64, 4), np.float32) for layer in LAYERS}},
        "are zero everywhere, so that it would change nothing",
    ),
    "DoRA": ({"change": {f"{FIRST}.dora_scale": np.ones(64, np.float32)}}, "DoRA, whose scale diffusers drops"),
    "DoRA of peft": ({"change": {f"{FIRST}.lora_magnitude_vector": np.ones(64, np.float32)}}, "no plain LoRA but has DoRA"),
    "DoRA by its header": (
        {"metadata": {"lora_adapter_metadata": json.dumps({"transformer.use_dora": True})}},
        "it is a DoRA (use_dora)",
    ),
    "differences of biases": ({"change": {f"{FIRST}.diff_b": np.ones(64, np.float32)}}, "differences of biases"),
    "differences of weights": ({"change": {f"{FIRST}.diff": np.ones((64, 64), np.float32)}}, "whole differences of weights"),
    "LoKr": ({"change": {f"{FIRST}.lokr_w1": np.ones((4, 4), np.float32)}}, "no plain LoRA but has LoKr"),
    "LoHa": ({"change": {f"{FIRST}.hada_w1_a": np.ones((4, 4), np.float32)}}, "no plain LoRA but has LoHa"),
    "a model": (
        {"change": {f"{FIRST}.weight": np.ones((64, 64), np.float32)}},
        "these are no factors of a LoRA (lora_A and lora_B, lora_down and lora_up) and no alpha",
    ),
    "whole numbers": ({"change": {f"{FIRST}.{A}": np.ones((4, 64), np.int8)}}, "its numbers are I8"),
    "alphas twice": (
        {"alpha": 2.0, "metadata": {"lora_adapter_metadata": "{}"}},
        "it says its alphas twice, as tensors and in its header",
    ),
    "kohya's alpha in the header alone": (
        {"metadata": {"ss_network_alpha": "1.0", "ss_network_dim": "4"}},
        "trained with alpha 1.0 and rank 4, and its tensors of alpha are missing",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_would_be_lost_in_silence_is_refused(tmp_path: Path, fault: str) -> None:
    given, told = FAULTS[fault]
    file = write_lora(tmp_path / "x.safetensors", **given)
    said = said_of(file)
    assert f"{file}: " in said and told in said, said
    assert "nothing was run" in said and "Convert the file" in said


@pytest.mark.parametrize(
    ("config", "is_right"),
    [
        ({"r": 4, "lora_alpha": 4}, True),
        ({"r": 4, "lora_alpha": 8}, False),
        ({"r": 4, "lora_alpha": 4, "use_rslora": True}, False),
        ({"r": 4, "lora_alpha": 4, "alpha_pattern": {"to_q": 2}}, False),
        ({"r": 4, "lora_alpha": 4, "use_dora": True}, False),
        ({"r": 4, "lora_alpha": 4, "peft_type": "LOHA"}, False),
    ],
)  # fmt: skip
def test_a_folder_of_peft_whose_scale_diffusers_does_not_read(
    tmp_path: Path, config: dict[str, Any], is_right: bool
) -> None:
    write_lora(tmp_path / "style" / "adapter_model.safetensors")
    (tmp_path / "style" / "adapter_config.json").write_text(json.dumps(config))
    if is_right:
        assert read_loras([str(tmp_path / "style")]).files[0].name == "style"
    else:
        assert "adapter_config.json" in (said := said_of(tmp_path / "style")) or "use_dora" in said


def test_a_folder_of_peft_is_right_where_the_file_says_its_scale(tmp_path: Path) -> None:
    metadata = {"lora_adapter_metadata": json.dumps({"transformer.r": 4, "transformer.lora_alpha": 8})}
    write_lora(tmp_path / "style" / "adapter_model.safetensors", metadata=metadata)
    (tmp_path / "style" / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8}))
    assert read_loras([str(tmp_path / "style")]).files[0].ranks == [4]


def test_all_bad_files_are_told_at_once(tmp_path: Path) -> None:
    nan = {"change": FAULTS["NaN"][0]["change"]}
    one = write_lora(tmp_path / "one.safetensors", **nan)
    two = write_lora(tmp_path / "two.safetensors", **FAULTS["LoKr"][0])
    (torn := tmp_path / "torn.safetensors").write_bytes(one.read_bytes()[:-10])
    said = said_of(one, two, torn)
    assert all(f"{file}: " in said for file in (one, two, torn)) and "is no whole safetensors file" in said


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".ckpt", ".pth"])
def test_only_safetensors_are_read(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"x{suffix}").write_bytes(b"\x80\x04")
    assert "is a pickle, which can run any code; only .safetensors is read" in said_of(tmp_path / f"x{suffix}")
    assert f"holds no .safetensors file (x{suffix} can run any code" in said_of(tmp_path)


@pytest.mark.parametrize("names", [("lora_A", "lora_B"), ("lora_down", "lora_up"), ("lora.down", "lora.up"), ("lora_A.default", "lora_B.default")])  # fmt: skip
@pytest.mark.parametrize("alpha", [None, 2.0])
def test_the_formats_that_there_are(tmp_path: Path, names: tuple[str, str], alpha: float | None) -> None:
    file = write_lora(tmp_path / "x.safetensors", names=names, alpha=alpha)
    (found,) = read_loras([str(file)]).files
    assert found.ranks == [4] and found.num_bytes("transformer") >= 4 * 4 * 4 * 64


def test_which_text_encoder_a_key_is_about(tmp_path: Path) -> None:
    layers = ("lora_unet_x", "lora_te1_y", "lora_te2_z", "text_encoder.layers.0")
    (found,) = read_loras([str(write_lora(tmp_path / "x.safetensors", layers, names=("lora_down", "lora_up")))]).files
    assert {part: len(keys) for part, keys in found.encoder_keys.items()} == {"text_encoder": 4, "text_encoder_2": 2}
    assert found.num_bytes("text_encoder_2") == 2 * 4 * 64 * 4 == found.num_bytes("transformer")


# -- which file, by which name ----------------------------------------------------------------------------------------


def test_name_file_and_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("oil.safetensors", "a=b:2.safetensors", "v1.5.safetensors", "set/pytorch_lora_weights.safetensors"):
        write_lora(tmp_path / name)
    words = ["oil.safetensors", "x=oil.safetensors:0.8", "a=b:2.safetensors", "v1.5.safetensors:-1", "set", "y=set:2"]
    assert text_of(read_loras(words).all or ()) == "oil:1,x:0.8,a_b_2:1,v1.5:-1,set:1,y:2"


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("nowhere.safetensors", "there is no file or folder nowhere.safetensors (looked in "),
        ("styles/nowhere.safetensors:0.5", "there is no file or folder styles/nowhere.safetensors"),
        ("x=", "write [NAME=]FILE[:WEIGHT]"),
        ("oil.safetensors:much", "'much' is no number"),
        ("oil.safetensors:nan", "write [NAME=]FILE[:WEIGHT]"),
        ("a,b=oil.safetensors", "'a,b' cannot be its name"),
        ("none=oil.safetensors", "'none' cannot be its name"),
        ("two", "holds several files (1.safetensors, 2.safetensors). Name one of them."),
    ],
)
def test_a_word_that_names_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str, told: str) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("oil", "two/1", "two/2"):
        write_lora(tmp_path / f"{name}.safetensors")
    assert told in said_of(word)


def test_two_of_one_name(tmp_path: Path) -> None:
    file = write_lora(tmp_path / "oil.safetensors")
    said = said_of("nix.safetensors", tmp_path / "nought.safetensors")
    assert "--lora nix.safetensors: there is no file" in said and "nought.safetensors: there is no file" in said
    assert "two are called 'oil'. Name them apart: --lora one=FILE two=FILE" in said_of(file, file)


# -- rows ---------------------------------------------------------------------------------------------------------


def test_what_a_cell_asks_for(tmp_path: Path) -> None:
    for seed, name in enumerate(("style", "detail")):
        write_lora(tmp_path / f"{name}.safetensors", seed=seed)
    loras = read_loras([f"{tmp_path}/style.safetensors:0.7", f"{tmp_path}/detail.safetensors"])
    cells = ["", "none", "style", "detail:0.5,style", " style : 2 ", "detail:-1e-3"]
    assert [text_of(loras.of_row(cell)) for cell in cells] == [
        "", "", "style:0.7", "style:0.7,detail:0.5", "style:2", "detail:-0.001",
    ]  # fmt: skip
    for cell, told in {
        "stile:1": "names 'stile', which no --lora gives (there are style, detail; the nearest is style)",
        "style,style:2": "names 'style' twice",
        "style:much": "gives style the weight 'much', which is no number",
        "style:inf": "is no number",
        "style,": "names ''",
    }.items():
        with pytest.raises(ValueError) as refused:
            loras.of_row(cell)
        assert told in str(refused.value)
    with pytest.raises(ValueError, match="not a text such as"):
        loras.of_row(3)


@pytest.mark.parametrize("family", ["FluxPipeline", "QwenImagePipeline"])
def test_tensors_for_a_text_encoder_that_diffusers_loads_none_into(tmp_path: Path, family: str) -> None:
    from support.checkpoint_folders import checkpoint_folder

    checkpoint_folder(tmp_path / "model", _class_name=family)
    layers = (*LAYERS, "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q")
    file = write_lora(tmp_path / "x.safetensors", layers)
    ended = dglaunch("plan", "t2i", "--model_name", tmp_path / "model", "--prompt", "x", "--lora", file)
    assert ended.code == 2, ended.output
    assert "has tensors for the text_encoder_2 (text_encoder_2.encoder.block.0" in ended.output
    assert "they would be dropped in silence" in ended.output


# -- the hub ------------------------------------------------------------------------------------------------------


def test_a_lora_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from support.hub_server import HubServer

    folder = tmp_path / "models"
    write_lora(folder / "one" / "pytorch_lora_weights.safetensors", seed=1)
    for name in ("a", "b"):
        write_lora(folder / "two" / f"{name}.safetensors", seed=2)
    write_lora(folder / "peft" / "adapter_model.safetensors", seed=3)
    (folder / "peft" / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8}))
    with HubServer({f"me/{name}": folder / name for name in ("one", "two", "peft")}) as hub:
        hub.in_use(monkeypatch, tmp_path / "cache")
        files = read_loras(["me/one:0.5", "b=me/two/b.safetensors"]).files
        assert [(file.name, file.source, file.scale) for file in files] == [
            ("one", "me/one/pytorch_lora_weights.safetensors", 0.5), ("b", "me/two/b.safetensors", 1.0),
        ]  # fmt: skip
        assert "The hub's me/two holds several files (a.safetensors, b.safetensors). Name one of them." in said_of(
            "me/two"
        )
        assert "adapter_config.json says r 4, lora_alpha 8" in said_of("me/peft")
        assert "the hub does not give it" in said_of("me/none")
        hub.down = True
        monkeypatch.setattr("dglaunch.models.hub._silent_since", {})
        assert read_loras(["me/one/pytorch_lora_weights.safetensors"]).files[0].sha256 == files[0].sha256
