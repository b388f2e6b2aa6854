"""A tokenizer for a model whose own is not on this machine: every text is so many tokens long."""

from collections.abc import Sequence
from typing import Any

import torch

CHARACTERS_A_TOKEN = 4
NO_LIMIT = 1 << 20
"""Tokens; transformers says a huge number where a tokenizer has no limit."""


class FixedTokenizer:
    """A fixed tokenizer makes the same number of tokens of every text, and pads as it is asked to; it takes the calls
    that diffusers' pipelines make of tokenizers and of the processors that read messages."""

    def __init__(self, num_tokens: int, model_max_length: int) -> None:
        """
        Args:
            num_tokens: of a text, its template included.
            model_max_length: how many the model reads (CLIP: 77).
        """
        self.num_tokens = num_tokens
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
        padding: bool | str = False,
        max_length: int | None = None,
        truncation: bool | None = None,
        **_: object,
    ) -> Any:
        from transformers import BatchEncoding

        rows = 1 if text is None or isinstance(text, str) else len(text)
        limit = min(max_length or NO_LIMIT, self.model_max_length)
        length = min(self.num_tokens, limit) if truncation or max_length is None else self.num_tokens
        width = limit if padding == "max_length" else length
        ids = torch.ones(rows, width, dtype=torch.long)
        mask = torch.zeros(rows, width, dtype=torch.long)
        mask[:, :length] = 1
        return BatchEncoding({"input_ids": ids, "attention_mask": mask})

    def apply_chat_template(
        self, messages: Sequence[object], *, tokenize: bool = True, return_dict: bool = False, **asked: Any
    ) -> Any:
        """One conversation, or a list of them."""
        several = bool(messages) and isinstance(messages[0], list | tuple)
        texts = ["" for _ in messages] if several else ""
        if not tokenize:
            return texts
        encoded = self(texts, **asked)
        return encoded if return_dict else encoded["input_ids"]

    def tokenize(self, _text: str) -> list[str]:
        return []

    def encode(self, text: str, **_: object) -> list[int]:
        """About as many tokens as this very text has, with those at its ends."""
        return [1] * (len(text) // CHARACTERS_A_TOKEN + 2)

    def batch_decode(self, ids: Sequence[object], **_: object) -> list[str]:
        return ["" for _ in ids]
