"""What planning asks a backend before anything is loaded. torch is not imported here, unless a device is to be found.

profile = profile_of(config.backend.backend)
target = profile.resolve(config, topology)          # the checkpoint, the device, why they were chosen
profile.check(config, target, topology, tasks)      # refuse what cannot work, with the remedy
profile.buckets(config, target, tasks)              # which tasks may share a forward pass
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from dglaunch.backends.registry import BACKENDS, imported
from dglaunch.config import API, LOCAL, Concern, RunConfig
from dglaunch.data.task import BatchSize, Bucket, Task, plain_bucket
from dglaunch.distributed.topology import Topology
from dglaunch.errors import UserError
from dglaunch.models.checkpoint import Checkpoint, as_editor
from dglaunch.models.families import OTHER
from dglaunch.system import Machine


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a job runs on: the checkpoint (or what stands in for one) and the device of this rank."""

    checkpoint: Checkpoint
    device: str
    """cuda or cpu."""
    machine: Machine
    reasons: dict[str, str] = field(default_factory=dict)
    """Every automatic choice, and why."""
    here: bool = True
    """Whether it is this machine's; False: planned for a GPU elsewhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Idle:
    """A value that was given, by a flag or by rows of the table, and changes nothing."""

    name: str
    """Of the flag, or the column."""
    where: str = ""
    """" in row 3", if it stands there only."""
    reason: str
    """Why it does nothing."""
    remedy: str = ""
    """What to do instead, where giving it is a mistake; empty where the images are what was asked for."""


@dataclass(frozen=True, slots=True)
class Dollars:
    """An amount of money that is known between bounds."""

    least: float
    most: float | None
    """None: there is no upper bound."""

    def __add__(self, other: "Dollars") -> "Dollars":
        most = None if self.most is None or other.most is None else self.most + other.most
        return Dollars(self.least + other.least, most)

    def times(self, factor: float) -> "Dollars":
        """Return so many times as much."""
        return Dollars(self.least * factor, None if self.most is None else self.most * factor)

    def __str__(self) -> str:
        if self.most is None:
            return f"{money(self.least)} at the least"
        low, high = money(self.least), money(self.most)
        return low if low == high else f"{low} to {high}"


def money(dollars: float) -> str:
    """Return an amount of US dollars for people: $210.72, $0.0059."""
    return f"${dollars:,.2f}" if dollars >= 1 or not dollars else f"${dollars:.4f}"


@dataclass(frozen=True, slots=True)
class ExpectedCost:
    """What a job will cost."""

    dollars: Dollars | None
    """None: unknown."""
    words: str


class Profile:
    """What a backend says about a job. This base is right for one that has no checkpoint and no device of its own."""

    idle: Concern = API
    """The flags that it would not look at: giving one is a mistake."""
    unused: Concern = Concern.NOTHING
    """The flags that it does not look at either, where giving one is no mistake."""
    is_identity = True
    """Whether the backend is part of what makes a job another job. (diffusers and xdit make the same images.)"""
    needs_model_name = False
    """Whether --model_name must be given."""
    has_estimates = False
    """Whether memory and time can be estimated."""
    mixes_rows = True
    """Whether tasks of different rows may share a batch."""
    can_replay = True
    """Whether the same seed makes the same image again."""
    costs_money = False
    """Whether images are paid for one by one."""
    can_tune = True
    """Whether it is this machine that sets how many images are best made together."""
    why_idle = "the model runs on this machine"

    def resolve(self, config: RunConfig, topology: Topology, elsewhere: Machine | None = None) -> Target:
        """Find the checkpoint and the device, or take the GPU of a plan in place of this machine's (`elsewhere`).

        Raises:
            UserError: there is no such checkpoint, or no such device.
        """
        defaults: dict[str, object] = {"height": 64, "width": 64, "edit": {"_auto_resize": False}}
        checkpoint = Checkpoint(
            source=config.backend.backend,
            pipeline_class=config.backend.backend,
            family=replace(OTHER, size_multiple=1),
            defaults=defaults,
            transformer={},
            local=False,
        )
        machine = Machine(name=config.backend.backend, memory=None, dtype="float32")
        return Target(checkpoint=checkpoint, device="cpu", machine=machine)

    def as_editor(self, config: RunConfig, checkpoint: Checkpoint, model_type: str | None) -> Checkpoint:
        """Return the checkpoint as `edit` uses it. Here: with the batches of an editing family (FLUX.1 Kontext's where
        none is named), but without its demands on prompts and sizes.

        Raises:
            UserError: it edits no images.
        """
        editor = as_editor(checkpoint, model_type or "flux1_kontext")
        free = replace(editor.family, size_multiple=1, takes_negative=True, guidance_needs_negative=False)
        return replace(editor, family=free)

    def check(self, config: RunConfig, target: Target, topology: Topology, tasks: Sequence[Task]) -> None:
        """Refuse what cannot work or would silently do nothing.

        Raises:
            UserError: with the remedy.
        """
        if config.on_long_prompt == "fail":
            raise UserError(
                f"--backend {config.backend.backend} has no text encoder of which it is known how much it reads, so "
                "--on_long_prompt fail would do nothing. Drop it."
            )

    def check_code(self, config: RunConfig, target: Target) -> None:
        """Refuse what shows only at code that is loaded for it, the user's own too; not asked for a plan.

        Raises:
            UserError: with the remedy.
        """

    def lora_reason(self, config: RunConfig, target: Target) -> str:
        """Return whether rows with different LoRAs share a batch, as the end of a sentence about them."""
        return "share a batch"

    def idle_values(self, config: RunConfig, target: Target, tasks: Sequence[Task]) -> Iterable[Idle]:
        """Yield what rows say, or flags in their place, and this model would not look at."""
        return ()

    def buckets(self, config: RunConfig, target: Target, tasks: Sequence[Task]) -> Callable[[Task], Bucket]:
        """Return the function that says what must be equal in a batch."""
        return edit_bucket(target.checkpoint) if config.edits else plain_bucket

    def batch_size(self, config: RunConfig) -> BatchSize | None:
        """Return the batch size that the backend wants; None: as the user, the memory and `tune` say."""
        return None

    def expected_cost(self, config: RunConfig, tasks: Iterable[Task]) -> ExpectedCost | None:
        """Return what it costs in money to make these images; None where it costs none."""
        return None

    def cost(self, checkpoint: Checkpoint, bucket: Bucket) -> float:
        """Return the relative cost of one image of a bucket: image tokens x denoising steps."""
        tokens = checkpoint.image_tokens(checkpoint.shape(bucket.height, bucket.width)) + bucket.input_tokens
        return float(tokens * checkpoint.num_steps(bucket.num_inference_steps))


class FakeProfile(Profile):
    """Noise in the place of a model."""

    unused = LOCAL


def edit_bucket(checkpoint: Checkpoint) -> Callable[[Task], Bucket]:
    """Return what must be equal for a batch that an editing family computes right: the shapes of the input images, and
    where a call has one set of images, that set."""
    rules = checkpoint.family.edit
    assert rules is not None
    one_set = rules.shared_image_batch and not rules.equal_size_batch

    def bucket(task: Task) -> Bucket:
        return replace(
            plain_bucket(task),
            input_shapes=rules.input_shapes([image.shape for image in task.images], checkpoint.defaults),
            input_sha256=tuple(image.sha256 for image in task.images) if one_set else (),
        )

    return bucket


def profile_of(backend: str) -> Profile:
    """Return the profile of a backend by its name; its module is imported only now."""
    profile = imported(BACKENDS[backend].profile)()
    assert isinstance(profile, Profile), f"{BACKENDS[backend].profile} is no Profile"
    return profile
