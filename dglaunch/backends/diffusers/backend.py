"""Plain diffusers: whatever it loads for text to image, and the editing families. Each rank is a replica."""

import functools
import inspect
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from dglaunch.backends.base import Context, Facts, ItemError, Slot, generate_sound, prompt_of
from dglaunch.backends.diffusers import optimizations as optimize
from dglaunch.backends.diffusers.embedding_cache import EmbeddingCache, encoders_key
from dglaunch.backends.diffusers.pixels import to_images
from dglaunch.backends.diffusers.prompt_encoder import TextEncoding
from dglaunch.backends.input_prefetch import InputPrefetcher
from dglaunch.config import EditingConfig
from dglaunch.data.task import Batch
from dglaunch.errors import Drained, UserError

PASSED = ("height", "width", "num_inference_steps", "guidance_scale")
"""Settings of a task that go to the pipeline where they are given."""


class DiffusersBackend:
    """One pipeline on one rank."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.seconds: dict[str, float] = {}
        self.pipeline: Any = None
        self.parameters: dict[str, inspect.Parameter] = {}
        self.undo = ExitStack()
        """What this backend changed for the whole process."""
        self.loader = InputPrefetcher(() if context.config.debug else context.batches)
        self.texts: TextEncoding | None = None
        self.editing = context.checkpoint.family.edit if context.config.edits else None

    # -- loading --------------------------------------------------------------------------------------------------

    def load(self) -> Facts:
        if not self.context.config.debug:
            quiet_libraries()
        import diffusers
        import transformers

        if self.context.device == "cuda":
            torch.cuda.set_device(self.context.topology.local_rank)
        self._check_arguments(self._pipeline_class())
        self._download()
        cache, self.pipeline = self.context.channel.together(lambda: (self._embedding_cache(), self.load_pipeline()))
        self.pipeline.set_progress_bar_config(disable=True)
        self.parameters = dict(inspect.signature(self.pipeline.__call__).parameters)
        self._time_stages()
        effects = {"encode": self._encode_ahead(cache)} if self.encodes_ahead else {}
        optimize.place(self.pipeline, self.device, self.context.config.optimization)
        if self.editing is not None and self.editing.equal_size_batch:
            resize_each(self.pipeline.image_processor)
        effects |= self.optimize()
        events: list[str] = []
        if self.context.config.optimization.enable_compile:
            folder = self.context.config.backend.cache_dir.expanduser() / "compile"
            optimize.time_compilation(folder, self.seconds, events, self.undo)
        if self.context.config.debug:
            trace_shapes(self.pipeline)
        return Facts(
            defaults=self._defaults(),
            effects=effects,
            events=events,
            versions={
                "torch": torch.__version__,
                "diffusers": diffusers.__version__,
                "transformers": transformers.__version__,
            },
            known_trouble=self.editing.known_trouble if self.editing is not None else "",
        )

    def _pipeline_class(self) -> Any:
        import diffusers

        name = self.context.checkpoint.pipeline_class
        found = getattr(diffusers, name, None)
        if found is None and not self.context.config.backend.trust_remote_code:
            raise UserError(
                f"The checkpoint names the pipeline {name}, which diffusers {diffusers.__version__} does not have. Update "
                "diffusers, or, if you trust the code that comes with the checkpoint, add --trust_remote_code."
            )
        return found

    def _check_arguments(self, pipeline_class: Any) -> None:
        """A flag that the pipeline does not take would silently do nothing."""
        if pipeline_class is None:
            return
        takes = inspect.signature(pipeline_class.__call__).parameters
        config, family = self.context.config, self.context.checkpoint.family
        flags = {name: name for name in (*PASSED, "negative_prompt", "max_sequence_length")}
        flags["guidance_scale"] = family.guidance
        for flag, argument in flags.items():
            if getattr(config, flag) is not None and argument not in takes:
                raise UserError(
                    f"{pipeline_class.__name__} does not take {argument}, so --{flag} would do nothing; drop it."
                )

    def from_pretrained_arguments(self) -> dict[str, Any]:
        """Only safetensors and no remote code, unless a flag asks."""
        backend = self.context.config.backend
        return {
            "torch_dtype": getattr(torch, self.context.dtype),
            "use_safetensors": None if backend.allow_pickle else True,
            "trust_remote_code": backend.trust_remote_code,
            "revision": backend.revision,
        }

    def _download(self) -> None:
        """The first rank of each node fetches a checkpoint from the hub; the others then find it in the cache."""
        if self.context.checkpoint.local:
            return

        def fetch() -> None:
            if self.context.topology.local_rank == 0:
                with loading(self.context):
                    self.loader_class().download(self.context.checkpoint.source, **self.from_pretrained_arguments())

        self.context.channel.together(fetch)

    def load_pipeline(self) -> Any:
        """The pipeline in the host's memory, without the text encoders if they come and go before it moves."""
        with loading(self.context):
            return self.loader_class().from_pretrained(
                self.context.checkpoint.source,
                **self.from_pretrained_arguments(),
                **self.quantization_arguments(),
                **self.left_out,
            )

    def quantization_arguments(self) -> dict[str, Any]:
        """For a pipeline's from_pretrained: its transformer (or U-Net) is quantised as it is read."""
        wanted = optimize.quantized(self.context.config.optimization, self.context.dtype)
        if wanted is None:
            return {}
        from diffusers import PipelineQuantizationConfig

        names = ("transformer", "unet")
        return {"quantization_config": PipelineQuantizationConfig(quant_mapping=dict.fromkeys(names, wanted))}

    @property
    def encodes_ahead(self) -> bool:
        """Whether the prompts are encoded before the first batch."""
        return self.context.checkpoint.encodes_ahead(self.context.config.optimization.encode)

    @property
    def left_out(self) -> dict[str, None]:
        """Arguments of from_pretrained for the parts that TextEncoding loads if it needs them."""
        return dict.fromkeys(self._text_encoders()) if self.encodes_ahead else {}

    def _text_encoders(self) -> list[str]:
        parts = inspect.signature(self._pipeline_class().__init__).parameters
        return [name for name in parts if name.startswith("text_encoder") and not name.endswith("_out_layers")]

    def _load_text_encoders(self) -> dict[str, torch.nn.Module]:
        others = dict.fromkeys(name for name in ("transformer", "unet", "vae") if hasattr(self.pipeline, name))
        with loading(self.context):
            holder = self._pipeline_class().from_pretrained(
                self.context.checkpoint.source, **self.from_pretrained_arguments(), **others
            )
        if self.context.config.debug:
            trace_shapes(holder)
        return {name: encoder for name in self._text_encoders() if (encoder := getattr(holder, name)) is not None}

    def _encode_ahead(self, cache: EmbeddingCache | None) -> str:
        context, family = self.context, self.context.checkpoint.family
        self.texts = TextEncoding(
            self.pipeline, family.text_outputs, self.device, self._load_text_encoders, self._call_without_images,
            context.channel, cache,
        )  # fmt: skip
        return self.texts.encode(context.batches, context.should_stop)

    def _embedding_cache(self) -> EmbeddingCache | None:
        folder = self.context.config.optimization.embedding_cache
        if folder is None:
            return None
        import diffusers
        import transformers

        checkpoint = self.context.checkpoint
        source = Path(checkpoint.source)
        if not checkpoint.local:
            from huggingface_hub import hf_hub_download

            revision = self.context.config.backend.revision
            source = Path(hf_hub_download(checkpoint.source, "model_index.json", revision=revision)).parent
        versions = (checkpoint.pipeline_class, self.context.dtype, diffusers.__version__, transformers.__version__)
        return EmbeddingCache(folder, encoders_key(source, *versions))

    def _call_without_images(self, batch: Batch) -> None:
        with torch.inference_mode():
            self.call_pipeline(batch, self.arguments(batch))

    def loader_class(self) -> Any:
        """An editing pipeline by its own name: --model_type may load it from a checkpoint that names another."""
        from diffusers import DiffusionPipeline

        return DiffusionPipeline if self.editing is None else self._pipeline_class()

    def optimize(self) -> dict[str, str]:
        return optimize.apply(self.pipeline, self.context.config.optimization, self.device, self.undo)

    @property
    def device(self) -> str:
        return f"cuda:{self.context.topology.local_rank}" if self.context.device == "cuda" else "cpu"

    def _defaults(self) -> dict[str, Any]:
        """What a call without these arguments uses, for the ledger: the checkpoint's, else the signature's."""
        checkpoint = self.context.checkpoint
        guidance = self.parameters.get(checkpoint.family.guidance)
        steps = self.parameters.get("num_inference_steps")
        own = {
            "height": checkpoint.shape(None, None).height,
            "width": checkpoint.shape(None, None).width,
            "num_inference_steps": steps.default if steps else None,
            "guidance_scale": guidance.default if guidance else None,
        }
        return own | checkpoint.defaults

    # -- one batch ------------------------------------------------------------------------------------------------

    def generate(self, batch: Batch) -> Sequence[Slot] | None:
        if self.texts is not None:
            self.texts.ensure(batch)
        return generate_sound(self.context, batch, self.loader, self._generate)

    def _generate(self, batch: Batch) -> Sequence[Slot] | None:
        try:
            with torch.inference_mode():
                output = self.timed_call(
                    lambda: self.call_pipeline(batch, self.arguments(batch) | self._input_images(batch))
                )
        except BaseException:
            optimize.forget_steps(self.pipeline)
            raise
        if output is None:
            return None
        images = to_images(output.images) if torch.is_tensor(output.images) else list(output.images)
        flagged = getattr(output, "nsfw_content_detected", None) or [False] * len(images)
        return [
            ItemError("blocked by the checkpoint's safety checker") if bad else i for i, bad in zip(images, flagged)
        ]

    def call_pipeline(self, batch: Batch, arguments: dict[str, Any]) -> Any:
        """The call itself; a subclass prepares what its engine needs for this batch."""
        return self.pipeline(prompt=prompt_of(batch.tasks), **arguments)

    def timed_call(self, call: Callable[[], Any]) -> Any:
        """What a call takes beyond encoding prompts and decoding is denoising."""
        start, others = time.perf_counter(), sum(self.seconds.values())
        try:
            return call()
        finally:
            took = time.perf_counter() - start - (sum(self.seconds.values()) - others)
            self.seconds["denoise"] = self.seconds.get("denoise", 0.0) + took

    def arguments(self, batch: Batch) -> dict[str, Any]:
        """The call's arguments for a batch whose tasks agree in all but prompt, seed and negative prompt.

        One CPU generator for each image: its noise depends on its seed alone, not on batch, rank or device.
        """
        family, checkpoint, first = self.context.checkpoint.family, self.context.checkpoint, batch.tasks[0]
        given = {name: getattr(first, name) for name in PASSED}
        given["max_sequence_length"] = self.context.config.max_sequence_length
        merged = checkpoint.defaults | {name: value for name, value in given.items() if value is not None}
        if "guidance_scale" in merged:
            merged[family.guidance] = merged.pop("guidance_scale")
        arguments = {name: value for name, value in merged.items() if name in self.parameters} | dict(family.arguments)
        if "max_area" in self.parameters:
            # Kontext would rescale the output to 1 Mpx, whatever height and width say.
            arguments["max_area"] = first.height * first.width
        if first.negative_prompt is not None:
            arguments["negative_prompt"] = [task.negative_prompt for task in batch.tasks]
        arguments["generator"] = [torch.Generator("cpu").manual_seed(task.seed) for task in batch.tasks]
        if family.tensor_output:
            arguments["output_type"] = "pt"
        if "callback_on_step_end" in self.parameters:
            arguments["callback_on_step_end"] = self._between_steps
        return arguments

    def _input_images(self, batch: Batch) -> dict[str, Any]:
        if self.editing is None:
            return {}
        return {"image": self.editing.images_argument([self.loader.images(task) for task in batch.tasks])}

    def _between_steps(self, _pipeline: Any, _step: int, _timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        if self.context.should_stop():
            raise Drained
        return values

    # -- where the time goes --------------------------------------------------------------------------------------

    def _time_stages(self) -> None:
        """Count prompt encoding and VAE decoding apart; the rest of a call is denoising."""
        plain = getattr(self.pipeline, "module", self.pipeline)  # xfuser's pipelines hold one
        if hasattr(plain, "encode_prompt"):
            plain.encode_prompt = self._timed("encode_prompts", plain.encode_prompt)
        if hasattr(getattr(self.pipeline, "vae", None), "decode"):
            self.pipeline.vae.decode = self._timed("decode", self.pipeline.vae.decode)

    def _timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._wait_for_gpu()
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self._wait_for_gpu()
                self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start

        return timed

    def _wait_for_gpu(self) -> None:
        if self.context.device == "cuda":
            torch.cuda.synchronize()

    def close(self) -> None:
        self.undo.close()
        self.pipeline = None


def resize_each(processor: Any) -> None:
    """Let a list of images be resized image by image, as one image alone is: diffusers leaves a list as it is, so that
    QwenImageEdit's text encoder would see each image at its own size (3e-2 from what it sees without a list)."""
    resize = processor.resize

    def each(image: Any, *args: Any, **kwargs: Any) -> Any:
        return (
            [resize(i, *args, **kwargs) for i in image] if isinstance(image, list) else resize(image, *args, **kwargs)
        )

    processor.resize = each


def trace_shapes(pipeline: Any) -> None:
    """--debug: print the shapes of the tensors that go into each network, whenever they change."""
    seen: dict[str, str] = {}

    def hook(name: str) -> Callable[..., None]:
        def show(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            named = {str(position): value for position, value in enumerate(args)} | kwargs
            tensors = {key: value for key, value in named.items() if isinstance(value, torch.Tensor)}
            text = ", ".join(f"{key} {tuple(value.shape)} {value.dtype}" for key, value in tensors.items())
            if seen.get(name) != text:
                seen[name] = text
                print(f"{name}: {text}".replace("torch.", ""), file=sys.stderr)

        return show

    for name, module in pipeline.components.items():
        if isinstance(module, torch.nn.Module):
            part = module.decoder if hasattr(module, "decoder") and name == "vae" else module
            part.register_forward_pre_hook(hook("vae.decoder" if part is not module else name), with_kwargs=True)


def quiet_libraries() -> None:
    """Errors only: eight ranks would print each notice and bar eight times. --debug leaves them as they are."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", category=FutureWarning)
    for name in ("torchao", "torch.utils._pytree"):  # diffusers imports torchao where it is installed
        logging.getLogger(name).setLevel(logging.ERROR)
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


@contextmanager
def loading(context: Context) -> Iterator[None]:
    """What goes wrong while loading is mostly the user's to mend; say which checkpoint and what to do."""
    try:
        yield
    except (ValueError, TypeError, AttributeError) as error:
        if not isinstance(context.config, EditingConfig) or context.config.model_type is None:
            raise
        reason = " ".join(str(error).split())
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
