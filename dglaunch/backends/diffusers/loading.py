"""A checkpoint to a pipeline in the host's memory: only safetensors and no remote code, unless a flag asks."""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch

from dglaunch.backends.base import Context
from dglaunch.backends.diffusers import arguments, optimizations
from dglaunch.backends.diffusers.idle import without_parameter
from dglaunch.backends.diffusers.loras import PipelineLoras
from dglaunch.backends.diffusers.protocols import ImageProcessor, Pipeline, PretrainedPart
from dglaunch.backends.diffusers.schedulers import make_scheduler
from dglaunch.backends.diffusers.shards import Layout, fill, outline
from dglaunch.backends.diffusers.stages import trace_shapes
from dglaunch.backends.diffusers.weight_files import count_quantized, load_part
from dglaunch.backends.registry import imported
from dglaunch.config import BackendConfig, EditingConfig
from dglaunch.data.shares import settings_of
from dglaunch.errors import UserError
from dglaunch.files import at_home
from dglaunch.models.checkpoint import Checkpoint
from dglaunch.models.editing import EditRules
from dglaunch.models.folder import weights_of
from dglaunch.models.own_pipeline import OwnPipeline
from dglaunch.models.schedulers import chosen
from dglaunch.models.staging import Staging


class PipelineLoader:
    """A loader reads a checkpoint's pipeline, and its text encoders apart from it where they come and go before the
    pipeline moves to its device."""

    has_weights = True
    """Whether what it loads draws images, and not only their shapes."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.checkpoint = context.checkpoint
        self.edit_rules: EditRules | None = context.checkpoint.family.edit if context.config.edits else None
        """The family's, for input images; None where the run draws from text alone."""
        self.told: dict[str, str] = {}
        """By part, what was loaded from elsewhere than the checkpoint."""
        self.loras = PipelineLoras(context.checkpoint.loras, context.checkpoint.family.lora)
        self.events: list[str] = []
        """What the report should say of the loading."""

    def check(self) -> None:
        """Refuse a pipeline that diffusers does not have, and values for which its call has no parameter, as far as that was
        not known before.

        Raises:
            UserError: with what to do instead.
        """
        import diffusers

        if self.pipeline_class is diffusers.DiffusionPipeline:
            return
        takes = arguments.call_parameters(self.pipeline_class)
        if self.checkpoint.own is not None:
            arguments.check_own(self.checkpoint.own, takes)
        if self.loras.files and not hasattr(self.pipeline_class, "lora_state_dict"):
            raise UserError(
                f"--lora: diffusers {diffusers.__version__} loads no LoRA into {self.pipeline_class.__name__}. Drop the flag, or fuse "
                "it into the checkpoint with the tool that trained it."
            )
        if self.checkpoint.takes is None:
            for idle in without_parameter(
                self.checkpoint, self.context.config, settings_of(self.context.batches), takes
            ):
                raise UserError(idle.mistake)

    def call_parameters(self, pipeline: Pipeline) -> Mapping[str, inspect.Parameter]:
        """Return the arguments of a loaded pipeline's call: of a modular one, what its blocks declare."""
        if self.checkpoint.modular is not None:
            return arguments.declared(self.checkpoint.modular.takes)
        if self.checkpoint.own is not None:
            return arguments.call_parameters(type(pipeline))
        return inspect.signature(pipeline.__call__).parameters

    def download(self) -> None:
        """Fetch a checkpoint from the hub with the first rank of each node; the others then find it in the cache."""
        if not self.checkpoint.local:
            self.context.channel.together(self._download)
        if (stage_to := self.context.config.backend.stage_to) is not None:
            self.checkpoint = self.context.channel.together(lambda: self._staged(at_home(stage_to)))

    def load(self, pipeline_class: type[Pipeline] | None = None, **parts: object) -> Pipeline:
        """Load the pipeline into the host's memory, without the text encoders if prompts are encoded ahead.

        Args:
            pipeline_class: instead of the checkpoint's own.
            parts: what from_pretrained need not load.
        """
        given = self._from_pretrained_arguments() | self._left_out() | self._scheduler() | parts
        if "transformer" not in parts:
            given |= self._quantization_arguments()
        given |= self._from_files(self.checkpoint.weight_files.keys() - given.keys())
        with explained(self.context):
            pipeline = (pipeline_class or self._loading_class).from_pretrained(self.checkpoint.source, **given)
            self._count_quantized(
                pipeline.components
            )  # which fails where a class of the user's own has not registered its parts
            return pipeline

    def load_transformer(self, part_class: PretrainedPart) -> object:
        """Load the transformer alone, as another class than the checkpoint's own."""
        if "transformer" in self.checkpoint.weight_files:
            return self._from_files(["transformer"], part_class)["transformer"]
        given = self._from_pretrained_arguments()
        del given["trust_remote_code"]
        quantization = optimizations.quantization_config(self.context.config.optimization, self.context.dtype)
        with explained(self.context):
            return part_class.from_pretrained(
                self.checkpoint.source, subfolder="transformer", quantization_config=quantization, **given
            )

    def load_text_encoders(self, pipeline: Pipeline) -> dict[str, torch.nn.Module]:
        """Load the text encoders alone, by name, for a pipeline that was loaded without them."""
        others: dict[str, object] = dict.fromkeys(
            name for name in ("transformer", "unet", "vae") if hasattr(pipeline, name)
        )
        others |= self._from_files(set(self.text_encoders()) & self.checkpoint.weight_files.keys())
        with explained(self.context):
            holder = self.pipeline_class.from_pretrained(
                self.checkpoint.source, **self._from_pretrained_arguments(), **others
            )
        if self.context.config.debug:
            trace_shapes(holder)
        found = {name: getattr(holder, name) for name in self.text_encoders()}
        encoders = {name: encoder for name, encoder in found.items() if encoder is not None}
        self._count_quantized(encoders)
        self.loras.attach_encoders(holder, encoders)
        return encoders

    def load_controlnet(self) -> torch.nn.Module | None:
        """Load what --controlnet names into the host's memory; None where it names nothing.

        Raises:
            UserError: it cannot be read.
        """
        import diffusers

        config = self.context.config.backend
        if config.controlnet is None:
            return None
        controlnet_class = getattr(diffusers, self.checkpoint.family.controlnet_class)
        safe = None if config.allow_pickle else True
        try:
            found: torch.nn.Module = controlnet_class.from_pretrained(
                config.controlnet, torch_dtype=getattr(torch, self.context.dtype), use_safetensors=safe
            )
        except (OSError, ValueError, RuntimeError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"--controlnet {config.controlnet} cannot be loaded as {self.checkpoint.family.controlnet_class}: {reason} If "
                "files are missing, download it again; if its weights are pickles (.bin) and you trust them, add "
                "--allow_pickle."
            ) from None
        return found

    def outline(self) -> torch.nn.Module:
        """Return the transformer without memory for its weights."""
        return outline(self.checkpoint.components["transformer"], getattr(torch, self.context.dtype))

    def leave_host(self) -> None:
        """Called once networks that were whole in the host's memory are shared: a rehearsal counts the device's alone."""

    def fill(self, transformer: torch.nn.Module, layout: Layout) -> None:
        """Read this rank's part of the transformer's weights from the checkpoint's files."""
        folder = Path(self.checkpoint.source if self.checkpoint.local else self._fetched())
        fill(transformer, layout, weights_of(folder, "transformer"), self.context.torch_device)

    @property
    def encodes_ahead(self) -> bool:
        """Whether the prompts are encoded before the first batch."""
        return self.checkpoint.encodes_ahead(self.context.config.optimization.encode)

    @cached_property
    def pipeline_class(self) -> type[Pipeline]:
        """diffusers' class of the pipeline; DiffusionPipeline where the class comes with the checkpoint.

        Raises:
            UserError: diffusers does not have it.
        """
        import diffusers

        if self.checkpoint.own is not None:
            with explained(self.context):
                return own_class(self.checkpoint.own, self.checkpoint, self.context.config.backend)
        name = self.checkpoint.pipeline_class
        found: type[Pipeline] | None = getattr(diffusers, name, None)
        if found is None and not self.context.config.backend.trust_remote_code:
            raise UserError(
                f"The checkpoint names the pipeline {name}, which diffusers {diffusers.__version__} does not have. Update it "
                "(pip install -U diffusers), or, if you trust the code that comes with the checkpoint, add --trust_remote_code."
            )
        default: type[Pipeline] = diffusers.DiffusionPipeline
        return found if found is not None else default

    @property
    def _loading_class(self) -> type[Pipeline]:
        """An editing pipeline by its own name: --model_type may load it from a checkpoint that names another."""
        from diffusers import DiffusionPipeline

        default: type[Pipeline] = DiffusionPipeline
        own = self.checkpoint.own
        if own is not None:
            return default if own.in_checkpoint else self.pipeline_class
        return default if self.edit_rules is None else self.pipeline_class

    def _download(self) -> None:
        if self.context.topology.local_rank == 0:
            self._fetched()

    def _fetched(self) -> str:
        """The folder of the hub's cache that has the checkpoint, once it is there."""
        with explained(self.context):
            given = self._from_pretrained_arguments() | dict.fromkeys(self.checkpoint.weight_files)
            return self._loading_class.download(self.checkpoint.source, **given)

    def _staged(self, to: Path) -> Checkpoint:
        """The checkpoint as this node's own copy, which the node's first rank makes."""
        staging = Staging(self.checkpoint.folder, to)
        if self.context.topology.local_rank == 0:
            self.events.append(f"--stage_to: {staging.folder}: {staging.make()}")
        return replace(self.checkpoint, source=str(staging.folder), local=True)

    def _from_pretrained_arguments(self) -> dict[str, object]:
        backend = self.context.config.backend
        return {
            "torch_dtype": getattr(torch, self.context.dtype),
            "use_safetensors": None if backend.allow_pickle else True,
            "trust_remote_code": backend.trust_remote_code,
            "revision": backend.revision,
        }

    def _quantization_arguments(self) -> dict[str, object]:
        """For a pipeline's from_pretrained: its transformer (or U-Net) is quantized as it is read."""
        wanted = optimizations.quantization_config(self.context.config.optimization, self.context.dtype)
        if wanted is None:
            return {}
        from diffusers import PipelineQuantizationConfig

        names = ("transformer", "unet")
        return {"quantization_config": PipelineQuantizationConfig(quant_mapping=dict.fromkeys(names, wanted))}

    def _count_quantized(self, parts: Mapping[str, object]) -> None:
        """Note of the parts that the checkpoint's own folder has quantised how much of them is.

        Raises:
            UserError: nothing is.
        """
        for name, part in parts.items():
            if not isinstance(part, torch.nn.Module) or name in self.checkpoint.weight_files:
                continue
            if (method := self.checkpoint.quantized_by(name)) is not None:
                counted = count_quantized(part, f"The {name} of {self.checkpoint.source}")
                self.told[name] = f"{type(part).__name__} quantised by {method}: {counted}"

    def _from_files(self, parts: Iterable[str], part_class: PretrainedPart | None = None) -> dict[str, object]:
        """Those of a pipeline's parts whose weights come from elsewhere, for its from_pretrained."""
        found: dict[str, object] = {}
        for part in sorted(parts):
            component, weights = self.checkpoint.components[part], self.checkpoint.weight_files[part]
            with explained(self.context):
                found[part], told = load_part(component, weights, getattr(torch, self.context.dtype), part_class)
            self.told[part] = told
        return found

    def _scheduler(self) -> dict[str, object]:
        """For a pipeline's from_pretrained: another scheduler than the checkpoint's own, if one was asked for."""
        choice = chosen(self.context.config.backend, self.checkpoint)
        return {} if choice is None else {"scheduler": make_scheduler(choice)}

    def _left_out(self) -> dict[str, None]:
        """Arguments of from_pretrained for the parts that are loaded apart if they are needed."""
        return dict.fromkeys(self.text_encoders()) if self.encodes_ahead else {}

    def text_encoders(self) -> list[str]:
        """Return the names of the text encoders that the pipeline takes."""
        parts = inspect.signature(self.pipeline_class).parameters
        return [name for name in parts if name.startswith("text_encoder") and not name.endswith("_out_layers")]


def own_class(own: OwnPipeline, checkpoint: Checkpoint, config: BackendConfig) -> type[Pipeline]:
    """Import a pipeline class that is none of diffusers'.

    Raises:
        UserError: there is none of that name, or it is another than its source said.
    """
    import diffusers

    try:
        found = _from_checkpoint(own, checkpoint, config) if own.in_checkpoint else imported(own.name)
    except OSError:  # no network
        raise
    except Exception as error:  # the module is the user's, and may do anything while it is imported
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"The pipeline {own.name} cannot be imported ({reason}). Correct the module, or its name."
        ) from None
    needed = getattr(diffusers, own.base or "DiffusionPipeline")
    if not isinstance(found, type) or not issubclass(found, needed):
        raise UserError(f"{own.name} is no class that derives from diffusers' {needed.__name__}; let it be one.")
    own_pipeline: type[Pipeline] = found
    return own_pipeline


def _from_checkpoint(own: OwnPipeline, checkpoint: Checkpoint, config: BackendConfig) -> object:
    from diffusers.utils.dynamic_modules_utils import get_class_from_dynamic_module

    found: object = get_class_from_dynamic_module(
        checkpoint.source,
        module_file=f"{own.module}.py",
        class_name=own.class_name,
        revision=config.revision,
        trust_remote_code=config.trust_remote_code,
    )
    return found


def resize_each(processor: ImageProcessor) -> None:
    """Let a list of images be resized image by image, as one image alone is: diffusers leaves a list as it is, so that
    QwenImageEdit's text encoder would see each image at its own size (3e-2 from what it sees without a list)."""
    resize = processor.resize

    def resize_list(image: object, *args: object, **kwargs: object) -> object:
        if isinstance(image, list):
            return [resize(each, *args, **kwargs) for each in image]
        return resize(image, *args, **kwargs)

    processor.resize = resize_list


@contextmanager
def explained(context: Context) -> Iterator[None]:
    """Turn what goes wrong while loading, which is mostly the user's to correct, into which checkpoint and what to do."""
    try:
        yield
    except (ValueError, TypeError, AttributeError) as error:
        if "trust_remote_code" in str(error):
            raise UserError(
                f"{context.checkpoint.source} comes with code of its own, which is not run unasked. Read it and, if you trust "
                "it, add --trust_remote_code."
            ) from None
        own, reason = context.checkpoint.own, " ".join(str(error).split())
        if own is not None:
            raise UserError(
                f"{context.checkpoint.source} cannot be loaded as {own.name}: {reason} Its __init__ must take parts that the "
                "checkpoint's model_index.json names, by these names, and hand them to register_modules."
            ) from None
        if not isinstance(context.config, EditingConfig) or context.config.model_type is None:
            raise
        raise UserError(
            f"{context.checkpoint.source} cannot be loaded as {context.checkpoint.pipeline_class} (--model_type "
            f"{context.config.model_type}): {reason} Drop --model_type, or give the family of this checkpoint."
        ) from None
    except OSError as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{context.checkpoint.source} cannot be loaded: {reason} If its weights are pickles (.bin) and you trust "
            "them, add --allow_pickle; if files are missing, download it again."
        ) from None
