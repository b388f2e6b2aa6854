"""What a run was asked to do: dataclasses whose fields are the flags.

    from dglaunch import BackendConfig, T2IConfig
    config = T2IConfig(backend=BackendConfig(model_name="tiny"), prompts_file=Path("prompts.jsonl"))

A value comes from a flag, else from DG_<FLAG IN CAPITALS>, else from its default (flags.py).
A text under a field is its help text. `None` means "not given": the pipeline's own default is used.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from dglaunch.data.evaluations import BENCHMARKS
from dglaunch.errors import UserError

BackendName = Literal["diffusers", "xdit", "openai", "google_genai", "fake"]
MAX_SEED = 2**62
REMOTE_BACKENDS = ("openai", "google_genai")
"""Engines that ask an API for images: no checkpoint, no torch, no GPU."""
Layout = Literal["indexed", "geneval", "dpg", "t2i_compbench", "genarena", "webdataset", "parquet"]
WriterName = Literal["main", "node", "rank"]
CacheType = Literal["first_block_cache", "taylor_seer", "faster_cache", "pab", "mag_cache", "cache_dit"]


@dataclass(kw_only=True, slots=True)
class BackendConfig:
    """Which engine runs which checkpoint, and on what."""

    backend: BackendName = "diffusers"
    """Engine: diffusers (each rank a replica), xdit (groups from DG_XDIT_*), openai and google_genai (APIs), fake (tests)."""
    model_name: str = "tiny"
    """A hub id, a local diffusers folder, `tiny`, the checkpoint that ships with dglaunch, or an API's name of its model."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    torch_dtype: Literal["bfloat16", "float16", "float32"] | None = None
    """Type of the weights. Default: bfloat16 on a GPU, float32 on a CPU."""
    device: Literal["cuda", "cpu"] | None = None
    """Where to run. Default: the GPU of this local rank, the CPU where there is none."""
    trust_remote_code: bool = False
    """Run Python code that comes with the checkpoint."""
    allow_pickle: bool = False
    """Load weights that are not safetensors (a pickle can run any code)."""
    cache_dir: Path = Path("~/.cache/dglaunch")
    """Where dglaunch keeps what it builds once (not the hub's own cache)."""

    @property
    def is_remote(self) -> bool:
        """Whether an API makes the images."""
        return self.backend in REMOTE_BACKENDS


@dataclass(kw_only=True, slots=True)
class OptimizationConfig:
    """What is done to the pipeline. Each option takes effect or the run stops before loading the weights."""

    enable_vae_slicing: bool = False
    """Decode the images of a batch one after the other: less memory, same image."""
    enable_vae_tiling: bool = False
    """Decode each image in tiles: far less memory for large images, changes the image a little."""
    attention_backend: str | None = None
    """diffusers' name (native, flash, sage, ...), with --backend xdit xfuser's (SDPA, FLASH_3, ...)."""
    encode: Literal["auto", "ahead", "inline"] = "auto"
    """Encode all prompts ahead of the first batch, each distinct one once, and drop the text encoders; or in each batch."""
    embedding_cache: Path | None = None
    """Folder that keeps encoded prompts between runs; with all of them there the text encoders are not even loaded."""
    cache_type: CacheType | None = None
    """Reuse activations between denoising steps (diffusers' caches, cache-dit): faster, changes the image."""
    cache_threshold: float | None = None
    """Of first_block_cache, mag_cache and cache_dit: how much may change and yet be skipped. Default: 0.08, 0.06, 0.08."""
    cache_interval: int | None = None
    """Of taylor_seer, faster_cache and pab: compute every so many steps. Default: 5, 2, 2."""
    cache_warmup: int | None = None
    """Of taylor_seer and cache_dit: first steps that are computed in full. Default: 3, 8."""
    enable_compile: bool = False
    """torch.compile: faster after a warm-up of a minute or so, kept in --cache_dir for later runs."""
    compile_scope: Literal["regional", "whole"] = "regional"
    """With --enable_compile: the repeated blocks (compiled once for all) or the whole transformer (slower to compile)."""
    quantization: Literal["int8", "fp8", "nf4"] | None = None
    """Quantise the transformer while loading: int8 and fp8 (compute capability 8.9) for speed, nf4 for memory."""
    enable_fuse_qkv: bool = False
    """One matrix product for query, key and value: same image."""
    enable_layerwise_casting: bool = False
    """Keep the transformer's weights as float8 and cast each layer as it runs: half the memory of bfloat16."""
    enable_cpu_offload: bool = False
    """Each network is on the GPU only while it runs: less memory, slower."""
    enable_group_offloading: bool = False
    """Each layer of the transformer is on the GPU only while it runs: least memory, slower."""
    enable_channels_last: bool = False
    """Convolutions of VAE and U-Net in NHWC order: same image."""
    enable_tf32: bool = False
    """float32 matrix products on TensorFloat-32 units (only with --torch_dtype float32 on a GPU)."""

    def __post_init__(self) -> None:
        if self.cache_threshold is not None and not 0 < self.cache_threshold < float("inf"):
            raise UserError(f"--cache_threshold is {self.cache_threshold}; it must be a number above 0.")
        for name, least in (("cache_interval", 2), ("cache_warmup", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"--{name} is {value}; it must be {least} or more.")


@dataclass(kw_only=True, slots=True)
class RemoteConfig:
    """How the backends openai and google_genai ask. Keys come from OPENAI_API_KEY, GEMINI_API_KEY or GOOGLE_API_KEY only."""

    num_processes: int = 4
    """Concurrent requests of each rank (with --backend openai or google_genai, as all flags of this group)."""
    max_global_workers: int | None = None
    """Concurrent requests of all ranks together; each rank takes its part."""
    timeout: float = 180.0
    """Seconds to wait for an answer before the request is given up and sent again."""
    api_max_retries: int = 5
    """How often a request is sent again after 429, 5xx, a time-out, a dropped connection or a damaged answer."""
    retry_delay: float = 1.0
    """Seconds before the first retry; doubled for each one after it, with jitter. A server's Retry-After comes first."""
    api_base: str | None = None
    """Address of a compatible server. Default: OPENAI_BASE_URL or GOOGLE_GEMINI_BASE_URL, else the provider's own."""
    max_cost: float | None = None
    """Stop asking when the answers have reported this cost (US dollars, as the server counts); shared out over the ranks."""
    max_requests: int | None = None
    """Stop asking after this many requests, retries included; shared out over the ranks. The same command goes on."""

    def __post_init__(self) -> None:
        for name, least in (
            ("num_processes", 1),
            ("max_global_workers", 1),
            ("max_requests", 1),
            ("api_max_retries", 0),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"--{name} is {value}; it must be {least} or more.")
        for name in ("timeout", "max_cost"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise UserError(f"--{name} is {value}; it must be a number above 0.")
        if not 0 <= self.retry_delay < float("inf"):
            raise UserError(f"--retry_delay is {self.retry_delay}; it must be a number of 0 or more.")
        if self.api_base is not None:
            _check_address(self.api_base)


def _check_address(address: str) -> None:
    """--api_base stands in run.json and in messages, so it must not carry a secret; it is not shown here either."""
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError("--api_base must be an address such as https://host/v1.")
    if "@" in parts.netloc or parts.query:
        raise UserError(
            "--api_base holds a user name, a password or a query; it would be written to run.json. Give the plain address "
            "and put the key into OPENAI_API_KEY, GEMINI_API_KEY or GOOGLE_API_KEY."
        )


@dataclass(kw_only=True, slots=True)
class RunConfig:
    """What every job has in common."""

    backend: BackendConfig = field(default_factory=BackendConfig)
    optimization: OptimizationConfig = field(default_factory=OptimizationConfig)
    remote: RemoteConfig = field(default_factory=RemoteConfig)
    output_dir: Path = Path("outputs")
    """Folder for images, metadata.jsonl, failures.jsonl and run.json. An unfinished run there is resumed."""
    overwrite: bool = False
    """Start anew: remove what an earlier run wrote to --output_dir."""
    output_format: Literal["png", "jpg", "webp"] = "png"
    """File type of the images."""
    output_name_column: str | None = None
    """Column that names each output file; default is the index (000000.png)."""
    layout: Layout = "indexed"
    """At the end also write the images to --output_dir/LAYOUT as that evaluation or data loader reads them."""
    batch_size: int | Literal["auto"] = "auto"
    """Images per forward pass per replica, `auto` by size, memory and degrees; with an API samples of a prompt per request."""
    num_images_per_prompt: int | None = None
    """Images for each row that does not say otherwise, each with a seed of its own. Default: 1, or what --layout wants."""
    height: int | None = None
    """Pixels. Default: the checkpoint's own."""
    width: int | None = None
    """Pixels. Default: the checkpoint's own."""
    num_inference_steps: int | None = None
    """Denoising steps. Default: the pipeline's own."""
    guidance_scale: float | None = None
    """Guidance scale (true_cfg_scale for Qwen). Default: the pipeline's own; 0 is 0."""
    negative_prompt: str | None = None
    """What to keep out of the image, for rows that do not say otherwise."""
    max_sequence_length: int | None = None
    """Longest prompt in tokens of the text encoder. Default: the pipeline's own."""
    seed: int = 0
    """Image `sample` of row `index` gets seed + index * num_images_per_prompt + sample; a row's own seed wins."""
    gallery: bool = False
    """At the end write gallery.html to --output_dir: a page to look through the results (dglaunch gallery does it later)."""
    num_gpus: int | None = None
    """Outside torchrun: start again under torchrun with this many ranks on this machine."""
    node_rank: int | None = None
    """With --num_nodes: this machine's number. Each node takes its share, with no rendezvous between nodes."""
    num_nodes: int | None = None
    """Independent nodes that share the work and the output folder."""
    writer: WriterName = "main"
    """Who writes images: rank 0, the first replica of each node (needs no common folder: dglaunch merge), or each replica."""
    stall_timeout: float = 1800.0
    """Seconds without progress, or without a sign of life from a peer, until a hung run is ended with stacks; 0: never."""
    debug: bool = False
    """One process, no background threads, full tracebacks, stage timings and tensor shapes on the terminal."""

    def __post_init__(self) -> None:
        benchmark = BENCHMARKS.get(self.layout)
        if self.num_images_per_prompt is None:
            self.num_images_per_prompt = benchmark.samples if benchmark is not None else 1
        for name, least in (
            ("batch_size", 1),
            ("num_images_per_prompt", 1),
            ("height", 1),
            ("width", 1),
            ("num_inference_steps", 1),
            ("max_sequence_length", 1),
            ("num_gpus", 1),
            ("num_nodes", 1),
            ("node_rank", 0),
            ("stall_timeout", 0),
            ("seed", 0),
        ):
            value = getattr(self, name)
            if isinstance(value, int | float) and value < least:
                raise UserError(f"--{name} is {value}; it must be {least} or more.")
        if self.seed > MAX_SEED:
            raise UserError(
                f"--seed is {self.seed}; it must be {MAX_SEED} (2^62) or less, as the index is added to it."
            )
        if self.guidance_scale is not None and not 0 <= self.guidance_scale < float("inf"):
            raise UserError(f"--guidance_scale is {self.guidance_scale}; it must be a number of 0 or more.")
        if (self.node_rank is None) != (self.num_nodes is None):
            raise UserError("--node_rank and --num_nodes belong together: give both, or neither.")
        if self.node_rank is not None and self.num_nodes is not None and self.node_rank >= self.num_nodes:
            raise UserError(
                f"--node_rank {self.node_rank} with --num_nodes {self.num_nodes}: nodes are counted from 0, "
                f"so the last one is {self.num_nodes - 1}."
            )


@dataclass(kw_only=True, slots=True)
class T2IConfig(RunConfig):
    """Text to image: a file of prompts (or one prompt) to a folder of images."""

    prompt: str | None = None
    """One prompt, instead of a file."""
    prompts_file: Path | None = None
    """Prompts as .jsonl, .csv, .txt (one a line) or .parquet, or a folder of .txt (one a file) or .parquet files."""

    def __post_init__(self) -> None:
        RunConfig.__post_init__(self)
        if (self.prompt is None) == (self.prompts_file is None):
            raise UserError("Give either --prompts_file FILE (.jsonl, .csv, .txt, .parquet) or --prompt TEXT.")


@dataclass(kw_only=True, slots=True)
class EditingConfig(RunConfig):
    """Editing: a table of images and instructions to a folder of edited images."""

    input: Path | None = None
    """Table (.csv, .jsonl, .parquet): input_images (a path, a JSON or comma list; in Parquet also bytes) and instruction."""
    instruction_key: str = "instruction"
    """Column of the instructions."""
    filter_rows: str | None = None
    """Only these rows, by index: 0:100,250 is 0 to 99 and 250."""
    model_type: str | None = None
    """qwen, qwen_singleimg, flux2, flux2_klein, flux1_kontext, longcat, glm_image. Default: by the checkpoint's pipeline."""
    save_inputs: bool = False
    """Copy each row's input images to the folder inputs in --output_dir."""

    def __post_init__(self) -> None:
        RunConfig.__post_init__(self)
        benchmark = BENCHMARKS.get(self.layout)
        if benchmark is not None and not benchmark.edits:
            raise UserError(f"--layout {self.layout} is for text to image; drop it, or use t2i.")
        if self.input is None:
            raise UserError("Give --input TABLE (.csv, .jsonl or .parquet) with columns input_images and instruction.")


XDIT_PREFIX = "DG_XDIT_"


@dataclass(kw_only=True, slots=True)
class ParallelConfig:
    """xDiT's degrees: how many ranks share one image, and how. Read from DG_XDIT_* only."""

    ulysses_degree: int = 1
    ring_degree: int = 1
    pipefusion_degree: int = 1
    use_cfg_parallel: bool = False
    data_parallel_degree: int | None = None
    """Replicas. Default: what is left of the world."""


def settings(config: Any) -> dict[str, Any]:
    """All leaves of a config as one flat dict, in JSON's types."""
    flat: dict[str, Any] = {}
    for item in fields(config):
        value = getattr(config, item.name)
        flat |= (
            settings(value) if is_dataclass(value) else {item.name: str(value) if isinstance(value, Path) else value}
        )
    return flat


# -- flags that belong to other backends ---------------------------------------------------------------------------

LOCAL_ONLY = (
    "revision",
    "torch_dtype",
    "device",
    "trust_remote_code",
    "allow_pickle",
    "cache_dir",
    "max_sequence_length",
    "model_type",
)
"""Flags that say how a checkpoint runs on this machine, besides those of OptimizationConfig."""


def check_flags_of_backend(config: RunConfig, origins: Mapping[str, str]) -> None:
    """A flag that the chosen backend would not look at is a mistake.

    Raises:
        UserError: with the flags.
    """
    name = config.backend.backend
    remote = tuple(item.name for item in fields(RemoteConfig))
    local = (*LOCAL_ONLY, *(item.name for item in fields(OptimizationConfig)))
    given, defaults = settings(config), settings(RunConfig()) | {"model_type": None}
    idle = [
        flag
        for flag in (local if config.backend.is_remote else remote)
        if flag in given and (given[flag] != defaults[flag] or origins.get(flag, "default") != "default")
    ]
    if idle:
        flags = ", ".join(f"--{flag}" for flag in idle)
        where = "an API runs the model" if config.backend.is_remote else "the model runs on this machine"
        raise UserError(
            f"With --backend {name} {where}, so {flags} would do nothing. Drop {'it' if len(idle) == 1 else 'them'}."
        )
    if config.backend.is_remote and given["model_name"] == defaults["model_name"]:
        raise UserError(
            f"--backend {name} needs --model_name: the name of one of the API's models, such as gpt-image-1.5."
        )
