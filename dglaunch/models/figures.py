"""What a model needs at one size, as numbers: weights, memory and work of each stage. torch is not imported here.

dglaunch.simulation.trace finds them; planning keeps them and adds them up.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from dglaunch.models.input_roles import Role
from dglaunch.models.shape import Shape

STAGES = ("encode", "denoise", "decode")
MOST = 1e24
"""Beyond what any number of a model comes to; the sums of such numbers are still numbers."""
DENOISERS = ("transformer", "unet", "transformer_2", "unet_2")
"""Components that a denoising step runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A question about a model: one kind of batch, on one rank of one layout."""

    shape: Shape
    dtype: str
    text_tokens: int
    """Of a prompt, its template left out, where it is not padded."""
    has_negative: bool = False
    guidance_scale: float | None = None
    """None: the pipeline's own."""
    max_sequence_length: int | None = None
    input_shapes: tuple[Shape, ...] = ()
    """Of an edit: the sizes of its input images."""
    ulysses_degree: int = 1
    ring_degree: int = 1
    use_cfg_parallel: bool = False
    roles: tuple[Role, ...] = ()
    """What its input images are for, where a pipeline of their own draws from them."""
    controlnet: str = ""
    """What --controlnet names, where a control image is among them."""
    context_degree: int = 1
    flags: tuple[str, ...] = ()
    """Of the optimizations those that are traced: enable_vae_slicing, enable_vae_tiling, enable_layerwise_casting, ..."""

    @property
    def replica_size(self) -> int:
        """Ranks that share one image."""
        return self.ulysses_degree * self.ring_degree * (2 if self.use_cfg_parallel else 1) * self.context_degree

    def as_key(self) -> dict[str, object]:
        """Return it as JSON without what was added later and is not used, so that figures keep the keys that they have."""
        later = {"context_degree": 1, "roles": (), "controlnet": ""}
        return {name: value for name, value in asdict(self).items() if name not in later or value != later[name]}


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCost:
    """What a stage takes on one rank."""

    fixed_bytes: int = 0
    """Live memory at its worst moment beyond the weights, however many images."""
    image_bytes: int = 0
    """And for each image of the batch."""
    flops: float = 0.0
    """For each image; of denoising, for each step as well."""
    launches: int = 0
    """Kernels that are started, whatever the images; of denoising in each step."""
    sent_bytes: int = 0
    """That the rank gives to others for each image, and step."""

    def peak(self, images: int) -> int:
        """Return the bytes beyond the weights of a batch of so many images."""
        return self.fixed_bytes + images * self.image_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockSizes:
    """How the weights of a network are divided into blocks, which FSDP fetches one by one; it fetches the rest at once."""

    largest: int
    """Bytes of its largest block."""
    outside: int
    """Bytes of the weights that are in no block."""
    tables: int
    """Bytes of what is stored with the weights and is none: FSDP leaves it whole on each rank."""

    @property
    def whole(self) -> int:
        """Bytes that FSDP has whole on each rank while a block runs: what is in no block, until the network is through; and the
        block, once as its weights and once as it came from the other ranks."""
        return self.outside + 2 * self.largest

    @property
    def fetching(self) -> int:
        """Bytes more at the moment when the next one has come, before it runs: what came before it is let go only then."""
        return max(self.outside, self.largest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """The answer to a Request."""

    weights: Mapping[str, int]
    """Bytes of each component's weights."""
    block_sizes: Mapping[str, BlockSizes]
    """Of each component, how they are divided into blocks."""
    encode: StageCost
    denoise: StageCost
    decode: StageCost
    num_inference_steps: int
    """The pipeline's own default."""

    def stage(self, name: str) -> StageCost:
        """Return the costs of encode, denoise or decode."""
        found: StageCost = getattr(self, name)
        return found

    def as_json(self) -> dict[str, object]:
        return asdict(self)

    @classmethod
    def from_json(cls, found: Mapping[str, object]) -> "Figures":
        """Read what `as_json` wrote.

        Raises:
            ValueError: it is something else.
        """
        try:
            weights, steps = found["weights"], found["num_inference_steps"]
            block_sizes = {name: BlockSizes(**part) for name, part in found["block_sizes"].items()}  # type: ignore[attr-defined]
            stages = {name: StageCost(**found[name]) for name in STAGES}  # type: ignore[arg-type]
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"these are no figures: {error}") from None
        if not isinstance(weights, dict) or not isinstance(steps, int):
            raise ValueError("these are no figures: a number is missing")
        flops = [stage.flops for stage in stages.values()]
        whole = [getattr(stage, name) for stage in stages.values() for name in StageCost.__slots__ if name != "flops"]
        whole += [getattr(part, name) for part in block_sizes.values() for name in BlockSizes.__slots__]
        whole += [*weights.values(), steps]
        if not all(map(_is_count, [*flops, *whole])) or not all(isinstance(number, int) for number in whole):
            raise ValueError("these are no figures: a number is none, negative or beyond all models")
        if steps < 1 or stages["denoise"].flops < 1:
            raise ValueError("these are no figures: a model that does nothing")
        return cls(weights=weights, block_sizes=block_sizes, num_inference_steps=steps, **stages)


def _is_count(number: object) -> bool:
    return isinstance(number, int | float) and not isinstance(number, bool) and 0 <= number <= MOST
