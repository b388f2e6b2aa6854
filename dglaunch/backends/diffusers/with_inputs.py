"""The pipelines for rows with input images: made of the networks of the loaded one, each when a batch first needs it.

from_pipe() of diffusers is not used: it casts the networks to float32, and leaves out a transformer of another class.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import diffusers
import torch

from dglaunch.backends.base import Context
from dglaunch.backends.diffusers.arguments import call_parameters
from dglaunch.backends.diffusers.loading import resize_each
from dglaunch.backends.diffusers.protocols import Pipeline, plain_pipeline
from dglaunch.backends.input_prefetch import InputPrefetcher
from dglaunch.data.task import Batch
from dglaunch.models.input_roles import InputPipeline, Role


@dataclass(frozen=True, slots=True)
class Drawing:
    """A pipeline that draws with input images, and what its call takes."""

    pipeline: Pipeline
    takes: frozenset[str]
    row: InputPipeline


class InputPipelines:
    """The pipelines of one backend for rows with input images."""

    def __init__(
        self,
        context: Context,
        base: Pipeline,
        parameters: Mapping[str, inspect.Parameter],
        controlnet: torch.nn.Module | None,
    ) -> None:
        """
        Args:
            base: the text-to-image pipeline, loaded, on its device and optimized.
            parameters: of its call: what nobody gives is its own default for rows with input images, too.
            controlnet: None where no row has a control image.
        """
        self._context = context
        self._base = plain_pipeline(base)
        self.controlnet = controlnet
        self._made: dict[tuple[Role, ...], Drawing] = {}
        names = ("num_inference_steps", context.checkpoint.family.guidance)
        self._defaults = {name: parameters[name].default for name in names if name in parameters}

    def of(self, roles: tuple[Role, ...]) -> Drawing:
        """Return the pipeline for rows that have these input images."""
        if roles not in self._made:
            self._made[roles] = self._make(roles)
        return self._made[roles]

    def arguments(self, batch: Batch, inputs: InputPrefetcher) -> dict[str, object]:
        """Return what the call for a batch takes besides: its images, one for each prompt, and what they are to do."""
        first = batch.tasks[0]
        row = self.of(first.roles).row
        found: dict[str, object] = {name: value for name, value in self._defaults.items() if value is not None}
        if first.strength is not None:
            found["strength"] = first.strength
        if first.control_scale is not None:
            found["controlnet_conditioning_scale"] = first.control_scale
        for role in row.roles:
            found[row.arguments[role]] = [inputs.picture(task, role) for task in batch.tasks]
        return found

    def _make(self, roles: tuple[Role, ...]) -> Drawing:
        row = self._context.checkpoint.family.input_pipeline(roles)
        assert row is not None, "planning refuses other rows"
        made = assembled(getattr(diffusers, row.pipeline), self._base, self.controlnet if row.controlnet else None)
        made.set_progress_bar_config(disable=True)
        if self._context.config.edits:
            resize_each(made.image_processor)
        # As it stands on the base: timed, and answering from what was encoded ahead.
        made.encode_prompt = self._base.encode_prompt
        return Drawing(made, frozenset(call_parameters(type(made))), row)


def assembled(pipeline_class: Any, base: Pipeline, controlnet: object | None) -> Pipeline:
    """Return a pipeline of another class with the networks and settings of a loaded one."""
    settings: Mapping[str, object] = getattr(base, "config", {})
    known = {**settings, **base.components, "controlnet": controlnet}
    wanted = inspect.signature(pipeline_class).parameters
    made: Pipeline = pipeline_class(**{name: known[name] for name in wanted if name in known})
    return made
