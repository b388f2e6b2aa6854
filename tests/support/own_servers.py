"""Routes of the servers that people run themselves, as their public sources define them; api_servers.py has the server.

What is drawn follows from the request alone, so that two servers draw the same, and a field that is not sent shows. Sources:
vllm-omni `entrypoints/openai/protocol/images.py` (0.30), sglang `multimodal_gen/runtime/entrypoints/openai/image_api.py`
and `protocol.py` (0.5.23), LocalAI's OpenAI routes.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """How one kind of server takes a request and answers it."""

    size: str
    """Where none is given."""
    address: str = ""
    """Of an image: `relative` or `absolute` where no base64 is asked for; "" if it has none."""
    seed: int | None = None
    """Without one; None: it draws by chance."""
    takes_seed_list: bool = False
    max_steps: int = 10_000
    repeats_prompt: bool = False
    """It says the prompt again as the rewritten one."""


STYLES = {
    "vllm-omni": Style(size="64x64", max_steps=200),
    "sglang": Style(size="64x64", address="relative", seed=42, takes_seed_list=True, repeats_prompt=True),
    "localai": Style(size="48x48", address="absolute"),
}
DRAWN_FROM = (
    "prompt", "negative_prompt", "size", "num_inference_steps", "step", "guidance_scale", "true_cfg_scale", "scheduler",
)  # fmt: skip
"""The fields from which an image follows, besides its seed."""


def colours(style: Style, sent: Mapping[str, Any], images: Sequence[bytes]) -> list[tuple[int, int, int]]:
    """The color of each image that a request asks for."""
    count, seed = int(sent.get("n") or 1), sent.get("seed", style.seed)
    seeds = seed if isinstance(seed, list) else [None if seed is None else int(seed) + n for n in range(count)]
    return [colour(sent, images, one) for one in seeds]


def colour(sent: Mapping[str, Any], images: Sequence[bytes], seed: int | None) -> tuple[int, int, int]:
    fields = {name: str(sent[name]) for name in DRAWN_FROM if sent.get(name) is not None}
    text = json.dumps([fields, seed, [hashlib.sha256(image).hexdigest() for image in images]])
    red, green, blue = hashlib.sha256(text.encode()).digest()[:3]
    return red, green, blue


def problem_with(style: Style, sent: Mapping[str, Any], models: Sequence[str]) -> tuple[int, dict[str, Any]] | None:
    """Status and body of a request that the server does not take."""
    if sent.get("model") not in models:
        return 404, {"error": {"message": f"The model `{sent.get('model')}` does not exist.", "code": 404}}
    if not style.address and sent.get("response_format") == "url":
        return 422, {"detail": [{"loc": ["body", "response_format"], "msg": "Only 'b64_json' is supported"}]}
    if isinstance(sent.get("seed"), list) and not style.takes_seed_list:
        return 422, {"detail": [{"loc": ["body", "seed"], "msg": "Input should be a valid integer"}]}
    if int(sent.get("num_inference_steps") or 1) > style.max_steps:
        return 422, {"detail": [{"loc": ["body", "num_inference_steps"], "msg": "should be less than or equal to 200"}]}
    return None
