"""Plain diffusers: whatever it loads for text to image, and the editing families. Each rank is a replica."""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

import numpy as np
import torch
from PIL.Image import Image

from dglaunch.backends.base import Context, Facts, Slot, arrived
from dglaunch.backends.diffusers import optimizations
from dglaunch.backends.diffusers.arguments import call_arguments, call_defaults
from dglaunch.backends.diffusers.embedding_cache import EmbeddingCache, open_cache
from dglaunch.backends.diffusers.engine import Call, Engine
from dglaunch.backends.diffusers.findings import Findings
from dglaunch.backends.diffusers.loading import PipelineLoader, resize_each
from dglaunch.backends.diffusers.long_prompts import windows_of
from dglaunch.backends.diffusers.modular import ModularLoader
from dglaunch.backends.diffusers.pixels import ImageOf, image_of, to_slots
from dglaunch.backends.diffusers.prompt_encoder import PromptEncoder
from dglaunch.backends.diffusers.prompt_interception import PromptInterception
from dglaunch.backends.diffusers.protocols import Pipeline, plain_pipeline
from dglaunch.backends.diffusers.quiet import quiet_libraries
from dglaunch.backends.diffusers.schedulers import describe, options_of
from dglaunch.backends.diffusers.self_test import Pixels, find_out, seeded_by
from dglaunch.backends.diffusers.sharing import own_engine
from dglaunch.backends.diffusers.stages import Stages, time_compilation, trace_shapes
from dglaunch.backends.diffusers.text_encoders import TextEncoders
from dglaunch.backends.diffusers.with_inputs import InputPipelines
from dglaunch.backends.input_prefetch import InputPrefetcher
from dglaunch.data.prompt_windows import PromptWindows
from dglaunch.data.task import Batch
from dglaunch.errors import Drained
from dglaunch.models.schedulers import chosen

SHAPED_BY = ("torch", "diffusers", "transformers")
"""Packages of which another version may draw other pixels."""


class DiffusersBackend:
    """A diffusers backend runs one pipeline on one rank; its engine says how the pipeline is loaded and called."""

    pipeline: Pipeline
    with_inputs: InputPipelines
    """Those for rows with input images."""
    windows: PromptWindows
    """What its text encoders read of a prompt."""

    def __init__(
        self,
        context: Context,
        engine: Engine | None = None,
        loader: PipelineLoader | None = None,
        image_of: ImageOf = image_of,
    ) -> None:
        """
        Args:
            engine: diffusers' own, if none is given.
            loader: from files, if none is given.
            image_of: makes an image of its pixels.
        """
        self.context = context
        self.engine = engine if engine is not None else own_engine(context)
        loader_class = PipelineLoader if context.checkpoint.modular is None else ModularLoader
        self.loader = loader if loader is not None else loader_class(context)
        self.image_of = image_of
        self.inputs = InputPrefetcher(
            context.batches if context.config.takes_inputs and not context.config.debug else ()
        )
        self.stages = Stages(on_gpu=context.device == "cuda")
        self.seconds = self.stages.seconds
        self.prompts: PromptEncoder | None = None
        self.takes: frozenset[str] = frozenset()
        """Names of the pipeline's arguments."""
        self.findings: Findings | None = None
        """Of the self-test, for a pipeline without a row."""
        self.is_tried_out = False
        """Whether the self-test is under way, whose calls are not broken off: what is found is kept."""
        self.facts = Facts()
        self.undo = ExitStack()
        """What this backend changed for the whole process."""

    def load(self) -> Facts:
        config, rules = self.context.config, self.loader.edit_rules
        if not config.debug:
            quiet_libraries()
        self.engine.start(self.undo)
        if self.context.device == "cuda":
            torch.cuda.set_device(self.context.topology.local_rank)
        self.loader.check()
        self.loader.download()
        cache, self.pipeline = self.context.channel.together(self._load_pipeline)
        self.pipeline.set_progress_bar_config(disable=True)
        parameters = self.loader.call_parameters(self.pipeline)
        self.takes = frozenset(parameters)
        self.windows = windows_of(self.context.checkpoint, config, self._tokenizer)
        self.stages.watch(self.pipeline)
        effects = {"encode": self._encode_ahead(cache)} if self.loader.encodes_ahead else {}
        if rules is not None and rules.equal_size_batch:
            resize_each(self.pipeline.image_processor)
        controlnet = self.context.channel.together(self.loader.load_controlnet)
        effects |= self.engine.optimize(self.pipeline, self.loader.loras, self.undo)
        effects |= self.loader.loras.describe()
        self.loader.loras.agree(self.context.channel)
        if controlnet is not None:
            controlnet.to(self.context.torch_device)
        self.with_inputs = InputPipelines(self.context, self.pipeline, parameters, controlnet)
        events = list(self.loader.events)
        if config.optimization.enable_compile:
            folder = config.backend.cache / "compile"
            time_compilation(folder, self.seconds, events, self.undo)
        if config.debug:
            trace_shapes(self.pipeline)
        if not self.context.checkpoint.family.is_measured and self.loader.has_weights:
            self._try_out(events)
        scheduler = self.pipeline.components.get("scheduler")
        if (choice := chosen(config.backend, self.context.checkpoint)) is not None:
            effects["scheduler"] = describe(choice)
        effects |= self.loader.told
        self.facts = Facts(
            defaults=call_defaults(self.context.checkpoint, parameters),
            scheduler=_name_of(scheduler) if choice is None else choice.class_name,
            scheduler_options=options_of(choice) if choice is not None else {},
            ledger=choice.identity if choice is not None else {},
            effects=effects,
            events=events,
            shaped_by=(
                *SHAPED_BY,
                *(("xfuser",) if config.backend.backend == "xdit" else ()),
                *(("peft",) if self.loader.loras.files else ()),
            ),
            seconds_to_take_over=self.prompts.seconds_to_come_back if self.prompts is not None else 0.0,
            known_trouble=rules.known_trouble if rules is not None else "",
            most_images=1 if self.findings is not None and self.findings.why_single else None,
        )
        return self.facts

    def generate(self, batch: Batch) -> Sequence[Slot] | None:
        if self.context.topology.is_leader:
            self._note_cuts(batch)
        if self.prompts is not None:
            self.prompts.ensure(batch, self.context.coming())
        items = self.inputs.readable(batch, self.context.channel)
        if not items.batch.tasks:
            return items.with_errors(())
        seeded = seeded_by(self.findings, items.batch)
        with torch.inference_mode(), self.stages.denoising(), seeded, ExitStack() as if_it_breaks_off:
            if_it_breaks_off.callback(optimizations.forget_steps, self.pipeline)
            call = self._call(items.batch)
            self._use_loras(items.batch)
            output = call()
            if_it_breaks_off.pop_all()
        return items.with_errors(to_slots(output, self.image_of) if output is not None else None)

    def _try_out(self, events: list[str]) -> None:
        """Find out about a pipeline without a row; the time that it takes is none of the stages'."""
        before, self.is_tried_out = dict(self.seconds), True
        self.findings, said = find_out(self.context, self._draw, self.takes)
        self.is_tried_out = False
        events.append(said)
        self.seconds.clear()
        self.seconds.update(before)

    def _draw(self, batch: Batch) -> list[Pixels]:
        """Make a few images for the self-test."""
        images = [arrived(slot) for slot in self.generate(batch) or ()]
        return [np.asarray(image.convert("RGB")) for image in images if isinstance(image, Image)]

    def close(self) -> None:
        self.undo.close()
        del self.pipeline

    def _note_cuts(self, batch: Batch) -> None:
        for task, cut in zip(batch.tasks, self.windows.cuts(batch.tasks)):
            if cut:
                self.facts.of_task[task.id] = cut

    def _tokenizer(self, name: str) -> object:
        return getattr(plain_pipeline(self.pipeline), name, None)

    def _load_pipeline(self) -> tuple[EmbeddingCache | None, Pipeline]:
        """The pipeline takes minutes to load; whether the cache can be written shows at once."""
        cache = open_cache(self.context)
        pipeline = self.engine.load_pipeline(self.loader)
        self.loader.loras.read(pipeline)
        if not optimizations.quantizes_loaded(self.context.config.optimization):
            self.loader.loras.attach(pipeline)
        return cache, pipeline

    def _encode_ahead(self, cache: EmbeddingCache | None) -> str:
        plain, family = plain_pipeline(self.pipeline), self.context.checkpoint.family
        load_encoders = partial(self.engine.load_text_encoders, self.loader, self.pipeline)
        encoders = TextEncoders(plain, self.context.torch_device, load_encoders)
        interception = PromptInterception(plain, family.text_outputs, encoders, cache, self.loader.loras)
        self.prompts = PromptEncoder(
            interception, self._run_without_images, self.context.channel, together=self.engine.together
        )
        return self.prompts.encode(self.context.batches, self.context.should_stop)

    def _call(self, batch: Batch) -> Call:
        """The pipeline's call for a batch, of the pipeline that its input images need."""
        roles = batch.tasks[0].roles
        if not roles:
            return self.engine.prepare(self.pipeline, batch, self._arguments(batch) | self._input_images(batch))
        drawing = self.with_inputs.of(roles)
        given = self.with_inputs.arguments(batch, self.inputs) | self._arguments(batch, drawing.takes)
        arguments = {name: value for name, value in given.items() if name in drawing.takes}
        return self.engine.prepare(drawing.pipeline, batch, arguments)

    def _run_without_images(self, batch: Batch) -> None:
        """For the prompts' sake alone: families whose prompts depend on an image are not encoded ahead."""
        with torch.inference_mode():
            call = self.engine.prepare(self.pipeline, batch, self._arguments(batch))
            self._use_loras(batch)
            call()

    def _use_loras(self, batch: Batch) -> None:
        """Let the next call use what each row of the batch asks for."""
        self.loader.loras.use(batch.tasks)
        if self.prompts is not None:
            self.prompts.prompts.expect(batch.tasks)

    def _arguments(self, batch: Batch, takes: frozenset[str] | None = None) -> dict[str, object]:
        return call_arguments(
            batch,
            self.context.config,
            self.context.checkpoint,
            self.takes if takes is None else takes,
            on_step_end=self._between_steps,
        )

    def _input_images(self, batch: Batch) -> dict[str, object]:
        rules = self.loader.edit_rules
        if rules is None:
            return {}
        return {"image": rules.images_argument([self.inputs.images(task) for task in batch.tasks])}

    def _between_steps(
        self, _pipeline: object, _step: int, _timestep: object, values: dict[str, object]
    ) -> dict[str, object]:
        if not self.is_tried_out and self.context.should_stop():
            raise Drained
        return values


def _name_of(scheduler: object) -> str:
    return type(scheduler).__name__ if scheduler is not None else ""
