"""In the place of a run's PipelineLoader: pipelines whose networks have their true size and no weights."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import diffusers
import torch

from dglaunch.backends.base import Context
from dglaunch.backends.diffusers.loading import PipelineLoader
from dglaunch.backends.diffusers.modular import without_parts
from dglaunch.backends.diffusers.protocols import Pipeline, PretrainedPart
from dglaunch.backends.diffusers.shards import Layout
from dglaunch.models.building import build
from dglaunch.models.components import PREPARING, Component, has_weights
from dglaunch.models.controlnet import controlnet_of
from dglaunch.simulation.meter import Meter
from dglaunch.simulation.networks import weightless
from dglaunch.simulation.tokenizers import NO_LIMIT, FixedTokenizer, TextTokens
from dglaunch.simulation.vision import Vision

CLIP_WINDOW = 77
"""Tokens, where a CLIP's configuration leaves it to the class."""
PROCESSORS = ("processor", "text_processor")
"""Of texts, and of the images that belong to them."""
Cut = Callable[[str, torch.nn.Module], None]
"""What is taken away of a network, by the name of its component."""


@dataclass(slots=True)
class Simulated:
    """How a simulated pipeline is built."""

    meter: Meter
    text_tokens: TextTokens
    """Of a prompt."""
    cut: Cut = lambda _name, _network: None
    own_tokenizers: bool = False
    """Whether the checkpoint's tokenizers are here and read the prompts, which then have the tokens that they have."""


class WeightlessLoader(PipelineLoader):
    """A weightless loader builds a pipeline from its configuration alone: it reads no weights and needs no network."""

    has_weights = False

    def __init__(self, context: Context, simulated: Simulated) -> None:
        super().__init__(context)
        self.simulated = simulated
        self.dtype: torch.dtype = getattr(torch, context.dtype)
        self.live_before_encoders: int | None = None
        """Bytes of the other networks when the text encoders came on their own; None: they did not."""

    def download(self) -> None:
        """There is nothing to fetch."""

    def load(self, pipeline_class: type[Pipeline] | None = None, **parts: object) -> Pipeline:
        if self.checkpoint.modular is not None:
            return self._of_blocks()
        others = {name: parts.pop(name) for name in list(parts) if name == "engine_config"}
        plain = self._pipeline({**self._left_out(), **parts})
        # A pipeline of xfuser wraps one of diffusers.
        return plain if pipeline_class is None else pipeline_class(plain, **others)  # type: ignore[call-arg]

    def load_transformer(self, part_class: PretrainedPart) -> object:
        component = self.checkpoint.components["transformer"]
        return self._network("transformer", partial(part_class.from_config, component.config))  # type: ignore[attr-defined]

    def load_controlnet(self) -> torch.nn.Module | None:
        component = controlnet_of(self.context.config.backend)
        return None if component is None else self._network("controlnet", partial(build, component))

    def outline(self) -> torch.nn.Module:
        return cast("torch.nn.Module", self._part(self.checkpoint.components["transformer"]))

    def leave_host(self) -> None:
        self.simulated.meter.restart()

    def fill(self, transformer: torch.nn.Module, layout: Layout) -> None:
        """There is nothing to read."""

    def load_text_encoders(self, pipeline: Pipeline) -> dict[str, torch.nn.Module]:
        components = self.checkpoint.components
        self.live_before_encoders = self.simulated.meter.live
        return {name: self._part(components[name]) for name in self.text_encoders() if name in components}

    def _pipeline(self, given: dict[str, Any]) -> Pipeline:
        """The checkpoint's pipeline of its parts; what has no configuration here is a tokenizer, or left out."""
        cls, components = self.pipeline_class, self.checkpoint.components
        parts: dict[str, Any] = dict(given)
        for name, parameter in inspect.signature(cls).parameters.items():
            if name in parts:
                continue
            if "tokenizer" in name or name in PROCESSORS:
                parts[name] = self._tokenizer(name)
            elif name in components:
                parts[name] = self._part(components[name])
            elif name in self.checkpoint.settings:
                parts[name] = self.checkpoint.settings[name]
            elif parameter.default is inspect.Parameter.empty:
                parts[name] = None
        pipeline: Any = cls(**parts)
        self._add_template(pipeline)
        return cast("Pipeline", pipeline)

    def _of_blocks(self) -> Pipeline:
        """A modular pipeline of its parts."""
        pipeline: Any = without_parts(self.pipeline_class, self.checkpoint, self.context.config.backend)
        for name, component in self.checkpoint.components.items():
            setattr(pipeline, name, self._tokenizer(name) if PREPARING.fullmatch(name) else self._part(component))
        return cast("Pipeline", pipeline)

    def _add_template(self, pipeline: Any) -> None:
        """The tokens of a template that the pipeline puts around a prompt, and drops once it is encoded."""
        dropped = getattr(pipeline, "prompt_template_encode_start_idx", 0)
        for name in ("tokenizer", "processor"):
            if isinstance(part := getattr(pipeline, name, None), FixedTokenizer):
                part.num_template_tokens += dropped

    def _part(self, component: Component) -> Any:
        if not has_weights(component.name):
            return getattr(diffusers, component.class_name).from_config(dict(component.config))
        return self._network(component.name, partial(build, component))

    def _network(self, name: str, make: Callable[[], torch.nn.Module]) -> torch.nn.Module:
        cut = partial(self.simulated.cut, name)
        return weightless(make, self.dtype, self.simulated.meter, cut)

    def _own(self, name: str) -> Any:
        """A tokenizer or processor of the checkpoint; these have no weights."""
        import transformers

        cls = getattr(transformers, self.checkpoint.components[name].class_name)
        revision = self.context.config.backend.revision
        return cls.from_pretrained(self.checkpoint.source, subfolder=name, revision=revision)

    def _tokenizer(self, name: str) -> Any:
        """The checkpoint's own, or one in its place: CLIP's windows are its model's; the others read what the pipeline
        asks them for."""
        if self.simulated.own_tokenizers and name in self.checkpoint.components:
            return self._own(name)
        encoder = self.checkpoint.components.get(
            "text_encoder" if name in PROCESSORS else name.replace("tokenizer", "text_encoder")
        )
        has_own = encoder is not None and "CLIP" in encoder.class_name
        window = encoder.config.get("max_position_embeddings", CLIP_WINDOW) if encoder is not None and has_own else None
        numbers = encoder is not None and encoder.class_name == "ChatGLMModel"
        limit = window if isinstance(window, int) else NO_LIMIT
        vision = None if encoder is None else _vision_of(encoder)
        return FixedTokenizer(self.simulated.text_tokens, limit, numbers, vision)


def _vision_of(encoder: Component) -> Vision | None:
    import transformers

    cls = getattr(transformers, encoder.class_name, None)
    return None if cls is None else Vision.of(cls.config_class.from_dict(dict(encoder.config)))
