"""What the server on loopback answers when a prompt asks for it by a marker such as `[draft]`; api_servers.py has the server.

`TWISTS` change an answer that has its images; `REPLIES` are answers of their own. Most exist in one of the two protocols only.
"""

import base64
import io
import json
from collections.abc import Callable
from typing import Any

from PIL import Image

Body = dict[str, Any]
DRAFT = (1, 2, 3)
"""The color of drafts and of images that nobody asked for."""


def painted(colour: tuple[int, ...], size: tuple[int, int] = (32, 32)) -> bytes:
    """A PNG of one color; with four numbers it is transparent."""
    buffer = io.BytesIO()
    Image.new("RGB" if len(colour) == 3 else "RGBA", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def parts_of(answer: Body) -> list[Body]:
    """The parts of a Gemini answer."""
    parts: list[Body] = answer["candidates"][0]["content"]["parts"]
    return parts


def _inline(data: bytes, kind: str = "image/png", **more: Any) -> Body:
    return {"inlineData": {"mimeType": kind, "data": encoded(data)}} | more


def _draft(answer: Body) -> None:
    """Thoughts in words and pictures before the image, and once more after it; words beside the image."""
    parts = parts_of(answer)
    thoughts = [{"text": "hm, a draft", "thought": True}, _inline(painted(DRAFT), thought=True)]
    parts[:] = [*thoughts, {"text": "Here it is: \x1b[31mred"}, _inline(painted(DRAFT)), *parts, *thoughts]


def _only_draft(answer: Body) -> None:
    parts_of(answer)[:] = [_inline(painted(DRAFT), thought=True)]
    answer["candidates"][0]["finishReason"] = "NO_IMAGE"


def _video(answer: Body) -> None:
    parts_of(answer)[:] = [_inline(b"a film", "video/mp4")]


def _finish(reason: str) -> Callable[[Body], None]:
    def twist(answer: Body) -> None:
        parts_of(answer)[:] = []
        answer["candidates"][0] |= {"finishReason": reason, "finishMessage": f"because of {reason.lower()}"}

    return twist


def _lines(answer: Body) -> None:
    for image in answer["data"]:
        text = image["b64_json"]
        image["b64_json"] = "\n".join(text[n : n + 76] for n in range(0, len(text), 76)) + "\r\n"


def _data_url(answer: Body) -> None:
    for image in answer["data"]:
        image["url"] = f"data:image/png;base64,{image.pop('b64_json')}"


def _rewritten(answer: Body) -> None:
    for image in answer["data"]:
        image["revised_prompt"] = "a better prompt"


def _one_only(answer: Body) -> None:
    del answer["data"][1:]


def _surplus(answer: Body) -> None:
    answer["data"].append({"b64_json": encoded(painted(DRAFT))})


def _nothing(answer: Body) -> None:
    answer["data"] = []


def _svg(answer: Body) -> None:
    for image in answer["data"]:
        image["b64_json"] = encoded(b"<svg xmlns='http://www.w3.org/2000/svg'/>")


def _transparent(answer: Body) -> None:
    for image in answer["data"]:
        image["b64_json"] = encoded(painted((200, 0, 0, 0)))


def compressed(kind: str, quality: int = 30) -> bytes:
    """A picture as an API compresses it."""
    buffer = io.BytesIO()
    Image.radial_gradient("L").convert("RGB").save(buffer, kind, quality=quality)
    return buffer.getvalue()


def _in(kind: str) -> Callable[[Body], None]:
    def twist(answer: Body) -> None:
        for image in answer["data"]:
            image["b64_json"] = encoded(compressed(kind))

    return twist


TWISTS: dict[str, Callable[[Body], None]] = {
    "draft": _draft, "only draft": _only_draft, "video": _video, "lines": _lines, "data url": _data_url,
    "rewritten": _rewritten, "one only": _one_only, "surplus": _surplus, "nothing": _nothing, "svg": _svg,
    "transparent": _transparent, "language": _finish("LANGUAGE"), "escalation": _finish("ESCALATION"),
    "limited": _finish("PUP_LIMITED_DISABLED"), "jpeg": _in("JPEG"), "webp": _in("WEBP"),
}  # fmt: skip
"""By marker: they change the answer in its place."""

_DETAIL = {"detail": [{"loc": ["body", "num_inference_steps"], "msg": "should be at most 200", "type": "x"}]}
_ERROR = {"error": {"message": "the scheduler has no free slot", "code": 503, "type": "x"}}
_TOLD = {
    "error": {"message": "the image is too wide for this checkpoint", "code": 400, "type": "x", "status": "INVALID"}
}
_NEVER = {"error": {"message": "Quota exceeded, limit: 0, model: x", "code": 429, "status": "RESOURCE_EXHAUSTED"}}
REPLIES: dict[str, tuple[int, bytes, str, dict[str, str]]] = {
    "detail": (422, json.dumps(_DETAIL).encode(), "application/json", {}),
    "told": (422, json.dumps({"detail": "prompt is too long"}).encode(), "application/json", {}),
    "plain": (400, b"Bad prompt: no such word", "text/plain", {}),
    "busy as 200": (200, json.dumps(_ERROR).encode(), "application/json", {}),
    "refused as 200": (200, json.dumps(_TOLD).encode(), "application/json", {}),
    "limit 0": (429, json.dumps(_NEVER).encode(), "application/json", {}),
    "wait ms": (429, json.dumps(_ERROR).encode(), "application/json", {"retry-after-ms": "200", "Retry-After": "60"}),
    "not again": (500, json.dumps(_TOLD).encode(), "application/json", {"x-should-retry": "false"}),
    "again": (400, json.dumps(_TOLD).encode(), "application/json", {"x-should-retry": "true"}),
}
"""By marker: status, body, media type, headers."""
