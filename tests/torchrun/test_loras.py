"""LoRAs over real pipelines on tiny random weights, against plain diffusers and peft, one row at a time.

One world of each size serves all cases. The plain calls are written out here, so that they share nothing with the code
under test.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.edit_images import INSTRUCTIONS, SIZES, picture, save_pictures
from support.family_runs import DIFFERENT_LENGTHS, GUIDED, SIZE
from support.lora_files import fitting_lora
from support.matrix import measured, refused
from support.ranks import Case, launch
from support.results import images, run_json, write_jsonl
from support.selection import rarely, selected
from support.tiny_models import build

pytestmark = [
    pytest.mark.timeout(1800),  # the first test waits for the runs of all
    pytest.mark.filterwarnings("ignore:Already found a `peft_config`"),  # of a second LoRA, by peft itself
]

TOLERANCE = 2
"""Of 255."""
CELLS: list[str | None] = ["one", "none", "two:0.5", "one:0.3,two:0.7", "two:-0.5", None, "one:0.5", ""]
"""What the rows say; None: nothing, so that they use both."""
ONE_SET: list[str | None] = ["one:0.3,two:0.7"] * 4
"""For what adds LoRAs to the weights."""
ROWS = [prompt for _ in range(2) for prompt in DIFFERENT_LENGTHS]
NAMES = {
    "flux": "Flux", "flux2": "Flux2", "flux2_klein": "Flux2Klein", "qwenimage": "QwenImage", "zimage": "ZImage",
    "sd3": "SD3", "lumina2": "Lumina2", "sdxl": "SDXL", "flux_kontext": "FluxKontext",
    "qwenimage_edit": "QwenImageEdit", "qwenimage_edit_2511": "QwenImageEditPlus",
}  # fmt: skip
"""Tiny checkpoint -> family."""
ENCODERS = {
    "flux": ("text_encoder",), "flux_kontext": ("text_encoder",),
    "sd3": ("text_encoder", "text_encoder_2"), "sdxl": ("text_encoder", "text_encoder_2"),
}  # fmt: skip
EDITORS = ("flux_kontext", "qwenimage_edit", "qwenimage_edit_2511")
ULYSSES = {"DG_XDIT_ULYSSES_DEGREE": "2"}
RUNS = {
    "alone": (1, ["--batch_size", "1", "--encode", "inline"], {}),
    "mixed": (1, ["--batch_size", "4"], {}),
    "mixed inline": (1, ["--batch_size", "4", "--encode", "inline"], {}),
    "ulysses": (2, ["--batch_size", "4", "--backend", "xdit"], ULYSSES),
}
FEW = [("flux", "mixed")]
ALL = [
    *[(family, run) for family in NAMES for run in ("alone", "mixed")],
    *[(family, "mixed inline") for family in ("flux", "sd3", "sdxl")],
    *[(family, "ulysses") for family in NAMES if family != "sdxl"],
]
NO_LORA = {"pixart_sigma": "PixArtSigma", "longcat_edit": "LongCatImageEdit", "glm_image": "GlmImage"}


def cells_of(family: str, run: str) -> list[str | None]:
    return ONE_SET if (family, run) == ("sd3", "ulysses") else CELLS


def loras_of(family: str, models: Path) -> dict[str, Path]:
    """Two LoRAs; the second is about the text encoders too, where the family's may be."""
    part = "unet" if family == "sdxl" else "transformer"
    parts = {"one": (part,), "two": (part, *ENCODERS.get(family, ()))}
    return {
        name: fitting_lora(
            models / family, models / "loras" / family / f"{name}.safetensors", seed=seed, parts=parts[name]
        )
        for seed, name in enumerate(parts)
    }


def parsed(cell: str | None) -> dict[str, float]:
    """A row's LoRAs and their weights."""
    if cell is None:
        return {"one": 1.0, "two": 1.0}
    words = [word.partition(":") for word in cell.split(",") if word not in ("", "none")]
    return {name: float(weight or 1) for name, _, weight in words}


def call_of(family: str) -> dict[str, Any]:
    """The arguments that the flags of the runs stand for."""
    words = GUIDED.get(family, [])
    found: dict[str, Any] = {name[2:]: value for name, value in zip(words[::2], words[1::2])}
    if "guidance_scale" in found:
        found["true_cfg_scale" if family == "qwenimage" else "guidance_scale"] = float(found.pop("guidance_scale"))
    return found


def plain_inputs(family: str, n: int) -> dict[str, Any]:
    if family not in EDITORS:
        return {"prompt": ROWS[n], "height": 64, "width": 64, "num_inference_steps": 3, **call_of(family)}
    name = list(SIZES)[n % 2]
    image = picture(n % 2, SIZES[name])
    call: dict[str, Any] = {"prompt": INSTRUCTIONS[n], "num_inference_steps": 2, "image": image}
    if family == "flux_kontext":
        call |= {
            "_auto_resize": False,
            "width": image.width,
            "height": image.height,
            "max_area": image.width * image.height,
        }
    return call


def plain(family: str, models: Path, cells: list[str | None]) -> list[np.ndarray]:
    """Every row by diffusers and peft alone, one at a time."""
    import torch
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(models / family)
    pipeline.set_progress_bar_config(disable=True)
    for name, file in loras_of(family, models).items():
        pipeline.load_lora_weights(str(file), weight_name=file.name, adapter_name=name)
    made = []
    for n, cell in enumerate(cells):
        if weights := parsed(cell):
            pipeline.enable_lora()
            pipeline.set_adapters(list(weights), list(weights.values()))
        else:
            pipeline.disable_lora()
        output = pipeline(generator=torch.Generator().manual_seed(n), **plain_inputs(family, n))
        made.append(np.asarray(output.images[0].convert("RGB")).astype(int))
    return made


@pytest.fixture(scope="module")
def expected(families: Path, runs: object) -> Iterator[dict[tuple[str, str], list[np.ndarray]]]:
    yield {}


def reference(
    expected: dict[tuple[str, str], list[np.ndarray]], families: Path, family: str, cells: list[str | None]
) -> list[np.ndarray]:
    """What diffusers makes, once for all runs of a family."""
    key = (family, str(cells))
    if key not in expected:
        expected[key] = plain(family, families, cells)
    return expected[key]


@pytest.fixture(scope="module")
def runs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, families: Path
) -> Iterator[dict[tuple[str, str], tuple[Path, Case]]]:
    """Every run that the chosen tests look at: its folder, and how it ended."""
    folder = tmp_path_factory.mktemp("loras")
    save_pictures(folder / "images")
    planned: dict[tuple[str, str], tuple[int, list[Any], dict[str, str]]] = {}
    for family, run in selected(request, "family", "run"):
        build(family, families / family)
        world, words, environment = RUNS[run]
        rows: list[dict[str, Any]] = [
            {"input_images": f"images/{list(SIZES)[n % 2]}.png", "instruction": INSTRUCTIONS[n]}
            if family in EDITORS
            else {"prompt": ROWS[n]}
            for n in range(len(cells_of(family, run)))
        ]
        for row, cell in zip(rows, cells_of(family, run)):
            row |= {} if cell is None else {"lora": cell}
        table = write_jsonl(folder / f"{family}-{run.replace(' ', '-')}.jsonl", rows)
        size = (
            ["edit", "--num_inference_steps", "2", "--input"]
            if family in EDITORS
            else ["t2i", *SIZE, *GUIDED.get(family, []), "--prompts_file"]
        )
        files = [str(file) for file in loras_of(family, families).values()]
        words = [
            word
            for word in words
            if family not in EDITORS or family == "flux_kontext" or word not in ("--encode", "inline")
        ]
        planned[family, run] = (
            world,
            [*size, table, "--model_name", families / family, "--lora", *files, *words],
            environment,
        )
    results: dict[tuple[str, str], tuple[Path, Case]] = {}
    for world in (1, 2):
        keys = [key for key, (needed, _, _) in planned.items() if needed == world]
        out = {key: folder / "-".join(key).replace(" ", "-") for key in keys}
        commands = [([*planned[key][1], "--output_dir", out[key]], planned[key][2]) for key in keys]
        results |= {key: (out[key], case) for key, case in zip(keys, launch(folder, world, commands))}
    yield results


@pytest.mark.parametrize(("family", "run"), rarely(ALL, set(ALL) - set(FEW)))
def test_every_row_is_as_diffusers_makes_it_alone(
    runs: dict[tuple[str, str], tuple[Path, Case]],
    expected: dict[tuple[str, str], list[np.ndarray]],
    families: Path,
    family: str,
    run: str,
) -> None:
    folder, case = runs[family, run]
    assert case.codes == [0] * RUNS[run][0], case.output
    made = [image.astype(int) for image in images(folder).values()]
    wanted = reference(expected, families, family, cells_of(family, run))
    worst = max(int(abs(mine - theirs).max()) for mine, theirs in zip(made, wanted, strict=True))
    assert worst <= TOLERANCE, f"{worst} of 255"
    column = {"alone": "LoRA", "mixed": "mixed rows", "ulysses": "LoRA, xDiT"}.get(run)
    if column is not None:
        measured(NAMES[family], column, worst / 255)
    assert "each tensor of the files is in its place" in run_json(folder)["effects"]["lora"]
    if run == "mixed" and family != "qwenimage_edit_2511":
        assert max(case.calls[0]) > 1, "no rows shared a call"


@pytest.mark.slow
@pytest.mark.parametrize("family", NAMES)
def test_the_loras_of_these_tests_change_the_images(families: Path, family: str) -> None:
    """Else the comparisons of this file could not fail."""
    build(family, families / family)
    one, none, two = plain(family, families, ["one", "none", "two"])
    again = plain(family, families, ["none", "none", "none"])
    assert abs(one - again[0]).max() > 10 * TOLERANCE and abs(two - again[2]).max() > 10 * TOLERANCE
    assert abs(none - again[1]).max() == 0


@pytest.mark.slow
@pytest.mark.parametrize("family", NO_LORA)
def test_a_family_without_loras_is_refused(families: Path, family: str, tmp_path: Path) -> None:
    from support.commands import dglaunch
    from support.lora_files import write_lora

    build(family, families / family)
    save_pictures(tmp_path / "images")
    lora = write_lora(tmp_path / "x.safetensors")
    command = ["t2i", "--prompt", "x"]
    if family == "longcat_edit":
        command = ["edit", "--input", str(tmp_path / "images" / "a.png"), "--instruction", "x"]
    ended = dglaunch(*command, "--model_name", families / family, "--lora", lora, "--output_dir", tmp_path / "out")
    assert ended.code == 2 and "loads no LoRA into" in ended.output, ended.output
    for column in ("LoRA", "mixed rows", "LoRA, xDiT"):
        refused(NO_LORA[family], column, "diffusers loads no LoRA into its pipeline")
