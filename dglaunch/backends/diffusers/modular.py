"""Modular pipelines of diffusers: how they are loaded, part by part, and called.

Their load_components only warns of a part that it cannot load, and their call of an argument that no block has: here both are
errors.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from PIL.Image import Image

from dglaunch.backends.diffusers.engine import Call, DiffusersEngine
from dglaunch.backends.diffusers.loading import PipelineLoader, explained
from dglaunch.backends.diffusers.protocols import Pipeline
from dglaunch.config import BackendConfig
from dglaunch.data.task import Batch
from dglaunch.errors import UserError
from dglaunch.models.checkpoint import Checkpoint
from dglaunch.models.modular import GUIDER, Modular

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.msgpack", "*.h5")
"""Weights that are not fetched unless --allow_pickle asks for them."""


@dataclass(frozen=True, slots=True)
class Made:
    """What a call made, as other pipelines return it."""

    images: torch.Tensor | list[Image]


class ModularEngine(DiffusersEngine):
    """The engine of modular pipelines: each rank computes whole images."""

    def prepare(self, pipeline: Pipeline, batch: Batch, arguments: dict[str, object]) -> Call:
        modular = _modular(self.context.checkpoint.modular)
        assert arguments.keys() <= modular.takes.keys(), "a modular pipeline would pass over the others without a word"
        if GUIDER in arguments:
            guider = cast("Any", pipeline).guider.new(guidance_scale=arguments.pop(GUIDER))
            cast("Any", pipeline).update_components(**{GUIDER: guider})
        return partial(_images, pipeline, arguments)


class ModularLoader(PipelineLoader):
    """A loader of modular pipelines; their prompts are encoded in each call."""

    def download(self) -> None:
        """Fetch what lies on the hub, which may be a part of a local checkpoint, with the first rank of each node."""
        self.context.channel.together(self._download)

    def load(self, pipeline_class: type[Pipeline] | None = None, **parts: object) -> Pipeline:
        pipeline = self._without_parts()
        loaded = {spec.name: self._load_part(spec) for spec in self._specs(pipeline)}
        pipeline.update_components(**loaded)
        self._count_quantized(loaded)
        return cast("Pipeline", pipeline)

    def _without_parts(self) -> Any:
        with explained(self.context):
            return without_parts(self.pipeline_class, self.checkpoint, self.context.config.backend)

    def _specs(self, pipeline: Any) -> list[Any]:
        """What diffusers says of the parts that lie somewhere."""
        specs = map(pipeline.get_component_spec, pipeline.pretrained_component_names)
        return [spec for spec in specs if spec.pretrained_model_name_or_path]

    def _load_part(self, spec: Any) -> object:
        """Load one part from where the index says.

        Raises:
            UserError: it cannot be read.
        """
        config, source = self.context.config.backend, spec.pretrained_model_name_or_path
        given: dict[str, object] = {"torch_dtype": getattr(torch, self.context.dtype)}
        if spec.type_hint is None or issubclass(spec.type_hint, torch.nn.Module):
            given["use_safetensors"] = None if config.allow_pickle else True
        if source == self.checkpoint.source and config.trust_remote_code:
            given["trust_remote_code"] = True
        try:
            return spec.load(pretrained_model_name_or_path=self._folder_of(spec), revision=None, **given)
        except (ValueError, OSError, ImportError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"The {spec.name} of {self.checkpoint.source} cannot be loaded from {source}: {reason} If files are missing, "
                "download them again; if its weights are pickles (.bin) and you trust them, add --allow_pickle; if it comes with "
                "code of its own and you trust that, --trust_remote_code."
            ) from None

    def _folder_of(self, spec: Any, fetch: bool = False) -> str:
        """The folder on this machine that a part's folder lies in.

        Args:
            fetch: what is not here yet.
        """
        from huggingface_hub import snapshot_download

        source, config = str(spec.pretrained_model_name_or_path), self.context.config.backend
        if Path(source).is_dir():
            return source
        revision = spec.revision or (config.revision if source == self.checkpoint.source else None)
        return str(
            snapshot_download(
                source, revision=revision, local_files_only=not fetch,
                allow_patterns=[f"{spec.subfolder}/*"] if spec.subfolder else None,
                ignore_patterns=None if config.allow_pickle else list(PICKLES),
            )
        )  # fmt: skip

    def _fetched(self) -> str:
        """Fetch the folder of each part."""
        specs = self._specs(self._without_parts())
        with explained(self.context):
            for spec in specs:
                self._folder_of(spec, fetch=True)
        return self.checkpoint.source


def without_parts(pipeline_class: Any, checkpoint: Checkpoint, config: BackendConfig) -> Any:
    """Return a modular pipeline that has those parts alone that are in no file, such as its image processor."""
    blocks = _modular(checkpoint.modular).blocks()
    return pipeline_class(blocks=blocks, pretrained_model_name_or_path=checkpoint.source, revision=config.revision)


def _modular(known: Modular | None) -> Modular:
    assert known is not None, "planning has read its blocks"
    return known


def _images(pipeline: Any, arguments: Mapping[str, object]) -> Made:
    return Made(pipeline(output="images", **arguments))
