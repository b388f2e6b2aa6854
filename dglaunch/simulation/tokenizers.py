"""A tokenizer for a model whose own is not on this machine: how many tokens a text has is said from outside."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

CHARACTERS_A_TOKEN = 4
NO_LIMIT = 1 << 20
"""Tokens; transformers says a huge number where a tokenizer has no limit."""
TextTokens = int | Callable[[str], int]
"""Tokens of every text, or of the one that is asked about."""


@dataclass(frozen=True, slots=True)
class Vision:
    """How a text encoder sees images: those of the Qwen VL models, whose processors cut an image into patches and leave a token
    in the text for each square of merged ones."""

    image_token: int
    channels: int
    patch: int
    """Pixels."""
    merged: int
    """Patches on a side of the square that becomes one token."""
    frames: int
    """How often a single image is repeated, as if it were a video."""

    MARK = "<|image_pad|>"
    """Where an image stands in a text."""
    PIXELS = (3136, 12_845_056)
    """The least and most that an image keeps (preprocessor_config.json of Qwen/Qwen2.5-VL-7B-Instruct)."""

    @classmethod
    def of(cls, config: Any) -> "Vision | None":
        """How the encoder with a configuration of transformers sees; None: it does not, or in another way."""
        vision = getattr(config, "vision_config", None)
        if not hasattr(vision, "spatial_merge_size") or not hasattr(vision, "temporal_patch_size"):
            return None
        return cls(
            config.image_token_id,
            vision.in_channels,
            vision.patch_size,
            vision.spatial_merge_size,
            vision.temporal_patch_size,
        )

    def grid(self, image: Any) -> tuple[int, int, int]:
        """The patches of an image of PIL: in time, from top to bottom, from left to right."""
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

        least, most = self.PIXELS
        sides = smart_resize(image.height, image.width, self.patch * self.merged, least, most)
        return (1, sides[0] // self.patch, sides[1] // self.patch)

    def tokens(self, grid: tuple[int, int, int]) -> int:
        return grid[1] * grid[2] // self.merged**2

    def pixels(self, grids: Sequence[tuple[int, int, int]]) -> torch.Tensor:
        """Of all images together: patches x values of each."""
        patches = sum(rows * columns for _, rows, columns in grids)
        return torch.zeros(patches, self.channels * self.frames * self.patch**2)


class FixedTokenizer:
    """A fixed tokenizer makes as many tokens of a text as it was told, and pads as it is asked to; it takes the calls
    that diffusers' pipelines make of tokenizers and of the processors that read messages."""

    def __init__(
        self, num_tokens: TextTokens, model_max_length: int, has_positions: bool = False, vision: Vision | None = None
    ) -> None:
        """
        Args:
            num_tokens: of a text, without what a template adds.
            model_max_length: how many the model reads (CLIP: 77).
            has_positions: whether it numbers the tokens, too, as ChatGLM's does.
            vision: what it makes of images; each has the tokens of its patches beside those of the text.
        """
        self.vision = vision
        self.has_positions = has_positions
        self.num_tokens = num_tokens
        self.num_template_tokens = 0
        self.model_max_length = model_max_length
        self.tokenizer = self
        self.padding_side = "right"
        self.pad_token_id = self.eos_token_id = self.bos_token_id = 0
        self.added_tokens_encoder: dict[str, int] = {}
        self.pad_token = self.eos_token = self.bos_token = ""

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        *_texts: object,
        images: Any = None,
        padding: bool | str = False,
        max_length: int | None = None,
        truncation: bool | None = None,
        return_tensors: str | None = None,
        **_: object,
    ) -> Any:
        from transformers import BatchEncoding

        texts = [text or ""] if text is None or isinstance(text, str) else list(text)
        limit = min(max_length or NO_LIMIT, self.model_max_length)
        grids = self._grids(images)
        seen = self._seen(texts, grids)
        lengths = [self._length(each) + own for each, own in zip(texts, seen, strict=True)]
        if truncation or max_length is None:
            lengths = [min(length, limit) for length in lengths]
        width = limit if padding == "max_length" else max(lengths)
        ids = torch.ones(len(texts), width, dtype=torch.long)
        mask = torch.zeros(len(texts), width, dtype=torch.long)
        for row, (length, own) in enumerate(zip(lengths, seen, strict=True)):
            mask[row, :length] = 1
            if self.vision is not None:
                ids[row, self.num_template_tokens :][:own] = self.vision.image_token
        found: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        if self.has_positions:
            found["position_ids"] = torch.arange(width).expand(len(texts), width)
        if self.vision is not None and grids:
            found |= {"pixel_values": self.vision.pixels(grids), "image_grid_thw": torch.tensor(grids)}
        if return_tensors is None:
            one = text is None or isinstance(text, str)
            found = {name: value[0].tolist() if one else value.tolist() for name, value in found.items()}
        return BatchEncoding(found)

    def _grids(self, images: Any) -> list[tuple[int, int, int]]:
        if self.vision is None or images is None:
            return []
        return [self.vision.grid(each) for each in (images if isinstance(images, list | tuple) else [images])]

    def _seen(self, texts: Sequence[str], grids: Sequence[tuple[int, int, int]]) -> list[int]:
        """The tokens of each text's images, which stand one after another."""
        rest = iter(grids)
        return [
            sum(self.vision.tokens(each) for each in islice(rest, text.count(Vision.MARK))) if self.vision else 0
            for text in texts
        ]

    def _length(self, text: str) -> int:
        own = self.num_tokens(text) if callable(self.num_tokens) else self.num_tokens
        return own + self.num_template_tokens

    def apply_chat_template(
        self, messages: Sequence[object], *, tokenize: bool = True, return_dict: bool = False, **asked: Any
    ) -> Any:
        """One conversation, or a list of them, as the text of its last message."""
        several = bool(messages) and isinstance(messages[0], list | tuple)
        texts = [_last_text(each) for each in messages] if several else _last_text(messages)
        if not tokenize:
            return texts
        encoded = self(texts, **asked)
        return encoded if return_dict else encoded["input_ids"]

    def num_special_tokens_to_add(self) -> int:
        """None: how many tokens a text has was said with all of them."""
        return 0

    def tokenize(self, _text: str) -> list[str]:
        return []

    def encode(self, text: str, **_: object) -> list[int]:
        """About as many tokens as this very text has, with those at its ends."""
        return [1] * (len(text) // CHARACTERS_A_TOKEN + 2)

    def batch_decode(self, ids: Sequence[object], **_: object) -> list[str]:
        return ["" for _ in ids]


def _last_text(messages: Any) -> str:
    """A message's content is a text, or a list of parts of which one has it."""
    content = messages[-1]["content"] if messages else ""
    if isinstance(content, str):
        return content
    return next((part["text"] for part in content if "text" in part), "")
