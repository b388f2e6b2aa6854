"""The newer families with LoRAs, weights in a file, GGUF and other schedulers: equal to plain diffusers and peft one by one, or
refused before a model is loaded."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from support.lora_files import fitting_lora
from support.matrix import measured, refused
from support.new_family_runs import CASES, OF_TABLE, TOLERANCE, plain, t2i
from support.results import images, run_json
from support.selection import rarely
from support.tiny_models import build
from support.weight_files import State, save, save_gguf, set_state, state_of

pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config`"),  # of a second LoRA, by peft itself
]

NO_LORA = ("hunyuan_dit", "hunyuan_image", "longcat", "nucleusmoe", "prx", "pixart_alpha")
LORA = [family for family in OF_TABLE if family not in NO_LORA]
NO_FILE = (
    "bria_fibo2", "cogview4", "hunyuan_dit", "hunyuan_image", "ideogram4", "longcat", "nucleusmoe", "prx", "pixart_alpha",
)  # fmt: skip
FILE = [family for family in OF_TABLE if family not in NO_FILE]
OWN_SCHEDULER: dict[str, tuple[str, str]] = {
    "cogview4": ("by which no other can be checked", "it tells the transformer other times than the noise is of"),
    "ernie_image": (
        "it cannot run as this pipeline calls it",
        "its own only, with other options: it hands over a tensor of sigmas",
    ),
    "ideogram4": (
        "it cannot run as this pipeline calls it",
        "its own only, with other options: it hands over a list of sigmas",
    ),
}
"""Families that take no other scheduler: what is said, and why in a few words."""
SCHEDULER = [family for family in OF_TABLE if family not in OWN_SCHEDULER]
ROWS: list[dict[str, Any]] = [
    {"prompt": "a red cat", "seed": 5, "lora": "one"},
    {"prompt": "a red cat", "seed": 5, "lora": "none"},
    {"prompt": "two blue dogs on the moon", "seed": 6, "lora": "one:0.3,two:0.7"},
    {"prompt": "two blue dogs on the moon", "seed": 7, "lora": "two:-0.5"},
]
"""The first two differ by the LoRA alone."""


def apart(found: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """The greatest difference of a pixel, of 255."""
    return max(float(np.abs(a.astype(float) - b).max()) for a, b in zip(found, expected, strict=True))


def made(folder: Path) -> list[np.ndarray]:
    return list(images(folder / "out").values())


def parsed(cell: str) -> dict[str, float]:
    words = [word.partition(":") for word in cell.split(",") if word != "none"]
    return {name: float(weight or 1) for name, _, weight in words}


def is_refused(model: Path, folder: Path, *words: str | Path) -> str:
    """What is said where a command ends before anything is loaded or written."""
    ended = t2i(model, folder, *words)
    assert ended.code == 2 and not (folder / "out").exists(), ended.output
    return " ".join(ended.output.split())


@pytest.mark.parametrize("family", rarely(LORA, LORA))
def test_rows_with_loras_are_as_peft_makes_them_alone(families: Path, tmp_path: Path, family: str) -> None:
    case, model = CASES[family], build(family, families / family)
    files = {
        name: fitting_lora(model, tmp_path / f"{name}.safetensors", seed=seed)
        for seed, name in enumerate(("one", "two"))
    }

    def load(pipeline: Any) -> None:
        for name, file in files.items():
            pipeline.load_lora_weights(str(file), weight_name=file.name, adapter_name=name)

    def use(pipeline: Any, number: int) -> None:
        if weights := parsed(ROWS[number]["lora"]):
            pipeline.enable_lora()
            pipeline.set_adapters(list(weights), list(weights.values()))
        else:
            pipeline.disable_lora()

    expected = plain(model, case, load, rows=ROWS, before=use)
    assert np.abs(expected[0] - expected[1]).max() > 10 * TOLERANCE, "else the comparison could not fail"
    for column, batch in {"LoRA": 1, "mixed rows": 4}.items():
        folder = tmp_path / column
        folder.mkdir()
        ended = t2i(model, folder, *case.words, "--lora", *files.values(), batch=batch, rows=ROWS)
        assert ended.code == 0, ended.output
        difference = apart(made(folder), expected)
        assert difference <= TOLERANCE, column
        measured(OF_TABLE[family], column, difference / 255)


@pytest.mark.parametrize("family", rarely(NO_LORA, set(NO_LORA) - {"pixart_alpha"}))
def test_a_family_without_loras_is_refused(families: Path, tmp_path: Path, family: str) -> None:
    model = build(family, families / family)
    lora = fitting_lora(model, tmp_path / "one.safetensors", seed=0)
    assert "loads no LoRA into" in is_refused(model, tmp_path, *CASES[family].words, "--lora", lora)
    for column in ("LoRA", "mixed rows", "LoRA, xDiT"):
        refused(OF_TABLE[family], column, "diffusers loads no LoRA into its pipeline")


NOT_SPLIT = [*LORA, "sdxl"]


@pytest.mark.parametrize("family", rarely(NOT_SPLIT, set(NOT_SPLIT) - {"sdxl"}))
def test_xdit_has_no_pipeline_of_it(families: Path, tmp_path: Path, family: str) -> None:
    model = build(family, families / family)
    lora = fitting_lora(
        model, tmp_path / "one.safetensors", seed=0, parts=("unet" if family == "sdxl" else "transformer",)
    )
    words = (*CASES[family].words, "--lora", lora, "--backend", "xdit")
    assert "--backend xdit has no" in is_refused(model, tmp_path, *words)
    refused({**OF_TABLE, "sdxl": "SDXL"}[family], "LoRA, xDiT", "xfuser has no pipeline of it")


def other(state: State) -> State:
    """Weights that are not the checkpoint's own."""
    return {key: value * 0.8 if value.dim() > 1 else value for key, value in state.items()}


@pytest.mark.parametrize("family", rarely(FILE, FILE))
def test_weights_in_a_file(families: Path, tmp_path: Path, family: str) -> None:
    case, model = CASES[family], build(family, families / family)
    state = other(state_of(model))
    file = save(state, tmp_path / "x.safetensors")
    ended = t2i(model, tmp_path, *case.words, "--transformer", file)
    assert ended.code == 0, ended.output
    difference = apart(made(tmp_path), plain(model, case, set_state("transformer", state)))
    assert difference <= TOLERANCE
    measured(OF_TABLE[family], "single file", difference / 255)
    assert "x.safetensors" in run_json(tmp_path / "out")["effects"]["transformer"]


@pytest.mark.parametrize("family", rarely(FILE, FILE))
def test_gguf(families: Path, tmp_path: Path, family: str) -> None:
    """Against diffusers' own loader of the same file."""
    import diffusers

    case, model = CASES[family], build(family, families / family)
    file = save_gguf(other(state_of(model)), tmp_path / "x.gguf")

    def change(pipeline: Any) -> None:
        pipeline.transformer = type(pipeline.transformer).from_single_file(
            str(file), config=str(model), subfolder="transformer", torch_dtype=torch.float32,
            quantization_config=diffusers.GGUFQuantizationConfig(compute_dtype=torch.float32),
        )  # fmt: skip

    ended = t2i(model, tmp_path, *case.words, "--transformer", file)
    assert ended.code == 0, ended.output
    difference = apart(made(tmp_path), plain(model, case, change))
    assert difference <= TOLERANCE
    measured(OF_TABLE[family], "GGUF", difference / 255)
    assert "linear layers quantised" in run_json(tmp_path / "out")["effects"]["transformer"]


@pytest.mark.parametrize("family", rarely(["hidream", "krea2"], ["krea2"]))
def test_gguf_of_what_is_no_linear_layer_is_refused(families: Path, tmp_path: Path, family: str) -> None:
    """diffusers would compute with its packed bytes, and fail in the first step."""
    model = build(family, families / family)
    file = save_gguf(state_of(model), tmp_path / "x.gguf", whole=("norm", "embed"))
    said = is_refused(model, tmp_path, *CASES[family].words, "--transformer", file)
    assert "unpacks weights of linear layers alone" in said
    assert {"hidream": "ff_i.gate.weight", "krea2": "scale_shift_table"}[family] in said


@pytest.mark.parametrize("family", rarely(NO_FILE, set(NO_FILE) - {"pixart_alpha"}))
def test_families_without_a_loader_of_single_files_are_refused(families: Path, tmp_path: Path, family: str) -> None:
    model = build(family, families / family)
    words = CASES[family].words
    for column, file in {
        "single file": save(state_of(model), tmp_path / "x.safetensors"),
        "GGUF": save_gguf(state_of(model), tmp_path / "x.gguf"),
    }.items():
        said = is_refused(model, tmp_path, *words, "--transformer", file)
        assert "cannot load a" in said and "from a single file" in said
        refused(OF_TABLE[family], column, "diffusers has no loader of single files")


@pytest.mark.parametrize("family", rarely(SCHEDULER, SCHEDULER))
def test_another_scheduler(families: Path, tmp_path: Path, family: str) -> None:
    from diffusers import UniPCMultistepScheduler

    case, model = CASES[family], build(family, families / family)

    def change(pipeline: Any) -> None:
        own = pipeline.scheduler.config
        flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": own.get("shift")}
        pipeline.scheduler = UniPCMultistepScheduler.from_config(own, **flow if "shift" in own else {})

    ended = t2i(model, tmp_path, *case.words, "--scheduler", "UniPC", steps=4)
    assert ended.code == 0, ended.output
    found = made(tmp_path)
    difference = apart(found, plain(model, case, change, steps=4))
    assert difference <= TOLERANCE
    assert apart(found, plain(model, case, steps=4)) > 2 * TOLERANCE, "else it would not have shown"
    measured(OF_TABLE[family], "scheduler", difference / 255)


@pytest.mark.parametrize("family", rarely(OWN_SCHEDULER, OWN_SCHEDULER))
def test_families_that_take_no_other_scheduler_are_refused(families: Path, tmp_path: Path, family: str) -> None:
    model, (said, why) = build(family, families / family), OWN_SCHEDULER[family]
    assert said in is_refused(model, tmp_path, *CASES[family].words, "--scheduler", "UniPC")
    refused(OF_TABLE[family], "scheduler", why)


WATCHED = [family for family in OF_TABLE if family not in ("cogview4", "hunyuan_dit", "pixart_alpha")]


@pytest.mark.parametrize("family", rarely(WATCHED, WATCHED))
def test_the_pipelines_call_their_schedulers_as_the_table_says(families: Path, family: str) -> None:
    from dglaunch.models.schedulers import calling_of

    seen: dict[str, Any] = {}

    def watch(pipeline: Any) -> None:
        own = pipeline.scheduler.set_timesteps

        def watched(*args: Any, **kwargs: Any) -> Any:
            seen.update({name: value for name, value in kwargs.items() if value is not None})
            return own(*args, **kwargs)

        watched.__signature__ = __import__("inspect").signature(own)  # type: ignore[attr-defined]
        pipeline.scheduler.set_timesteps = watched
        seen["pipeline"] = type(pipeline).__name__

    plain(build(family, families / family), CASES[family], watch, rows=[{"prompt": "a red cat"}])
    calling = calling_of(seen["pipeline"], flow=True)
    assert ("sigmas" in seen, "mu" in seen) == (calling.sigmas, calling.mu != "never"), seen
    if calling.sigmas:
        assert isinstance(seen["sigmas"], {"array": np.ndarray, "list": list, "tensor": torch.Tensor}[calling.form])
