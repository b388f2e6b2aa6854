"""xfuser (xDiT): the ranks of a replica split one batch by sequence (Ulysses, ring) or guidance branch.

Three kinds of family (models.families.XDiT): xfuser's transformer, or the checkpoint's own turned into xfuser's in place, inside
a plain diffusers pipeline, where every rank of the replica ends with the images; and an xfuser pipeline, where only the
last rank does. Either way the last rank of a replica has them; it is the leader.
"""

import importlib
import logging
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from dglaunch.backends.base import Context
from dglaunch.backends.diffusers import optimizations
from dglaunch.backends.diffusers.backend import DiffusersBackend
from dglaunch.backends.diffusers.engine import Call
from dglaunch.backends.diffusers.loading import PipelineLoader
from dglaunch.backends.diffusers.loras import PipelineLoras
from dglaunch.backends.diffusers.protocols import Pipeline, denoiser
from dglaunch.backends.xdit.cpu import ATTENTION_BACKEND, import_xfuser
from dglaunch.backends.xdit.step_cache import apply_step_cache, forget_images
from dglaunch.data.shares import settings_of
from dglaunch.data.task import Batch
from dglaunch.errors import UserError
from dglaunch.models.lora import LoraUse, text_of

STEP_CACHE = "fbcache"
"""The --cache_type that is xfuser's own."""


def xdit_backend(context: Context) -> DiffusersBackend:
    """Make the backend of one rank of a replica that xfuser splits."""
    return DiffusersBackend(context, XDiTEngine(context))


class XDiTEngine:
    """The engine of xfuser: its process groups, its transformers and pipelines, and what it must be given before a call."""

    together = False

    def __init__(self, context: Context) -> None:
        family = context.checkpoint.family.xdit
        assert family is not None, "planning refuses other families"
        self.context = context
        self.family = family
        self.engine_config: Any = None
        self.fused: tuple[LoraUse, ...] | None = None
        """The LoRAs of all rows, where they are added to the weights."""

    def start(self, undo: ExitStack) -> None:
        import_xfuser()
        if not self.context.config.debug:
            # Each of xfuser's loggers sets its own level.
            for name in [name for name in logging.root.manager.loggerDict if name.startswith("xfuser")]:
                logging.getLogger(name).setLevel(logging.ERROR)
        from xfuser.core.distributed import parallel_state

        undo.callback(parallel_state.destroy_model_parallel)
        self._initialize_groups()
        self._configure()
        checkpoint = self.context.checkpoint
        if checkpoint.loras and checkpoint.family.lora is not None and checkpoint.family.lora.xdit == "fused":
            self.fused = self._one_set()

    def _one_set(self) -> tuple[LoraUse, ...]:
        """What all rows use, as planning has seen to; a rank without rows of its own may get some of others'."""
        mine = next((text_of(task.lora or ()) for task in settings_of(self.context.batches)), None)
        told = [text for text in self.context.channel.all_of_world(mine) if text is not None]
        return self.context.checkpoint.loras.of_row(told[0]) if told else ()

    def load_pipeline(self, loader: PipelineLoader) -> Pipeline:
        if self.family.pipeline is not None:
            return self._load_wrapped(loader, _imported(self.family.pipeline))
        if self.family.in_place is not None:
            pipeline = loader.load()
            _imported(self.family.in_place)(denoiser(pipeline))
        else:
            assert self.family.wrapper is not None
            pipeline = loader.load(transformer=loader.load_transformer(_imported(self.family.wrapper)))
        self._initialize_runtime(pipeline)
        return pipeline

    def _load_wrapped(self, loader: PipelineLoader, pipeline_class: type[Pipeline]) -> Pipeline:
        """A pipeline of xfuser around one of diffusers, into which LoRAs go first: xfuser's layers take none."""
        if not loader.loras.files:
            return loader.load(pipeline_class, engine_config=self.engine_config)
        plain: Any = loader.load()
        loader.loras.attach(plain)
        if self.fused is not None:
            loader.loras.fuse(plain, self.fused)
        wrap: Any = pipeline_class
        wrapped: Pipeline = wrap(plain, self.engine_config)
        return wrapped

    def load_text_encoders(self, loader: PipelineLoader, pipeline: Pipeline) -> dict[str, torch.nn.Module]:
        return loader.load_text_encoders(pipeline)

    def optimize(self, pipeline: Pipeline, loras: PipelineLoras, undo: ExitStack) -> dict[str, str]:
        from xfuser.core.distributed import get_runtime_state

        wanted = self.context.config.optimization
        others = replace(wanted, attention_backend=None)
        cached = ""
        if wanted.cache_type == STEP_CACHE:
            cached = apply_step_cache(denoiser(pipeline), wanted.cache_threshold, self.context.torch_device)
            others = replace(others, cache_type=None, cache_threshold=None)
        effects = optimizations.apply(pipeline, others, self.context.torch_device, undo, self.context.num_cores, loras)
        if cached:
            effects["cache_type"] = cached
        if wanted.attention_backend is not None:
            effects["attention_backend"] = f"xfuser {get_runtime_state().attention_backend.name}"
        return effects

    def prepare(self, pipeline: Pipeline, batch: Batch, arguments: dict[str, object]) -> Call:
        if self.family.pipeline is not None:
            # xfuser's pipelines do not call back on every rank of a replica, and the ranks must stop at the same step.
            arguments.pop("callback_on_step_end", None)
            # By position, or xfuser would share the prompts (but not the generators) out among the replicas.
            return partial(pipeline, arguments.pop("prompt"), **arguments)
        if self.family.splits_text:
            self._announce(batch, arguments)
        if self.context.config.optimization.cache_type == STEP_CACHE:
            forget_images(denoiser(pipeline))
        return partial(pipeline, **arguments)

    def _announce(self, batch: Batch, arguments: dict[str, object]) -> None:
        """Tell xfuser the real size of each batch: the last one may be smaller than the others. Height and width
        only size bands that these transformers do not have; xfuser wants them to divide all the same."""
        from xfuser.core.distributed import get_runtime_state

        length = arguments.get("max_sequence_length")
        assert length is None or isinstance(length, int)
        side = 16 * self.context.topology.sequence_degree
        get_runtime_state().set_input_parameters(
            height=side,
            width=side,
            batch_size=len(batch),
            num_inference_steps=batch.tasks[0].num_inference_steps,
            max_condition_sequence_length=self.context.checkpoint.text_length(length),
        )

    def _initialize_groups(self) -> None:
        """World, data, CFG, pipeline and sequence groups, in the order that xfuser expects."""
        from xfuser.core import distributed as groups

        topology, parallel = self.context.topology, self.context.topology.parallel
        backend = "nccl" if self.context.device == "cuda" else "gloo"
        if not topology.distributed and not dist.is_initialized():
            # xfuser asks for its groups even in a world of one; the launcher's own channel stays trivial.
            store = dist.HashStore()
            dist.init_process_group(backend, store=store, rank=0, world_size=1)
        groups.init_distributed_environment(
            rank=topology.rank, world_size=topology.world_size, local_rank=topology.local_rank, backend=backend
        )
        groups.initialize_model_parallel(
            **self._degrees(),
            classifier_free_guidance_degree=2 if parallel.use_cfg_parallel else 1,
            sequence_parallel_degree=topology.sequence_degree,
            backend=backend,
        )

    def _configure(self) -> None:
        from xfuser import xFuserArgs

        parallel = self.context.topology.parallel
        try:
            arguments = xFuserArgs(
                **self._degrees(),
                model=self.context.checkpoint.source,
                use_cfg_parallel=parallel.use_cfg_parallel,
                attention_backend=self._attention_backend(),
                trust_remote_code=self.context.config.backend.trust_remote_code,
            )
            self.engine_config, _ = arguments.create_config()
        except (ValueError, KeyError, RuntimeError) as error:
            raise UserError(f"xfuser refuses this configuration: {error}.") from None
        self.engine_config.runtime_config.dtype = getattr(torch, self.context.dtype)  # no argument sets it: float16

    def _initialize_runtime(self, pipeline: Pipeline) -> None:
        from xfuser.core.distributed import initialize_runtime_state

        try:
            initialize_runtime_state(pipeline, self.engine_config)
        except (KeyError, RuntimeError, ValueError) as error:
            raise UserError(
                f"xfuser cannot run with these options: {error}. Check --attention_backend (xfuser's names, such as SDPA) "
                "and the DG_XDIT_* degrees."
            ) from None

    def _degrees(self) -> dict[str, int]:
        topology = self.context.topology
        return {
            "data_parallel_degree": topology.num_replicas,
            "ulysses_degree": topology.parallel.ulysses_degree,
            "ring_degree": topology.parallel.ring_degree,
        }

    def _attention_backend(self) -> str | None:
        """--attention_backend; None leaves the choice to xfuser."""
        given = self.context.config.optimization.attention_backend
        if given is not None:
            return given
        if self.context.device != "cuda":
            return ATTENTION_BACKEND
        if self.context.dtype == "float32":
            return "SDPA_EFFICIENT"  # the kernels that xfuser prefers take 16 bits only
        from xfuser.envs import PACKAGES_CHECKER

        # xfuser would take FLASH_4 where it is installed, and then refuse a ring with it.
        is_ring = self.context.topology.parallel.ring_degree > 1
        return "CUDNN" if is_ring and PACKAGES_CHECKER.get_packages_info()["has_flash_attn_4"] else None


def _imported(name: str) -> Any:
    """What `module:attribute` names: a class of pipelines or networks, or a function that changes one."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)
