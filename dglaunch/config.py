"""What a run was asked to do: dataclasses whose fields are the flags, and the only reader of DG_* variables.

    from dglaunch import BackendConfig, T2IConfig
    config = T2IConfig(backend=BackendConfig(model_name="tiny"), prompts_file=Path("prompts.jsonl"))

A value comes from a flag, else from DG_<FLAG IN CAPITALS>, else from its default; `parse` also says which.
A text under a field is its help text. `None` means "not given": the pipeline's own default is used.
"""

import difflib
import io
import os
import types
import typing
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

from dglaunch.errors import UserError

Config = TypeVar("Config", bound="RunConfig")
BackendName = Literal["diffusers", "xdit", "openai", "google_genai", "fake"]
REMOTE_BACKENDS = ("openai", "google_genai")
"""Engines that ask an API for images: no checkpoint, no torch, no GPU."""
CacheType = Literal["first_block_cache", "taylor_seer", "faster_cache", "pab", "mag_cache"]


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
    cache_type: CacheType | None = None
    """Reuse activations between denoising steps (diffusers' caches): faster, changes the image."""


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
    batch_size: int | Literal["auto"] = "auto"
    """Images per forward pass per replica, `auto` by size, memory and degrees; with an API samples of a prompt per request."""
    num_images_per_prompt: int = 1
    """Images for each row that does not say otherwise, each with a seed of its own."""
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
    stall_timeout: float = 1800.0
    """Seconds without progress, or without a sign of life from a peer, until a hung run is ended with stacks; 0: never."""
    debug: bool = False
    """One process, no background threads, full tracebacks, stage timings and tensor shapes on the terminal."""

    def __post_init__(self) -> None:
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
    """Prompts as .jsonl, .csv, .txt (one a line) or .parquet."""

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
        if self.input is None:
            raise UserError("Give --input TABLE (.csv, .jsonl or .parquet) with columns input_images and instruction.")


@dataclass(kw_only=True, slots=True)
class ParallelConfig:
    """xDiT's degrees: how many ranks share one image, and how. Read from DG_XDIT_* only."""

    ulysses_degree: int = 1
    ring_degree: int = 1
    pipefusion_degree: int = 1
    use_cfg_parallel: bool = False
    data_parallel_degree: int | None = None
    """Replicas. Default: what is left of the world."""


# -- flags that belong to other backends ---------------------------------------------------------------------------

LOCAL_ONLY = (
    "revision",
    "torch_dtype",
    "device",
    "trust_remote_code",
    "allow_pickle",
    "cache_dir",
    "max_sequence_length",
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
    given, defaults = settings(config), settings(RunConfig())
    idle = [
        flag
        for flag in (local if config.backend.is_remote else remote)
        if given[flag] != defaults[flag] or origins.get(flag, "default") != "default"
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


# -- the environment ----------------------------------------------------------------------------------------------

XDIT_PREFIX = "DG_XDIT_"
_TRUTH = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


def types_of(config_type: type) -> dict[str, Any]:
    """Flag name -> type, for a dataclass and the dataclasses in it (the flags have no prefix)."""
    hints = typing.get_type_hints(config_type)
    leaves: dict[str, Any] = {}
    for item in fields(config_type):
        hint = hints[item.name]
        leaves |= types_of(hint) if is_dataclass(hint) else {item.name: hint}
    return leaves


def parse_value(variable: str, text: str, hint: Any) -> Any:
    """One variable's text as its flag's type; tyro reads it as it reads the flag."""
    import tyro

    if hint is bool:
        if text.lower() not in _TRUTH:
            raise UserError(f"{variable}={text!r} is no truth value; write 1 or 0.")
        return _TRUTH[text.lower()]
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    hint = typing.Union[tuple(kind for kind in options if kind is not types.NoneType)]  # noqa: UP007
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            return tyro.cli(tyro.conf.Positional[hint], args=["--", text], console_outputs=False)
    except SystemExit:
        raise UserError(f"{variable}={text!r} is not {_describe(hint)}; correct or unset it.") from None


def _describe(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Union:
        return " or ".join(_describe(kind) for kind in typing.get_args(hint))
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    return {int: "a whole number", float: "a number", str: "text"}.get(hint, getattr(hint, "__name__", str(hint)))


def parallel_from_environment(environ: Mapping[str, str]) -> ParallelConfig:
    """Read the DG_XDIT_* degrees.

    Raises:
        UserError: a variable does not parse or is below 1.
    """
    given: dict[str, Any] = {}
    for name, hint in types_of(ParallelConfig).items():
        variable = XDIT_PREFIX + name.upper()
        if variable in environ:
            given[name] = parse_value(variable, environ[variable], hint)
            if not isinstance(given[name], bool) and given[name] < 1:
                raise UserError(f"{variable}={environ[variable]} must be 1 or more; unset it to leave it at 1.")
    return ParallelConfig(**given)


def check_variables(environ: Mapping[str, str], known: typing.Iterable[str]) -> None:
    """A DG_* variable that nothing reads is a spelling mistake, not a default."""
    flags = {f"DG_{name.upper()}" for name in known}
    allowed = flags | {XDIT_PREFIX + item.name.upper() for item in fields(ParallelConfig)}
    for variable in sorted(environ):
        if variable.startswith("DG_") and variable not in allowed:
            near = difflib.get_close_matches(variable, allowed, n=1, cutoff=0.0)[0]
            raise UserError(f"The variable {variable} is not one of dglaunch's. The nearest is {near}; or unset it.")


# -- the command line ---------------------------------------------------------------------------------------------


def _with_values(config: Any, values: Mapping[str, Any]) -> Any:
    """A copy of a config with these leaves replaced."""
    changed: dict[str, Any] = {}
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(value):
            changed[item.name] = _with_values(value, values)
        elif item.name in values:
            changed[item.name] = values[item.name]
    return replace(config, **changed)


def settings(config: Any) -> dict[str, Any]:
    """All leaves of a config as one flat dict, in JSON's types."""
    flat: dict[str, Any] = {}
    for item in fields(config):
        value = getattr(config, item.name)
        flat |= (
            settings(value) if is_dataclass(value) else {item.name: str(value) if isinstance(value, Path) else value}
        )
    return flat


def parse(
    config_type: type[Config], arguments: Sequence[str], environ: Mapping[str, str], prog: str, quiet: bool = False
) -> tuple[Config, dict[str, str]]:
    """Command line and environment to a config, and for each flag where its value came from.

    A flag that tyro cannot parse ends the process with exit 2 and tyro's text, unless `quiet` (other ranks).
    """
    import tyro

    leaves = types_of(config_type)
    check_variables(environ, known_flags())
    from_environment = {
        name: parse_value(f"DG_{name.upper()}", environ[f"DG_{name.upper()}"], hint)
        for name, hint in leaves.items()
        if f"DG_{name.upper()}" in environ
    }
    # The flags come first into a plain namespace, so that a value from the environment can satisfy a check
    # (--prompts_file or --prompt) that the flags alone would not.
    given = {
        word.split("=")[0].lstrip("-").replace("-", "_").removeprefix("no_")
        for word in arguments
        if word.startswith("--")
    }
    missing = {name: value for name, value in from_environment.items() if name not in given}
    words = [word for name, value in missing.items() for word in _as_words(name, value)]
    config = tyro.cli(
        config_type,
        prog=prog,
        args=[*words, *arguments],
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
        use_underscores=True,
        console_outputs=not quiet,
    )
    origins = {
        name: "flag" if name in given else f"DG_{name.upper()}" if name in missing else "default" for name in leaves
    }
    return config, origins


def _as_words(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no_{name}"]
    return [f"--{name}={value}"]


COMMANDS: dict[str, type[RunConfig]] = {"t2i": T2IConfig, "edit": EditingConfig}


def known_flags() -> set[str]:
    """Every flag of every command: a variable for another command is no mistake."""
    return {name for config_type in COMMANDS.values() for name in types_of(config_type)}


def take_world_size(arguments: list[str]) -> int | None:
    """Take `plan`'s own flag out of the arguments: the world to plan for, instead of the one that is there."""
    rest, value = _without(arguments, "world_size")
    arguments[:] = rest
    if value is None:
        return None
    if not value.isdigit() or int(value) < 1:
        raise UserError(f"--world_size {value}: a number of ranks of 1 or more is needed.")
    return int(value)


def torchrun_words(arguments: Sequence[str]) -> list[str]:
    """The same arguments without --num_gpus, for the ranks that torchrun starts."""
    return _without(arguments, "num_gpus")[0]


def without(arguments: Sequence[str], flag: str) -> list[str]:
    """The arguments without one flag and its value."""
    return _without(arguments, flag)[0]


def _without(arguments: Sequence[str], flag: str) -> tuple[list[str], str | None]:
    """The arguments without one flag and its value, and that value (the last one given)."""
    rest: list[str] = []
    value: str | None = None
    words = iter(arguments)
    for word in words:
        name, equals, text = word.partition("=")
        if name.startswith("--") and name[2:].replace("-", "_") == flag:
            value = text if equals else next(words, "")
        else:
            rest.append(word)
    return rest, value


def environment() -> Mapping[str, str]:
    """The process's environment (the one place that reads it for dglaunch's own variables)."""
    return os.environ
