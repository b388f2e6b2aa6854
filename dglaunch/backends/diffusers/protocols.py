"""What dglaunch calls on objects of diffusers, which has no types: pipelines, and the networks in them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, Self

import torch

if TYPE_CHECKING:
    from PIL.Image import Image

TextValue = torch.Tensor | Sequence[torch.Tensor] | None
"""One of the values that encode_prompt returns."""


class PipelineOutput(Protocol):
    """What a call of a pipeline returns."""

    @property
    def images(self) -> "torch.Tensor | Sequence[Image]": ...


class ImageProcessor(Protocol):
    """It brings input images to the size at which a pipeline encodes them."""

    resize: Callable[..., object]
    """Of one image; a list comes back as it is."""


class Pipeline(Protocol):
    """A loaded pipeline. What only some have (vae, transformer, text_encoder) is looked up with getattr."""

    encode_prompt: Callable[..., Sequence[TextValue]]
    prepare_latents: Callable[..., object]
    image_processor: ImageProcessor
    current_timestep: object

    @property
    def components(self) -> Mapping[str, object]: ...

    @classmethod
    def from_pretrained(cls, source: str, **arguments: object) -> Self: ...

    @classmethod
    def download(cls, source: str, **arguments: object) -> str: ...

    def __call__(self, *prompts: object, **arguments: object) -> PipelineOutput | None: ...

    def to(self, device: str) -> Self: ...

    def set_progress_bar_config(self, *, disable: bool) -> None: ...

    def enable_model_cpu_offload(self, *, device: str) -> None: ...


class Denoiser(Protocol):
    """The network of a pipeline that denoises: its transformer or U-Net. The methods are those of diffusers' ModelMixin
    and its mix-ins; one that a model does not have raises an AttributeError."""

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def is_cache_enabled(self) -> bool: ...

    def children(self) -> Iterator[torch.nn.Module]: ...

    def modules(self) -> Iterator[torch.nn.Module]: ...

    def named_modules(self) -> Iterator[tuple[str, torch.nn.Module]]: ...

    def parameters(self) -> Iterator[torch.nn.Parameter]: ...

    def compile(self) -> None: ...

    def compile_repeated_blocks(self, *, fullgraph: bool) -> None: ...

    def enable_cache(self, config: object) -> None: ...

    def enable_group_offload(
        self,
        *,
        onload_device: torch.device,
        offload_device: torch.device,
        offload_type: str,
        use_stream: bool,
        record_stream: bool,
    ) -> None: ...

    def enable_layerwise_casting(self, *, storage_dtype: torch.dtype, compute_dtype: torch.dtype) -> None: ...

    def fuse_qkv_projections(self) -> None: ...

    def set_attention_backend(self, name: str | None) -> None: ...


class PretrainedPart(Protocol):
    """A class of networks that are loaded from a subfolder of a checkpoint."""

    def from_pretrained(self, source: str, *, subfolder: str, **arguments: object) -> object: ...


def plain_pipeline(pipeline: Pipeline) -> Pipeline:
    """Return diffusers' own pipeline: xfuser's hold one, and pass on to it what they do not have."""
    plain: Pipeline = getattr(pipeline, "module", pipeline)
    return plain


def denoiser(pipeline: Pipeline) -> Denoiser | None:
    """Return the network that denoises, where it is a transformer or a U-Net."""
    found: Denoiser | None = getattr(pipeline, "transformer", None) or getattr(pipeline, "unet", None)
    return found
