"""What plain diffusers says about a job before a model is loaded."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from dglaunch.backends.diffusers import checks
from dglaunch.backends.diffusers.findings import file_of, recall
from dglaunch.backends.diffusers.idle import (
    idle_arguments,
    idle_guidance,
    idle_negatives,
    idle_text_length,
    without_parameter,
)
from dglaunch.backends.diffusers.long_prompts import check_long_prompts
from dglaunch.backends.diffusers.lora_checks import check_loras, why_apart, with_loras
from dglaunch.backends.diffusers.modular_checks import check_modular
from dglaunch.backends.diffusers.quiet import quiet_imports, quiet_libraries
from dglaunch.backends.diffusers.sharing_checks import check_sharing
from dglaunch.backends.profiles import Idle, Profile, Target, edit_bucket
from dglaunch.config import CALL, RunConfig, flags_that
from dglaunch.data.many import kinds_of
from dglaunch.data.task import ROW_FIELDS, Bucket, Task, plain_bucket
from dglaunch.distributed.topology import Topology
from dglaunch.errors import UserError
from dglaunch.models.checkpoint import Checkpoint, as_editor, resolve, token_lengths
from dglaunch.models.input_roles import roles_text
from dglaunch.models.optimizations import WITHOUT_MASK
from dglaunch.models.schedulers import chosen
from dglaunch.models.weight_files import quantization_of, told_of
from dglaunch.system import Machine, host_memory, need, need_version

TENSOR_SINCE = "0.40.0"
"""The first diffusers with a plan for --shard tensor."""


def newer_diffusers(checkpoint: Checkpoint, config: RunConfig, tasks: Iterable[Task] = ()) -> Iterator[tuple[str, str]]:
    """Yield what of a job needs a newer diffusers than the oldest that dglaunch goes with, and which."""
    family = checkpoint.family
    if family.since:
        yield f"The pipeline of {family.name}", family.since
    for roles in dict.fromkeys(task.roles for task in tasks):
        pipeline = family.input_pipeline(roles)
        if pipeline is not None and pipeline.since:
            yield f"{pipeline.pipeline}, for {roles_text(roles)},", pipeline.since
    if config.backend.shard == "tensor":
        yield "--shard tensor", TENSOR_SINCE


class DiffusersProfile(Profile):
    """A checkpoint on this machine's GPUs, or its CPU."""

    is_identity = False
    has_estimates = True
    xdit = False
    """Whether xfuser runs the model."""

    def resolve(self, config: RunConfig, topology: Topology, elsewhere: Machine | None = None) -> Target:
        if not config.debug:
            quiet_imports()  # a modular checkpoint's blocks are diffusers'
        checkpoint = resolve(config.backend)
        need("torch", "Running a model", "pip install torch")
        reasons: dict[str, str] = {}
        if checkpoint.not_here is not None:
            reasons["checkpoint"] = f"from the catalog of dglaunch, as {checkpoint.not_here.reason}"
            if self._parts_lengths(config, checkpoint):
                reasons["text_lengths"] = (
                    "taken as equal, as there is no tokenizer here: with others there are more batches"
                )
        reasons |= {part: told_of(weights) for part, weights in checkpoint.weight_files.items()}
        if elsewhere is None:
            device = device_of(config, topology, reasons)
        else:
            device, reasons["device"] = "cuda", f"cuda: planned for {elsewhere.name}, not for this machine"
        dtype = config.backend.torch_dtype
        if dtype is None:
            dtype = "bfloat16" if device == "cuda" else "float32"
            reasons["torch_dtype"] = f"{dtype}: the default on a {'GPU' if device == 'cuda' else 'CPU'}"
        machine = replace(_machine(device, topology) if elsewhere is None else elsewhere, dtype=dtype)
        if not checkpoint.family.is_measured:
            checkpoint = _with_findings(checkpoint, config, device, dtype, reasons)
        return Target(checkpoint=checkpoint, device=device, machine=machine, reasons=reasons, here=elsewhere is None)

    def as_editor(self, config: RunConfig, checkpoint: Checkpoint, model_type: str | None) -> Checkpoint:
        return as_editor(checkpoint, model_type)

    def check(self, config: RunConfig, target: Target, topology: Topology, tasks: Sequence[Task]) -> None:
        checkpoint = target.checkpoint
        for package in ("diffusers", "transformers"):
            need(package, "Running a model", f"pip install {package}")
        if checkpoint.family.package is not None and target.here:
            package, extra = checkpoint.family.package
            need(package, f"The pipeline of {checkpoint.family.name}", f"pip install 'dglaunch[{extra}]'")
        if target.here:
            for purpose, oldest in newer_diffusers(checkpoint, config, kinds_of(tasks)):
                need_version("diffusers", oldest, purpose)
        if config.backend.revision is not None and checkpoint.local:
            raise UserError(
                f"--revision {config.backend.revision} would do nothing: {config.backend.model_name} is a folder on this "
                "machine, not a model of the hub. Drop it."
            )
        check_modular(checkpoint, config)
        check_sharing(checkpoint, config, topology, tasks)
        kinds = kinds_of(tasks)
        if checkpoint.weight_files or quantization_of(checkpoint.transformer) is not None:
            from dglaunch.backends.diffusers.weight_files import check_weight_files  # which imports torch

            _quiet(config)
            check_weight_files(checkpoint, config.optimization, target.device, target.here)
        if chosen(config.backend, checkpoint) is not None:
            from dglaunch.backends.diffusers.schedulers import check_scheduler  # which imports torch

            _quiet(config)
            check_scheduler(checkpoint, config.backend, kinds, self.xdit)
        checks.check_draws(checkpoint)
        checks.check_guidance(checkpoint, kinds)
        checks.check_schedule(checkpoint, kinds)
        checks.check_text_length(checkpoint, config)
        checks.check_optimizations(
            checkpoint, config, topology, target.device, self.xdit, target.machine.capability, target.here
        )
        checks.check_masks(checkpoint, config, kinds)
        checks.check_cache_steps(checkpoint, config, kinds)
        checks.check_cache_calls(checkpoint, config)
        checks.check_inputs(checkpoint, config, kinds)
        checks.check_encode(checkpoint, config)
        check_loras(checkpoint, config, kinds, self.xdit)
        check_long_prompts(checkpoint, config, tasks)

    def check_code(self, config: RunConfig, target: Target) -> None:
        own = target.checkpoint.own
        if own is None or (own.in_checkpoint and not target.checkpoint.local):  # that is not downloaded yet
            return
        from dglaunch.backends.diffusers.arguments import call_parameters, check_own
        from dglaunch.backends.diffusers.loading import own_class

        if not config.debug:
            quiet_libraries()
        takes = call_parameters(own_class(own, target.checkpoint, config.backend))
        check_own(own, takes)
        given = {name: getattr(config, name) for name in flags_that(CALL, type(config)) if name in ROW_FIELDS}
        flags = Task(index=0, prompt="", seed=0, stem="", **given)
        for idle in without_parameter(target.checkpoint, config, [flags], takes):
            raise UserError(idle.mistake)

    def lora_reason(self, config: RunConfig, target: Target) -> str:
        apart = why_apart(target.checkpoint, config, self.xdit)
        return f"do not share a batch, as {apart}" if apart else "share a batch, if none of them has several"

    def idle_values(self, config: RunConfig, target: Target, tasks: Sequence[Task]) -> Iterable[Idle]:
        yield from idle_arguments(target.checkpoint, config, tasks)
        yield from idle_text_length(target.checkpoint, config)
        yield from idle_guidance(target.checkpoint, config, tasks)
        yield from idle_negatives(target.checkpoint, config, tasks)

    def buckets(self, config: RunConfig, target: Target, tasks: Sequence[Task]) -> Callable[[Task], Bucket]:
        """Return what must be equal in a batch: with xfuser, context parallelism, or an attention kernel that takes no mask,
        for some families the number of tokens as well."""
        checkpoint = target.checkpoint
        bucket = edit_bucket(checkpoint) if config.edits else plain_bucket
        if checkpoint.loras:
            bucket = with_loras(bucket, bool(why_apart(checkpoint, config, self.xdit)))
        if not self._parts_lengths(config, checkpoint) or checkpoint.not_here is not None:
            return bucket
        unit = checkpoint.family.text_bucket
        texts = sorted({task.text for task in tasks} | {task.negative_prompt or "" for task in tasks})
        lengths = dict(zip(texts, token_lengths(checkpoint, texts, config.backend)))

        def with_lengths(task: Task) -> Bucket:
            counts = (lengths[task.text], lengths[task.negative_prompt or ""])
            return replace(bucket(task), text_lengths=tuple(-(-count // unit) for count in counts))

        return with_lengths

    def _parts_lengths(self, config: RunConfig, checkpoint: Checkpoint) -> bool:
        """Whether prompts of different length may not share a batch."""
        # diffusers' context parallelism puts the parts of a mask together wrongly where more than two ranks hold unequal ones.
        is_split = self.xdit or config.backend.parallel == "context"
        without_mask = is_split or config.optimization.attention_backend in WITHOUT_MASK
        return bool(checkpoint.family.text_bucket) and without_mask


def _quiet(config: RunConfig) -> None:
    """Let libraries that are imported this early tell of errors only, as they do later."""
    if not config.debug:
        quiet_libraries()


def _with_findings(
    checkpoint: Checkpoint, config: RunConfig, device: str, dtype: str, reasons: dict[str, str]
) -> Checkpoint:
    """The checkpoint with the sizes that an earlier run's self-test found, if it is the same in all that they depend on."""
    file = file_of(checkpoint, config, device, dtype)
    findings = recall(file) if file is not None else None
    if findings is None:
        reasons["self_test"] = "what has no row in dglaunch's table of families is tried out once the model is loaded"
        return checkpoint
    reasons["self_test"] = f"{findings.text} (kept in {file})"
    return replace(checkpoint, family=replace(checkpoint.family, size_multiple=findings.multiple))


GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""NVIDIA's, AMD's and Windows' own, under Linux."""


def _has_gpu() -> bool:
    """Whether torch finds a GPU. It is not imported where the system has none: that takes seconds."""
    if "torch" not in sys.modules and not any(map(os.path.exists, GPU_DEVICES)):
        return False
    import torch

    return torch.cuda.is_available()


def device_of(config: RunConfig, topology: Topology, reasons: dict[str, str]) -> str:
    """Return the device that was asked for, else a GPU where there is one, and say why in the reasons.

    Raises:
        UserError: there is no such device.
    """
    found = _has_gpu()
    device = config.backend.device
    if device is None:
        device = "cuda" if found else "cpu"
        reasons["device"] = f"{device}: torch {'finds a GPU' if found else 'finds no GPU'}"
    if device == "cuda" and not found:
        raise UserError(
            "--device cuda, but torch finds no GPU here. Check nvidia-smi and the torch build, or use --device cpu."
        )
    if device == "cuda" and topology.distributed:
        import torch

        if topology.local_world_size > torch.cuda.device_count():
            raise UserError(
                f"{topology.local_world_size} ranks on this machine, but torch finds {torch.cuda.device_count()} GPUs. "
                "Start one rank a GPU (--nproc_per_node)."
            )
    return device


def _machine(device: str, topology: Topology) -> Machine:
    """The device's name, the bytes that this rank has of it (None: a plan for other machines), and what it can."""
    if device == "cuda":
        import torch

        found = torch.cuda.get_device_properties(topology.local_rank)
        able = (found.major, found.minor)
        return Machine(name=found.name, memory=found.total_memory, dtype="bfloat16", capability=able)
    if topology.world_size > 1 and not topology.distributed:
        return Machine(name="CPU", memory=None, dtype="float32")
    return Machine(name="CPU", memory=host_memory() // max(topology.local_world_size, 1), dtype="float32")
