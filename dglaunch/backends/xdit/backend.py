"""xfuser (xDiT): the ranks of a replica split one batch by sequence (Ulysses, ring), guidance branch or layers.

Three kinds of family (models.XDiT): xfuser's transformer, or the checkpoint's own turned into xfuser's in place, inside
a plain diffusers pipeline, where every rank of the replica ends with the images; and an xfuser pipeline, where only the
last rank does. Either way the last rank of a replica has them; it is the leader.
"""

import importlib
import importlib.metadata
import logging
from typing import Any

import torch.distributed as dist

from dglaunch.backends.base import Context, Facts, prompt_of
from dglaunch.backends.diffusers import optimizations as optimize
from dglaunch.backends.diffusers.backend import DiffusersBackend, loading, quiet_libraries
from dglaunch.backends.xdit.cpu import ATTENTION_BACKEND, import_xfuser
from dglaunch.data.task import Batch
from dglaunch.errors import UserError
from dglaunch.models.families import XDiT


class XDiTBackend(DiffusersBackend):
    """One rank of a replica that xfuser splits."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        assert context.checkpoint.family.xdit is not None, "rules.check() comes first"
        self.family: XDiT = context.checkpoint.family.xdit
        self.engine_config: Any = None

    def load(self) -> Facts:
        if not self.context.config.debug:
            quiet_libraries()
        import_xfuser()
        if not self.context.config.debug:
            # Each of xfuser's loggers sets its own level.
            for name in [name for name in logging.root.manager.loggerDict if name.startswith("xfuser")]:
                logging.getLogger(name).setLevel(logging.ERROR)
        self._initialise_groups()
        facts = super().load()
        facts.versions |= {"xfuser": importlib.metadata.version("xfuser")}
        return facts

    def _initialise_groups(self) -> None:
        """World, data, CFG, pipeline and sequence groups, in the order that xfuser expects."""
        from xfuser import xFuserArgs
        from xfuser.core import distributed as groups

        topology, parallel = self.context.topology, self.context.topology.parallel
        gpu = self.context.device == "cuda"
        backend = "nccl" if gpu else "gloo"
        attention = self.context.config.optimization.attention_backend
        if attention is None and not gpu:
            attention = ATTENTION_BACKEND
        elif attention is None and self.context.dtype == "float32":
            attention = "SDPA_EFFICIENT"  # the kernels that xfuser prefers take 16 bits only
        if not topology.distributed and not dist.is_initialized():
            # xfuser asks for its groups even in a world of one; the launcher's own channel stays trivial.
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        groups.init_distributed_environment(
            rank=topology.rank, world_size=topology.world_size, local_rank=topology.local_rank, backend=backend
        )
        degrees = {
            "data_parallel_degree": topology.num_replicas,
            "ulysses_degree": parallel.ulysses_degree,
            "ring_degree": parallel.ring_degree,
        }
        groups.initialize_model_parallel(
            **degrees,
            classifier_free_guidance_degree=2 if parallel.use_cfg_parallel else 1,
            sequence_parallel_degree=topology.sequence_degree,
            pipeline_parallel_degree=parallel.pipefusion_degree,
            backend=backend,
        )
        try:
            arguments = xFuserArgs(
                **degrees,
                model=self.context.checkpoint.source,
                use_cfg_parallel=parallel.use_cfg_parallel,
                pipefusion_parallel_degree=parallel.pipefusion_degree,
                attention_backend=attention,
                trust_remote_code=self.context.config.backend.trust_remote_code,
            )
            self.engine_config, _ = arguments.create_config()
        except (ValueError, KeyError, RuntimeError) as error:
            raise UserError(f"xfuser refuses this configuration: {error}.") from None

    def load_pipeline(self) -> Any:
        from xfuser.core.distributed import initialize_runtime_state

        arguments, source = self.from_pretrained_arguments(), self.context.checkpoint.source
        with loading(self.context):
            if self.family.pipeline is not None:
                return _imported(self.family.pipeline).from_pretrained(
                    source,
                    engine_config=self.engine_config,
                    **arguments,
                    **self.quantization_arguments(),
                    **self.left_out,
                )
            if self.family.in_place is not None:
                pipeline = self.loader_class().from_pretrained(
                    source, **arguments, **self.quantization_arguments(), **self.left_out
                )
                _imported(self.family.in_place)(pipeline.transformer)
            else:
                assert self.family.wrapper is not None
                own = {name: value for name, value in arguments.items() if name != "trust_remote_code"}
                own["quantization_config"] = optimize.quantized(self.context.config.optimization, self.context.dtype)
                transformer = _imported(self.family.wrapper).from_pretrained(source, subfolder="transformer", **own)
                pipeline = self.loader_class().from_pretrained(
                    source, transformer=transformer, **arguments, **self.left_out
                )
        try:
            initialize_runtime_state(pipeline, self.engine_config)
        except (KeyError, RuntimeError, ValueError) as error:
            raise UserError(
                f"xfuser cannot run with these options: {error}. Check --attention_backend (xfuser's names, such as SDPA) "
                "and the DG_XDIT_* degrees."
            ) from None
        return pipeline

    def optimize(self) -> dict[str, str]:
        from dataclasses import replace

        from xfuser.core.distributed import get_runtime_state

        wanted = self.context.config.optimization
        effects = optimize.apply(self.pipeline, replace(wanted, attention_backend=None), self.device, self.undo)
        if wanted.attention_backend is not None:
            effects["attention_backend"] = f"xfuser {get_runtime_state().attention_backend.name}"
        return effects

    def arguments(self, batch: Batch) -> dict[str, Any]:
        arguments = super().arguments(batch)
        if self.family.pipeline is not None:
            # xfuser's pipelines do not call back on every rank of a replica, and the ranks must stop at the same step.
            arguments.pop("callback_on_step_end", None)
        return arguments

    def call_pipeline(self, batch: Batch, arguments: dict[str, Any]) -> Any:
        if self.family.pipeline is not None:
            # By position, or xfuser would share the prompts (but not the generators) out among the replicas.
            return self.pipeline(prompt_of(batch.tasks), **arguments)
        if self.family.splits_text:
            from xfuser.core.distributed import get_runtime_state

            # For each batch's real size: the last one may be smaller than the others. Height and width only size
            # PipeFusion's bands, which these transformers do not have; xfuser wants them to divide all the same.
            first, length = batch.tasks[0], self.context.checkpoint.text_length(arguments.get("max_sequence_length"))
            side = 16 * self.context.topology.sequence_degree
            get_runtime_state().set_input_parameters(
                height=side,
                width=side,
                batch_size=len(batch),
                num_inference_steps=first.num_inference_steps,
                max_condition_sequence_length=length,
            )
        return super().call_pipeline(batch, arguments)

    def close(self) -> None:
        super().close()
        from xfuser.core.distributed import parallel_state

        parallel_state.destroy_model_parallel()


def _imported(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)
