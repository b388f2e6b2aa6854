"""A tokenizer for a model whose own is not on this machine: how many tokens a text has is said from outside."""

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

import torch

from dglaunch.simulation.vision import IMAGE_MARK, Grid, Vision

CHARACTERS_A_TOKEN = 4
NO_LIMIT = 1 << 20
"""Tokens; transformers says a huge number where a tokenizer has no limit."""
MARK = re.compile(r"(<\|[^|]*\|>)")
"""A token of a template."""
TextTokens = int | Callable[[str], int]
"""Tokens of every text, or of the one that is asked about."""


class NotSimulatedError(AttributeError):
    """A pipeline asks for what only the checkpoint's own tokenizer can answer."""


class FixedTokenizer:
    """A fixed tokenizer makes as many tokens of a text as it was told, and pads as it is asked to; it takes the calls
    that diffusers' pipelines make of tokenizers and of the processors that read messages. Of a piece of text, which a pipeline
    asks for as a list to put it together itself and then pads (LongCat), it makes about as many as the piece has."""

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
        self.image_processor = self.vision = vision
        self.has_positions = has_positions
        self.num_tokens = num_tokens
        self.num_template_tokens = 0
        self.model_max_length = model_max_length
        self.tokenizer = self
        self.padding_side = "right"
        self.pad_token_id = self.eos_token_id = self.bos_token_id = 0
        self.added_tokens_encoder: dict[str, int] = {}
        self.pad_token = self.eos_token = self.bos_token = ""
        self._marks: dict[str, int] = {} if vision is None else {IMAGE_MARK: vision.image_token}

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        *_texts: object,
        images: Any = None,
        padding: bool | str = False,
        max_length: int | None = None,
        truncation: bool | None = None,
        return_tensors: str | None = None,
        add_special_tokens: bool = True,
        **_: object,
    ) -> Any:
        from transformers import BatchEncoding

        if isinstance(text, str) and return_tensors is None and not add_special_tokens:
            return BatchEncoding({"input_ids": self._piece(text)})
        texts = [text or ""] if text is None or isinstance(text, str) else list(text)
        limit = min(max_length or NO_LIMIT, self.model_max_length)
        if images is not None and self.vision is None:
            raise NotSimulatedError("a rehearsal does not know what this model's processor makes of an image")
        made = {} if self.vision is None or images is None else self.vision(images)
        seen = self._seen(texts, made["image_grid_thw"].tolist() if made else [])
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
        found: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, **made}
        if self.has_positions:
            found["position_ids"] = torch.arange(width).expand(len(texts), width)
        if return_tensors is None:
            one = text is None or isinstance(text, str)
            found = {name: value[0].tolist() if one else value.tolist() for name, value in found.items()}
        return BatchEncoding(found)

    def _seen(self, texts: Sequence[str], grids: Sequence[Grid]) -> list[int]:
        """How many tokens the images of each text are; all of them stand one after another."""
        rest = iter(grids)
        return [
            self.vision.num_tokens(list(islice(rest, text.count(IMAGE_MARK)))) if self.vision else 0 for text in texts
        ]

    def _piece(self, text: str) -> list[int]:
        """Of a text that a pipeline puts together itself: a token for each mark of a template, and about as many as it takes for
        what is between them."""
        ids: list[int] = []
        for part in filter(None, MARK.split(text)):
            is_mark = MARK.fullmatch(part) is not None
            ids += [self.convert_tokens_to_ids(part)] if is_mark else [1] * -(-len(part) // CHARACTERS_A_TOKEN)
        return ids

    def convert_tokens_to_ids(self, token: str) -> int:
        return self._marks.setdefault(token, len(self._marks) + 2)

    def pad(
        self, encoded: Mapping[str, Sequence[Sequence[int]]], *, max_length: int, return_tensors: str, **_: object
    ) -> Any:
        """Texts as tokens of one length, as a tensor; the longest one's where that is more."""
        from transformers import BatchEncoding

        rows = [torch.tensor(row, dtype=torch.long) for row in encoded["input_ids"]]
        width = max(max_length, *map(len, rows))
        ids, mask = (
            torch.stack([torch.nn.functional.pad(each, (0, width - len(each))) for each in given])
            for given in (rows, list(map(torch.ones_like, rows)))
        )
        return BatchEncoding({"input_ids": ids, "attention_mask": mask}, tensor_type=return_tensors)

    def _length(self, text: str) -> int:
        own = self.num_tokens(text) if callable(self.num_tokens) else self.num_tokens
        return own + self.num_template_tokens

    def __getattr__(self, name: str) -> Any:
        raise NotSimulatedError(f"a rehearsal has no tokenizer or processor that the pipeline could ask for {name!r}")

    def apply_chat_template(
        self, messages: Sequence[object], *, tokenize: bool = True, return_dict: bool = False, **asked: Any
    ) -> Any:
        """One conversation, or a list of them, as the text of its last message.

        Raises:
            NotSimulatedError: it is to lay out an image, too, as GLM-Image's does.
        """
        if "target_h" in asked:
            raise NotSimulatedError(
                "a language model draws the image's tokens first, one after another, which is not simulated"
            )
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
