"""What plain diffusers says about a job before a model is loaded."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from dglaunch.backends.diffusers import checks
from dglaunch.backends.diffusers.long_prompts import check_long_prompts
from dglaunch.backends.profiles import Profile, Target, edit_bucket
from dglaunch.config import RunConfig
from dglaunch.data.task import Bucket, Task, plain_bucket
from dglaunch.distributed.topology import Topology
from dglaunch.errors import UserError
from dglaunch.models.checkpoint import Checkpoint, as_editor, resolve, token_lengths
from dglaunch.models.optimizations import WITHOUT_MASK
from dglaunch.system import Machine, host_memory, need


class DiffusersProfile(Profile):
    """A checkpoint on this machine's GPUs, or its CPU."""

    is_identity = False
    has_estimates = True
    xdit = False
    """Whether xfuser runs the model."""

    def resolve(self, config: RunConfig, topology: Topology) -> Target:
        checkpoint = resolve(config.backend)
        need("torch", "Running a model", "pip install torch")
        reasons: dict[str, str] = {}
        device = _device(config, topology, reasons)
        dtype = config.backend.torch_dtype
        if dtype is None:
            dtype = "bfloat16" if device == "cuda" else "float32"
            reasons["torch_dtype"] = f"{dtype}: the default on a {'GPU' if device == 'cuda' else 'CPU'}"
        name, memory = _memory(device, topology)
        machine = Machine(name=name, memory=memory, dtype=dtype)
        return Target(checkpoint=checkpoint, device=device, machine=machine, reasons=reasons)

    def as_editor(self, config: RunConfig, checkpoint: Checkpoint, model_type: str | None) -> Checkpoint:
        return as_editor(checkpoint, model_type)

    def check(self, config: RunConfig, target: Target, topology: Topology, tasks: Sequence[Task]) -> None:
        checkpoint = target.checkpoint
        for package in ("diffusers", "transformers"):
            need(package, "Running a model", f"pip install {package}")
        if config.backend.revision is not None and checkpoint.local:
            raise UserError(
                f"--revision {config.backend.revision} would do nothing: {config.backend.model_name} is a folder on this "
                "machine, not a model of the hub. Drop it."
            )
        checks.check_guidance(checkpoint, tasks)
        checks.check_text_length(checkpoint, config)
        checks.check_optimizations(checkpoint, config, topology, target.device, self.xdit)
        checks.check_masks(checkpoint, config, tasks)
        checks.check_cache_steps(checkpoint, config, tasks)
        checks.check_encode(checkpoint, config)
        check_long_prompts(checkpoint, config, tasks)

    def buckets(self, config: RunConfig, target: Target, tasks: Sequence[Task]) -> Callable[[Task], Bucket]:
        """Return what must be equal in a batch: with xfuser, or an attention kernel that takes no mask, for some families
        the number of tokens as well."""
        checkpoint = target.checkpoint
        bucket = edit_bucket(checkpoint) if config.edits else plain_bucket
        unit = checkpoint.family.text_bucket
        without_mask = self.xdit or config.optimization.attention_backend in WITHOUT_MASK
        if not unit or not without_mask:
            return bucket
        texts = sorted({task.prompt for task in tasks} | {task.negative_prompt or "" for task in tasks})
        lengths = dict(zip(texts, token_lengths(checkpoint, texts, config.backend)))

        def with_lengths(task: Task) -> Bucket:
            counts = (lengths[task.prompt], lengths[task.negative_prompt or ""])
            return replace(bucket(task), text_lengths=tuple(-(-count // unit) for count in counts))

        return with_lengths


def _device(config: RunConfig, topology: Topology, reasons: dict[str, str]) -> str:
    """The device that was asked for, else a GPU where there is one."""
    import torch

    found = torch.cuda.is_available()
    device = config.backend.device
    if device is None:
        device = "cuda" if found else "cpu"
        reasons["device"] = f"{device}: torch {'finds a GPU' if found else 'finds no GPU'}"
    if device == "cuda" and not found:
        raise UserError(
            "--device cuda, but torch finds no GPU here. Check nvidia-smi and the torch build, or use --device cpu."
        )
    if device == "cuda" and topology.distributed and topology.local_world_size > torch.cuda.device_count():
        raise UserError(
            f"{topology.local_world_size} ranks on this machine, but torch finds {torch.cuda.device_count()} GPUs. Start "
            "one rank a GPU (--nproc_per_node)."
        )
    return device


def _memory(device: str, topology: Topology) -> tuple[str, int | None]:
    """The device's name, and the bytes that this rank has of it (None: a plan for other machines)."""
    if device == "cuda":
        import torch

        properties = torch.cuda.get_device_properties(topology.local_rank)
        return properties.name, properties.total_memory
    if topology.world_size > 1 and not topology.distributed:
        return "CPU", None
    return "CPU", host_memory() // max(topology.local_world_size, 1)
