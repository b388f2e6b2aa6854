"""In the place of a pipeline's encode_prompt(): answers from embeddings that are known, and learns what is asked for.

prompts = PromptInterception(pipeline, family.text_outputs, encoders, cache)
prompts.run_to_latents(partial(pipeline, prompt=["a cat"]))   # encodes what this call asks for, and stops there
pipeline(prompt=["a cat"])                                    # its embedding comes from the host's memory
"""

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import torch

from dglaunch.backends.diffusers.embedding_cache import EmbeddingCache
from dglaunch.backends.diffusers.loras import NO_PIPELINE_LORAS, Combination, PipelineLoras
from dglaunch.backends.diffusers.prompt_tensors import Embedding, join, split
from dglaunch.backends.diffusers.protocols import Pipeline, TextValue
from dglaunch.backends.diffusers.text_encoders import TextEncoders
from dglaunch.data.task import LORA, Task
from dglaunch.models.families import TextOutput

CHUNK = 8
"""Prompts in one forward pass of the text encoders. A smaller chunk is filled up with its last prompt: so every prompt
meets kernels of one shape, and its embedding does not depend on how many others there are to encode."""
PER_PROMPT = frozenset(f"{sign}prompt{number}" for sign in ("", "negative_") for number in ("", "_2", "_3", "_4"))
"""Arguments of encode_prompt that hold a text for each image."""


class ReachedLatents(Exception):
    """The pipeline has encoded its prompts and goes on to the latents."""


class PromptInterception:
    """An interception takes the place of a pipeline's encode_prompt: a prompt that is known is not encoded again."""

    def __init__(
        self,
        pipeline: Pipeline,
        outputs: Sequence[TextOutput],
        encoders: TextEncoders,
        cache: EmbeddingCache | None = None,
        loras: PipelineLoras = NO_PIPELINE_LORAS,
    ) -> None:
        """
        Args:
            outputs: what each of the values of encode_prompt is.
            loras: they may have a part for the text encoders.
        """
        self.loras = loras
        self.variants: list[Combination] = []
        """Of the LoRAs of each row of the coming call, those that change its embedding."""
        self.pipeline, self.outputs, self.encoders, self.cache = pipeline, outputs, encoders, cache
        self.encode_prompt = pipeline.encode_prompt
        """The pipeline's own."""
        self.signature = inspect.signature(self.encode_prompt)
        self.known: dict[str, Embedding | str] = {}
        """By the digest of all that a prompt's embedding depends on; a str is the error that it ends in."""
        self.fresh: dict[str, Embedding | str] = {}
        """Of what is known, that which the other ranks of the replica do not have yet."""
        self.asked: list[str] = []
        """What the pipeline's call under way wanted to know that was not known."""
        self.num_cached = 0
        pipeline.encode_prompt = self

    def expect(self, tasks: Sequence[Task]) -> None:
        """Note which images the next call is for."""
        self.variants = [self.loras.encoder_part(task) for task in tasks]

    def run_to_latents(self, call: Callable[[], object]) -> None:
        """Run a call of the pipeline up to prepare_latents(): the first thing that every pipeline does after its last
        encode_prompt()."""
        self.asked = []
        self.pipeline.prepare_latents = _stop
        try:
            with suppress(ReachedLatents):
                call()
        finally:
            del self.pipeline.prepare_latents

    def learn_failure(self, message: str) -> None:
        """Keep why the last call's prompts cannot be encoded, for the image that asks for them."""
        self._learn({key: message for key in self.asked if key not in self.known})

    def __call__(self, *args: object, **kwargs: object) -> tuple[TextValue, ...]:
        """Return encode_prompt's values; what is not known is encoded now."""
        arguments = self.signature.bind(*args, **kwargs).arguments
        rows, others = _rows(arguments)
        variants = self._variants_of(len(rows))
        rows = [row | ({LORA: self.loras.encoder_key(uses)} if uses else {}) for row, uses in zip(rows, variants)]
        keys = [hashlib.sha256(json.dumps(row | others, sort_keys=True).encode()).hexdigest() for row in rows]
        missing = {key: row for key, row in zip(keys, rows) if key not in self.known}
        variant_of = dict(zip(keys, variants))
        self.asked += missing
        if missing and self.cache is not None:
            found = self.cache.read(missing, len(self.outputs))
            self.num_cached += len(found)
            self._learn(found)
            missing = {key: row for key, row in missing.items() if key not in found}
        for uses in dict.fromkeys(variant_of[key] for key in missing):
            self._encode_missing({key: row for key, row in missing.items() if variant_of[key] == uses}, arguments, uses)
        return join(self.outputs, [self._embedding(key) for key in keys], self.encoders.device)

    def _embedding(self, key: str) -> Embedding:
        found = self.known[key]
        if isinstance(found, str):
            raise RuntimeError(f"the prompt could not be encoded: {found}")
        return found

    def _variants_of(self, num_rows: int) -> list[Combination]:
        """For each row of the call under way. Without any there is nothing to tell apart, however many rows a pipeline makes."""
        if not any(self.variants):
            return [()] * num_rows
        if len(self.variants) != num_rows:
            raise ValueError(
                f"{num_rows} prompts are encoded for {len(self.variants)} images, so that their LoRAs are unclear"
            )
        return self.variants

    def _encode_missing(
        self, missing: Mapping[str, dict[str, object]], arguments: Mapping[str, object], uses: Combination
    ) -> None:
        """Let the pipeline's own method encode these texts (a row of its arguments for each), with LoRAs that are the same
        for all of them."""
        self.encoders.attach()
        self.loras.use_in_encoders(self.encoders.modules, uses)
        rows = list(missing.values())
        rows += [rows[-1]] * (CHUNK - len(rows))
        texts = {name: [row[name] for row in rows] for name in rows[0] if name != LORA}
        values = self.encode_prompt(**{**arguments, **texts, "device": torch.device(self.encoders.device)})
        embeddings = dict(zip(missing, split(self.outputs, values)))
        self._learn(embeddings)
        if self.cache is not None:
            self.cache.write(embeddings)

    def _learn(self, embeddings: Mapping[str, Embedding | str]) -> None:
        self.known |= embeddings
        self.fresh |= embeddings


def _stop(*_args: object, **_kwargs: object) -> None:
    raise ReachedLatents


def _rows(arguments: Mapping[str, object]) -> tuple[list[dict[str, object]], dict[str, object]]:
    """Cut encode_prompt's arguments to one prompt each: the texts of each prompt, and what else its embedding depends
    on."""
    given = {name: value for name, value in arguments.items() if value is not None}
    texts = {name: _as_list(value) for name, value in given.items() if name in PER_PROMPT}
    count = max(map(len, texts.values()))
    texts = {name: each * count if len(each) == 1 else each for name, each in texts.items()}
    others = {name: value for name, value in given.items() if name not in texts and name not in ("device", "dtype")}
    return [{name: each[n] for name, each in texts.items()} for n in range(count)], others


def _as_list(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else [value]
