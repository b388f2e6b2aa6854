"""--png_parameters: the settings as AUTOMATIC1111's reader, and so the viewers that copied it, takes them apart."""

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dglaunch.output.encode import encode
from dglaunch.output.parameters import parameters
from dglaunch.output.whole_file import whole_png
from support.commands import dglaunch
from support.edit_images import picture
from support.results import write_jsonl

PARAMETER = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
"""As modules/infotext_utils.py of AUTOMATIC1111 has it."""
DESCRIPTION: dict[str, Any] = {"prompt": "a fox", "seed": 1, "width": 512, "height": 256, "num_inference_steps": 20,
    "guidance_scale": 7.0, "model": "owner/name", "versions": {"dglaunch": "0.1.0"}}  # fmt: skip


def taken_apart(text: str) -> dict[str, str]:
    """What A1111's reader finds in it."""
    *lines, last = text.strip().split("\n")
    found = {"prompt": "", "negative": ""}
    part = "prompt"
    for line in lines:
        if line.startswith("Negative prompt:"):
            part, line = "negative", line.removeprefix("Negative prompt:")
        found[part] = f"{found[part]}\n{line.strip()}".strip()
    values = {name: json.loads(value) if value.startswith('"') else value for name, value in PARAMETER.findall(last)}
    return found | values


def shown_to_viewers(data: bytes) -> str:
    image = Image.open(io.BytesIO(data))
    if image.format == "PNG":
        return str(image.text["parameters"])  # type: ignore[attr-defined]
    comment = image.getexif().get_ifd(0x8769)[0x9286]
    assert comment.startswith(b"UNICODE\0")
    return str(comment[8:].decode("utf-16-be"))


def test_the_text_is_that_of_a1111() -> None:
    text = parameters(DESCRIPTION | {"negative_prompt": "blurry"}, "FlowMatchEulerDiscreteScheduler")
    assert text == (
        "a fox\nNegative prompt: blurry\n"
        "Steps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 512x256, Model: owner/name, Version: dglaunch 0.1.0"
    )


def test_what_would_end_a_value_is_quoted_and_what_is_not_known_left_out() -> None:
    odd = {"prompt": "a fox, red\nby night", "model": 'C:\\models, "new"', "num_inference_steps": None}
    found = taken_apart(parameters(DESCRIPTION | odd, "MyOwnScheduler"))
    assert (found["prompt"], found["negative"]) == ("a fox, red\nby night", "")
    assert (found["Model"], found["Sampler"], found["CFG scale"]) == ('C:\\models, "new"', "MyOwn", "7")
    assert "Steps" not in found and taken_apart(parameters(DESCRIPTION))["Sampler"] == "unknown"


@pytest.mark.parametrize("output_format", ["png", "jpg", "webp"])
@pytest.mark.parametrize("prompt", ["a fox", "ein Fuchs \u00fc \u72d0"])
def test_every_format_has_it_beside_ours(output_format: str, prompt: str) -> None:
    described = DESCRIPTION | {"prompt": prompt}
    text = parameters(described)
    assert shown_to_viewers(encode(picture(1), output_format, described, text)) == text
    if output_format == "png":
        sent = whole_png(encode(picture(1), "png", {}))
        assert sent is not None and shown_to_viewers(encode(sent, "png", described, text)) == text


def test_a_jpeg_without_room_for_both_keeps_ours() -> None:
    for length in (25_000, 70_000):
        described = DESCRIPTION | {"prompt": "x" * length}
        data = encode(picture(1), "jpg", described, parameters(described))
        exif = Image.open(io.BytesIO(data)).getexif()
        assert json.loads(exif[0x010E])["seed"] == 1 and 0x9286 not in exif.get_ifd(0x8769)


@pytest.mark.parametrize("output_format", ["png", "jpg", "webp"])
def test_replay_and_verify_read_ours_as_before(tmp_path: Path, output_format: str) -> None:
    table = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "a fox", "negative_prompt": "blurry", "guidance_scale": 2.5}])
    out, flags = tmp_path / "out", ["--backend", "fake", "--output_format", output_format, "--prompts_file", table]
    assert dglaunch("t2i", *flags, "--png_parameters", "--output_dir", out).code == 0
    found = taken_apart(shown_to_viewers((out / f"000000.{output_format}").read_bytes()))
    expected = {"prompt": "a fox", "negative": "blurry", "Steps": "1", "CFG scale": "2.5", "Seed": "0", "Model": "tiny"}
    assert {name: found[name] for name in expected} == expected and found["Version"].startswith("dglaunch ")
    assert dglaunch("verify", out).code == 0
    ended = dglaunch("replay", out / f"000000.{output_format}", "--output", tmp_path / f"again.{output_format}")
    assert ended.code == 0, ended.output
    again = dglaunch("t2i", *flags, "--output_dir", out)  # the flag is no part of the job
    assert again.code == 0 and "1 there before" in again.output


@pytest.mark.slow
def test_the_model_s_sampler_is_named(tmp_path: Path) -> None:
    assert dglaunch("t2i", "--prompt", "a red circle", "--png_parameters", "--output_dir", tmp_path / "out").code == 0
    found = taken_apart(shown_to_viewers((tmp_path / "out" / "000000.png").read_bytes()))
    assert found["Sampler"] == "Euler" and found["Size"] == "64x64" and int(found["Steps"]) > 1
