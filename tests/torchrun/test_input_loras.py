"""LoRAs by row together with input images, against plain diffusers and peft one row at a time."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.edit_images import picture
from support.input_tables import SIDE, mask, save_images
from support.lora_files import fitting_lora
from support.ranks import launch
from support.results import images, write_jsonl
from support.selection import rarely
from support.tiny_models import build

pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning"),
]

TOLERANCE = 2
"""Of 255."""
CLASSES = {
    "flux": ("FluxImg2ImgPipeline", "FluxInpaintPipeline"), "qwenimage": ("QwenImageImg2ImgPipeline", "QwenImageInpaintPipeline"),
    "zimage": ("ZImageImg2ImgPipeline", "ZImageInpaintPipeline"),
    "sd3": ("StableDiffusion3Img2ImgPipeline", "StableDiffusion3InpaintPipeline"),
    "sdxl": ("StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline"),
}  # fmt: skip
LORAS = ["one", "two:0.5", "", "one:0.7"]
GUIDANCE = {"flux": 3.5, "sd3": 7.0}


def plain(family: str, model: Path, loras: dict[str, Path]) -> list[np.ndarray]:
    import diffusers
    import torch

    made = []
    for name, is_masked in zip(CLASSES[family], (False, True)):
        pipeline = getattr(diffusers, name).from_pretrained(model)
        pipeline.set_progress_bar_config(disable=True)
        for adapter, file in loras.items():
            pipeline.load_lora_weights(str(file), weight_name=file.name, adapter_name=adapter)
        for n, cell in enumerate(LORAS):
            if cell:
                adapter, _, weight = cell.partition(":")
                pipeline.enable_lora()
                pipeline.set_adapters([adapter], [float(weight or 1)])
            else:
                pipeline.disable_lora()
            call: dict[str, Any] = {"image": picture(10 + n), "strength": 0.75, "num_inference_steps": 4}
            call |= {"mask_image": mask(n)} if is_masked else {}
            if family == "qwenimage":
                call |= {"true_cfg_scale": 4.0, "negative_prompt": "ugly"}
            else:
                call["guidance_scale"] = GUIDANCE.get(family, 5.0)
            if family != "sdxl" or is_masked:
                call |= {"height": SIDE, "width": SIDE}
            generator = torch.Generator().manual_seed(len(LORAS) * is_masked + n)
            output = pipeline(prompt=f"prompt {n}", generator=generator, output_type="np", **call)
            made.append(output.images[0])
    return made


@pytest.mark.parametrize("family", rarely(CLASSES, CLASSES))
def test_rows_with_images_and_loras_equal_peft(families: Path, tmp_path: Path, family: str) -> None:
    model = build(family, families / family)
    part = "unet" if family == "sdxl" else "transformer"
    loras = {
        name: fitting_lora(model, tmp_path / f"{name}.safetensors", seed=seed, parts=(part,))
        for seed, name in enumerate(("one", "two"))
    }
    save_images(tmp_path)
    rows: list[dict[str, Any]] = [
        {"prompt": f"prompt {n}", "image": f"i{n}.png", "lora": cell} | ({"mask": f"m{n}.png"} if is_masked else {})
        for is_masked in (False, True)
        for n, cell in enumerate(LORAS)
    ]
    command = [
        "t2i", "--model_name", model, "--prompts_file", write_jsonl(tmp_path / "t.jsonl", rows), "--num_inference_steps", "4",
        "--image_column", "image", "--mask_column", "mask", "--strength", "0.75", "--batch_size", "4", "--output_dir",
        tmp_path / "out", "--lora", *(f"{name}={file}" for name, file in loras.items()),
    ]  # fmt: skip
    command += ["--guidance_scale", "4", "--negative_prompt", "ugly"] * (family == "qwenimage")
    (case,) = launch(tmp_path, 1, [(command, {})])
    assert case.codes == [0], case.output
    made, expected = list(images(tmp_path / "out").values()), plain(family, model, loras)
    differences = [abs(image / 255 - wanted).max() for image, wanted in zip(made, expected, strict=True)]
    assert max(differences) <= (TOLERANCE + 0.5) / 255, differences
