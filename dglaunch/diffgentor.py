"""What diffgentor's flags, variables and names are here: the one table that errors and docs/from_diffgentor.md are made of.

    FLAGS["true_cfg_scale"]                       --guidance_scale
    VARIABLES["DG_OPENAI_ENDPOINTS"]              --api_base, repeated, ...
    told_of_value("backend", "gemini")            diffgentor's gemini is google_genai here.

Names as of diffgentor 0.1.2 (its command line, its docs and its code); no code of it is here. An entry is a flag that does
the same (`--guidance_scale`), or the end of a sentence; `SAME` flags have their name here, too.
"""

from collections.abc import Iterable, Mapping

SERVES_NONE = (
    "folders of images are made here, and none are served; ask a server such as vLLM-Omni or SGLang by --api_base."
)
NO_SUCH_MODEL = (
    "this model is no diffusers pipeline, so it does not run here (dglaunch edit --help all lists --model_type)."
)
WITH_ADDRESS = "--api_base; or set OPENAI_BASE_URL or GOOGLE_GEMINI_BASE_URL."
REWRITING = (
    "--rewrite_prompts MODEL, with what to do as a text in --rewrite_instruction FILE; a chat server is --rewrite_api_base "
    "(docs/rewriting.md)."
)

FLAGS: Mapping[str, str] = {
    # of all its commands
    "optimize": (
        "each of its words is a flag here: torch_compile is --enable_compile, vae_slicing --enable_vae_slicing, flash_attention "
        "--attention_backend flash; docs/from_diffgentor.md has them all."
    ),
    "log_dir": (
        "lines go to the terminal, and what was done to run.json and the ledgers in --output_dir; for a file of each rank "
        "give torchrun --log-dir and --redirects 3."
    ),
    "max_retries": (
        "what failed is in failures.jsonl, and starting the same command again tries it again; of an API's answers "
        "--api_max_retries says how often they are asked for."
    ),
    "resume": "resuming is what happens anyway: start the same command again (--overwrite starts anew).",
    "no_resume": "--overwrite",
    # of edit
    "output_csv": (
        "the results are metadata.jsonl in --output_dir, a line an image with all columns of its row, and what failed "
        "failures.jsonl; pandas.read_json(..., lines=True) reads them."
    ),
    "instruction_key": "--instruction_column",
    "image_cache_dir": (
        "input images are files, addresses (https, s3, gs, az: fetched as their batch comes, and not kept) or bytes in a Parquet "
        "table; where they are to be fetched once, fetch them first and name the files."
    ),
    "true_cfg_scale": "--guidance_scale",
    "prompt_enhance_type": f"it is {REWRITING}",
    # of serve
    "mode": SERVES_NONE, "host": SERVES_NONE, "port": SERVES_NONE, "max_concurrent": SERVES_NONE,
}  # fmt: skip
"""Its flags that do not exist here -> what does their work."""

SAME: Mapping[str, str] = {
    "backend": "diffusers, xdit, openai, google_genai",
    "model_name": "",
    "model_type": "of `edit` only; see the names below",
    "device": "cuda or cpu; which GPU is CUDA_VISIBLE_DEVICES",
    "num_gpus": "starts torchrun with as many ranks; left out it is one, not all that there are",
    "seed": "image `sample` of row `index` has seed + index x samples + sample, a row's own seed comes first; not one for all",
    "torch_dtype": "bfloat16 on a GPU, float32 on a CPU",
    "attention_backend": "any name of diffusers, with xdit of xfuser",
    "cache_type": "no deep_cache; what a model cannot take is refused",
    "enable_compile": "", "enable_cpu_offload": "", "enable_vae_slicing": "", "enable_vae_tiling": "",
    "timeout": "600 s where it was 300",
    "api_max_retries": "5 where it was 0",
    "retry_delay": "",
    "max_global_workers": "no limit where it was 16",
    "num_processes": "requests at a time of each rank, not processes",
    "node_rank": "with --num_nodes; not under torchrun's own --nnodes",
    "num_nodes": "with --node_rank; not under torchrun's own --nnodes",
    "prompt": "", "output_dir": "outputs where none is named",
    "prompts_file": ".json and .parquet, too; seed, size, steps and guidance of a row count",
    "output_name_column": "a name that leaves the folder is refused",
    "num_images_per_prompt": "each has a seed of its own",
    "height": "", "width": "", "num_inference_steps": "",
    "guidance_scale": "0 is 0",
    "negative_prompt": "none where `edit` had a blank; Qwen's models need one",
    "batch_size": "a true batch; auto where it was 1",
    "input": "a folder of images, too",
    "filter_rows": "0:100 and 0,5,10, a comparison of columns, too",
}  # fmt: skip
"""Its flags that exist here under their name -> what is different."""

COMMANDS: Mapping[str, str] = {"serve": SERVES_NONE}
"""Its commands that do not exist here."""

VALUES: Mapping[str, Mapping[str, str]] = {
    "backend": {
        "gemini": "google_genai", "step1x": NO_SUCH_MODEL, "bagel": NO_SUCH_MODEL, "emu35": NO_SUCH_MODEL,
        "dreamomni2": NO_SUCH_MODEL, "hunyuan_image_3": NO_SUCH_MODEL, "deepgen": NO_SUCH_MODEL,
        "flux_kontext_official": "diffusers, with --model_name black-forest-labs/FLUX.1-Kontext-dev",
    },
    "model_type": {"flux2_edit": "flux2"},
    "cache_type": {"deep_cache": "for U-Nets only, which no cache here takes; first_block_cache is for transformers."},
}  # fmt: skip
"""By flag: values that it took and that are not taken here -> the value, or the end of a sentence."""

OPTIMIZE: Mapping[str, str] = {
    "torch_compile": "--enable_compile", "compile": "--enable_compile", "vae_slicing": "--enable_vae_slicing",
    "vae_tiling": "--enable_vae_tiling", "cpu_offload": "--enable_cpu_offload",
    "sequential_cpu_offload": "--enable_group_offloading", "group_offload": "--enable_group_offloading",
    "xformers": "--attention_backend xformers", "flash_attention": "--attention_backend flash",
    "flash": "--attention_backend flash", "sage_attention": "--attention_backend sage", "sage": "--attention_backend sage",
    "fuse_qkv": "--enable_fuse_qkv", "layerwise_cast": "--enable_layerwise_casting", "tf32": "--enable_tf32",
    "first_block_cache": "--cache_type first_block_cache", "pab_cache": "--cache_type pab", "pab": "--cache_type pab",
    "faster_cache": "--cache_type faster_cache", "cache_dit": "--cache_type cache_dit",
    "deep_cache": "nothing: it is for U-Nets, which no cache here takes",
}  # fmt: skip
"""Words of its --optimize."""


def _pool(name: str) -> dict[str, str]:
    """The variables of one of its pools of clients."""
    keys = {"OPENAI": "OPENAI_API_KEY", "GEMINI": "GEMINI_API_KEY or GOOGLE_API_KEY"}[name]
    at_a_time = "--num_processes and --max_global_workers, which limit requests at a time; a server that asks to slow down is obeyed."
    return {
        f"DG_{name}_ENDPOINTS": "--api_base, repeated (DG_API_BASE holds them with spaces between): each has its own limit.",
        f"DG_{name}_API_KEYS": f"one key, in {keys}.",
        f"DG_{name}_API_KEY": f"{keys}.",
        f"DG_{name}_BASE_URL": WITH_ADDRESS,
        f"DG_{name}_WEIGHTS": "not needed: a request goes to the server that is the freest, and one that fails is set aside.",
        f"DG_{name}_RATE_LIMITS": at_a_time,
        f"DG_{name}_RATE_LIMIT": at_a_time,
        f"DG_{name}_TIMEOUT": "--timeout (DG_TIMEOUT).",
        f"DG_{name}_MAX_RETRIES": "--api_max_retries (DG_API_MAX_RETRIES).",
        f"DG_{name}_RETRY_DELAY": "--retry_delay (DG_RETRY_DELAY).",
        f"DG_{name}_MAX_WORKERS": "--num_processes (DG_NUM_PROCESSES).",
    }


GEMINI_ONLY = {
    "DG_GEMINI_API_VERSION": "not needed: google-genai's own is used.",
    "DG_GEMINI_ASPECT_RATIO": "--image_config aspect_ratio=16:9, or --width and --height.",
}
ENHANCER = {
    "DG_PROMPT_ENHANCER_API_KEY": "OPENAI_API_KEY.",
    "DG_PROMPT_ENHANCER_API_BASE": "--rewrite_api_base (DG_REWRITE_API_BASE).",
    "DG_PROMPT_ENHANCER_MODEL": "--rewrite_prompts (DG_REWRITE_PROMPTS).",
    "DG_PROMPT_ENHANCER_TEMPERATURE": "--rewrite_temperature (DG_REWRITE_TEMPERATURE), 0 if it is not given.",
    "DG_PROMPT_ENHANCER_DEBUG": "not needed: both prompts are in the ledger, and rewritten.jsonl has them all.",
    "DG_PROMPT_ENHANCER_DEBUG_DIR": "not needed: both prompts are in the ledger, and rewritten.jsonl has them all.",
    "DG_FLUX2_ENHANCER_MODE": "--rewrite_prompts, with --rewrite_api_base for a server.",
}
VARIABLES: Mapping[str, str] = {
    **_pool("OPENAI"),
    **_pool("GEMINI"),
    **GEMINI_ONLY,
    **ENHANCER,
    "DG_SERVE_NUM_INFERENCE_STEPS": f"--num_inference_steps of a job; {SERVES_NONE}",
    "DG_SERVE_GUIDANCE_SCALE": f"--guidance_scale of a job; {SERVES_NONE}",
    "DG_FLUX_KONTEXT_OFFLOAD": "--enable_cpu_offload (DG_ENABLE_CPU_OFFLOAD), with --backend diffusers.",
    "DG_FLUX_KONTEXT_MAX_SEQUENCE_LENGTH": "--max_sequence_length (DG_MAX_SEQUENCE_LENGTH), with --backend diffusers.",
}
"""Its variables, all of which begin with DG_ -> what replaces them."""

PREFIXES: Mapping[str, str] = {
    "DG_OPENAI_": "a flag of the group APIs in dglaunch t2i --help all.",
    "DG_GEMINI_": "a flag of the group APIs in dglaunch t2i --help all.",
    "DG_PROMPT_ENHANCER_": REWRITING,
    "DG_SERVE_": SERVES_NONE,
    "DG_FLUX_KONTEXT_": "a flag of --backend diffusers (dglaunch edit --help all).",
    **dict.fromkeys(
        ("DG_STEP1X_", "DG_BAGEL_", "DG_EMU35_", "DG_DREAMOMNI2_", "DG_HUNYUAN_IMAGE_3_", "DG_DEEPGEN_"), NO_SUCH_MODEL
    ),
}
"""Beginnings of names of its variables -> what is said of those that VARIABLES does not name."""

OF_MODELS: Mapping[str, tuple[str, ...]] = {
    "DG_STEP1X_": ("VERSION", "SIZE_LEVEL", "OFFLOAD", "QUANTIZED"),
    "DG_BAGEL_": ("CFG_TEXT_SCALE", "CFG_IMG_SCALE", "CFG_INTERVAL", "TIMESTEP_SHIFT", "NUM_TIMESTEPS", "THINK"),
    "DG_EMU35_": (
        "VQ_PATH", "TOKENIZER_PATH", "CFG", "MAX_NEW_TOKENS", "IMAGE_AREA", "HF_DEVICE", "VQ_DEVICE", "VQ_TYPE", "GPUS_PER_MODEL",
    ),
    "DG_DREAMOMNI2_": ("VLM_PATH", "LORA_PATH", "TASK_TYPE", "OUTPUT_HEIGHT", "OUTPUT_WIDTH"),
    "DG_HUNYUAN_IMAGE_3_": (
        "GPUS_PER_MODEL", "ATTN_IMPL", "MOE_IMPL", "MOE_DROP_TOKENS", "USE_SYSTEM_PROMPT", "BOT_TASK", "INFER_ALIGN_IMAGE_SIZE",
        "MAX_NEW_TOKENS", "USE_TAYLOR_CACHE",
    ),
    "DG_DEEPGEN_": (
        "CONFIG", "DIFFUSION_MODEL_PATH", "AR_MODEL_PATH", "SD3_MODEL_PATH", "QWEN_MODEL_PATH", "DIFFUSION_PATH", "QWEN_PATH",
        "CHECKPOINT", "CFG_PROMPT", "HEIGHT", "WIDTH", "NUM_STEPS", "NUM_QUERIES", "MAX_LENGTH", "VIT_INPUT_SIZE",
        "CONNECTOR_HIDDEN_SIZE", "CONNECTOR_NUM_LAYERS", "CONNECTOR_LAYERS", "CONNECTOR_HEADS", "LORA_RANK", "ATTN_IMPL",
        "GPUS_PER_MODEL", "IMAGE_RESIZE_MODE", "DEBUG", "DEBUG_CHECKPOINT",
    ),
}  # fmt: skip
"""The variables of models that do not run here, by prefix."""


def told_of_variables(names: Iterable[str]) -> str:
    """Return what is said of those variables that are diffgentor's, in one paragraph; empty if none is. Their values, which may be
    keys, are not looked at."""
    found: dict[str, list[str]] = {}
    for name in names:
        if (here := _of_variable(name)) is not None:
            found.setdefault(here, []).append(name)
    if not found:
        return ""
    said = " ".join(f"Instead of {', '.join(group)}: {here}" for here, group in found.items())
    several = sum(map(len, found.values())) > 1
    return f"{said} {'They are variables' if several else 'It is a variable'} of diffgentor's; unset {'them' if several else 'it'}."


def _of_variable(name: str) -> str | None:
    if name in VARIABLES:
        return VARIABLES[name]
    return next((here for prefix, here in PREFIXES.items() if name.startswith(prefix)), None)


def told_of_value(flag: str, value: str) -> str:
    """Return what is said of a flag's value that diffgentor had, as a sentence; empty: it had none of the kind."""
    if flag == "device" and value.startswith("cuda:") and value[5:].isdecimal():
        return f" diffgentor's {value} is cuda here, with CUDA_VISIBLE_DEVICES={value[5:]}."
    here = VALUES.get(flag, {}).get(value)
    if here is None:
        return ""
    return f" diffgentor's {value}: {here}" if here.endswith((".", ")")) else f" diffgentor's {value} is {here} here."
