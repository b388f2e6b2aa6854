"""The settings of an image as AUTOMATIC1111 writes them (--png_parameters): usual viewers, galleries and ComfyUI show them.

    a red fox
    Negative prompt: blurry
    Steps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 512x512, Model: name, Version: dglaunch 0.1.0

It stands beside what dglaunch itself writes, which is exact, and which alone `replay` and `verify` read.
"""

import json

from dglaunch import strict_json
from dglaunch.data.task import Record

CHUNK = "parameters"
"""Of a PNG. In JPEG and WebP the text is EXIF's UserComment."""
COMMENT_START = b"UNICODE\0"
"""How EXIF says that a comment is UTF-16."""
SAMPLERS = {
    "DDIM": "DDIM",
    "DPMSolverMultistep": "DPM++ 2M",
    "DPMSolverSDE": "DPM++ SDE",
    "EulerAncestralDiscrete": "Euler a",
    "EulerDiscrete": "Euler",
    "FlowMatchEulerDiscrete": "Euler",
    "HeunDiscrete": "Heun",
    "KDPM2AncestralDiscrete": "DPM2 a",
    "KDPM2Discrete": "DPM2",
    "LCM": "LCM",
    "LMSDiscrete": "LMS",
    "PNDM": "PLMS",
    "UniPCMultistep": "UniPC",
}
"""What viewers call diffusers' schedulers; another one keeps its own name."""
UNKNOWN = "unknown"
"""Of an API; some readers take a text without a sampler for none of A1111's."""


def parameters(description: Record, scheduler: str = "") -> str:
    """Return the text for an image.

    Args:
        description: what the image's file says of itself.
        scheduler: the class of the pipeline's scheduler; "" where none is known.
    """
    scheduler = scheduler.removesuffix("Scheduler")
    versions = description.get("versions")
    shown = {
        "Steps": description.get("num_inference_steps"),
        "Sampler": SAMPLERS.get(scheduler, scheduler) or UNKNOWN,
        "CFG scale": description.get("guidance_scale"),
        "Seed": description.get("seed"),
        "Size": f"{description.get('width')}x{description.get('height')}",
        "Model": description.get("model"),
        "Lora": description.get("lora") or None,
        "Version": f"dglaunch {versions['dglaunch']}" if isinstance(versions, dict) else "dglaunch",
    }
    settings = ", ".join(f"{name}: {_quoted(value)}" for name, value in shown.items() if value is not None)
    negative = description.get("negative_prompt")
    lines = [
        str(description.get("rewritten_prompt", description.get("prompt", ""))),
        *([f"Negative prompt: {negative}"] if negative else []),
        settings,
    ]
    return strict_json.whole_characters("\n".join(lines))


def as_comment(text: str) -> bytes:
    """Return a text as EXIF's UserComment has it."""
    return COMMENT_START + text.encode("utf-16-be")


def _quoted(value: object) -> str:
    """A value as A1111 writes it: in quotes where it has what would end it."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ",\n:") else text
