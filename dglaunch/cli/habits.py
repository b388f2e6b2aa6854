"""What is said of a flag that a command does not have: what people type by habit, else the nearest flag."""

import difflib
from collections.abc import Mapping

from dglaunch import diffgentor
from dglaunch.cli.flag_table import Flag, flags_of
from dglaunch.cli.own_flags import AROUND
from dglaunch.config import COMMANDS
from dglaunch.environment import TRUTHS

DEGREES = "xDiT's degrees are variables, with --backend xdit: {} (docs/xdit.md)."
SECRET = "keys come from OPENAI_API_KEY, GEMINI_API_KEY or GOOGLE_API_KEY only: other users see a command's words."
PREEMPTED = (
    "a job may be preempted as it is. The script of dglaunch slurm t2i ... goes back to the queue and on with what is left "
    "(--max_requeues), on the nodes that --partition or --sbatch=--qos=NAME chooses; elsewhere the same command goes on."
)

HABITS: dict[str, str] = {
    **diffgentor.FLAGS,
    "continue": "resuming is what happens anyway: start the same command again (--overwrite starts anew).",
    "skip_existing": "what is there is kept anyway: start the same command again (--overwrite starts anew).",
    "force": "--overwrite",
    "dry_run": "dglaunch plan COMMAND, with the same flags, prints what a run would do and stops.",
    "dryrun": "dglaunch plan COMMAND, with the same flags, prints what a run would do and stops.",
    "log_level": "there is one level; --debug shows tracebacks, stage timings and shapes, in one process.",
    "loglevel": "there is one level; --debug shows tracebacks, stage timings and shapes, in one process.",
    "verbose": "--debug", "v": "--debug", "quiet": "output goes where the shell sends it: add > /dev/null.",
    "version": "dglaunch --version says it.",
    "config_file": "--config", "cfg_file": "--config", "yaml": "--config", "c": "--config",
    # what to make
    "p": "--prompt", "text": "--prompt", "caption": "--prompt",
    "prompts": "--prompts_file", "prompt_file": "--prompts_file", "prompts_path": "--prompts_file",
    "prompt_path": "--prompts_file", "input_file": "--prompts_file", "from_file": "--prompts_file",
    "image": "--input", "images": "--input", "input_image": "--input", "input_dir": "--input", "table": "--input",
    # model
    "m": "--model_name", "model": "--model_name", "model_id": "--model_name", "model_path": "--model_name",
    "ckpt": "--model_name", "ckpt_path": "--model_name", "checkpoint": "--model_name",
    "pretrained_model_name_or_path": "--model_name", "engine": "--backend",
    "dtype": "--torch_dtype", "precision": "--torch_dtype", "weight_dtype": "--torch_dtype",
    "mixed_precision": "--torch_dtype", "bf16": "write --torch_dtype bf16.", "fp16": "write --torch_dtype fp16.",
    "fp32": "write --torch_dtype fp32.", "half": "write --torch_dtype fp16.",
    "cpu": "write --device cpu.", "cuda": "write --device cuda.", "api_key": SECRET, "token": SECRET,
    "sampler": "--scheduler", "shift": "--scheduler_options shift=VALUE",
    # images
    "steps": "--num_inference_steps", "num_steps": "--num_inference_steps", "inference_steps": "--num_inference_steps",
    "sampling_steps": "--num_inference_steps", "sample_steps": "--num_inference_steps", "infer_steps": "--num_inference_steps",
    "denoising_steps": "--num_inference_steps", "num_sampling_steps": "--num_inference_steps",
    "cfg": "--guidance_scale", "cfg_scale": "--guidance_scale", "guidance": "--guidance_scale",
    "scale": "--guidance_scale", "g": "--guidance_scale",
    "n": "--num_images_per_prompt", "num_images": "--num_images_per_prompt", "num_samples": "--num_images_per_prompt",
    "n_samples": "--num_images_per_prompt", "samples": "--num_images_per_prompt", "samples_per_prompt": "--num_images_per_prompt",
    "images_per_prompt": "--num_images_per_prompt", "repeat": "--num_images_per_prompt",
    "size": "write --width 1024 --height 1024.", "resolution": "write --width 1024 --height 1024.",
    "image_size": "write --width 1024 --height 1024.", "aspect_ratio": "write --width and --height in pixels.",
    "w": "--width", "h": "--height", "image_width": "--width", "image_height": "--height",
    "negative": "--negative_prompt", "neg_prompt": "--negative_prompt", "neg": "--negative_prompt",
    "seeds": "--seed", "s": "--seed", "random_seed": "--seed", "manual_seed": "--seed",
    # speed and memory
    "batch": "--batch_size", "bs": "--batch_size", "b": "--batch_size", "bsz": "--batch_size",
    "compile": "--enable_compile", "torch_compile": "--enable_compile", "use_torch_compile": "--enable_compile",
    "offload": "--enable_cpu_offload", "cpu_offload": "--enable_cpu_offload", "low_vram": "--enable_cpu_offload",
    "enable_model_cpu_offload": "--enable_cpu_offload", "lowvram": "--enable_cpu_offload",
    "enable_sequential_cpu_offload": "--enable_group_offloading", "sequential_offload": "--enable_group_offloading",
    "vae_tiling": "--enable_vae_tiling", "vae_slicing": "--enable_vae_slicing", "enable_tiling": "--enable_vae_tiling",
    "enable_slicing": "--enable_vae_slicing", "quantize": "--quantization", "quant": "--quantization",
    "fp8": "write --quantization fp8.", "int8": "write --quantization int8.", "nf4": "write --quantization nf4.",
    "attention": "--attention_backend", "attn": "--attention_backend", "cache": "--cache_type",
    "teacache": "--cache_type", "xformers": "write --attention_backend xformers.",
    "tf32": "--enable_tf32", "allow_tf32": "--enable_tf32",
    # output
    "webdataset": "--store webdataset", "parquet": "--store parquet", "shards": "--store webdataset", "storage": "--store",
    "max_shard_size": "--shard_size", "number_sample_per_shard": "--shard_size, in megabytes (at most 10,000 images).",
    "o": "--output_dir", "out": "--output_dir", "output": "--output_dir", "outdir": "--output_dir",
    "out_dir": "--output_dir", "output_path": "--output_dir", "output_folder": "--output_dir", "save_dir": "--output_dir",
    "save_path": "--output_dir", "save_folder": "--output_dir", "results_dir": "--output_dir", "result_dir": "--output_dir",
    "format": "--output_format", "ext": "--output_format", "image_format": "--output_format", "file_type": "--output_format",
    "html": "--gallery",
    # several machines
    "gpus": "--num_gpus", "ngpus": "--num_gpus", "num_gpu": "--num_gpus", "n_gpus": "--num_gpus", "ngpu": "--num_gpus",
    "nproc": "--num_gpus", "nproc_per_node": "--num_gpus", "num_devices": "--num_gpus", "gpu_ids": "set CUDA_VISIBLE_DEVICES=0,1.",
    "device_id": "set CUDA_VISIBLE_DEVICES=1.", "nnodes": "--num_nodes", "rank": "--node_rank",
    "preemptible": PREEMPTED, "preemptable": PREEMPTED, "preempt": PREEMPTED, "preemption": PREEMPTED, "spot": PREEMPTED,
    "requeue": PREEMPTED, "interruptible": PREEMPTED,
    "num_workers": "--num_gpus", "workers": "--num_gpus", "concurrency": "--num_processes", "max_workers": "--num_processes",
    "ulysses_degree": DEGREES.format("DG_XDIT_ULYSSES_DEGREE=2"), "ulysses": DEGREES.format("DG_XDIT_ULYSSES_DEGREE=2"),
    "sp_degree": DEGREES.format("DG_XDIT_ULYSSES_DEGREE=2"), "sequence_parallel": DEGREES.format("DG_XDIT_ULYSSES_DEGREE=2"),
    "ring_degree": DEGREES.format("DG_XDIT_RING_DEGREE=2"), "ring": DEGREES.format("DG_XDIT_RING_DEGREE=2"),
    "cfg_parallel": DEGREES.format("DG_XDIT_USE_CFG_PARALLEL=1"),
    "use_cfg_parallel": DEGREES.format("DG_XDIT_USE_CFG_PARALLEL=1"),
    "data_parallel_degree": DEGREES.format("DG_XDIT_DATA_PARALLEL_DEGREE=4; left out, it is what is left of the world"),
    "dp": DEGREES.format("DG_XDIT_DATA_PARALLEL_DEGREE=4; left out, it is what is left of the world"),
    "pipefusion_parallel_degree": "xfuser's PipeFusion only approximates the image, and is not offered (docs/xdit.md).",
    "pipefusion_degree": "xfuser's PipeFusion only approximates the image, and is not offered (docs/xdit.md).",
    "tensor_parallel_degree": "write --shard tensor, and set DG_SHARD_DEGREE=2.",
    "tensor_parallel_size": "write --shard tensor, and set DG_SHARD_DEGREE=2.",
    "tp": "write --shard tensor, and set DG_SHARD_DEGREE=2.", "tp_size": "write --shard tensor, and set DG_SHARD_DEGREE=2.",
    "fsdp": "write --shard fsdp, and set DG_SHARD_DEGREE=2.", "use_fsdp": "write --shard fsdp, and set DG_SHARD_DEGREE=2.",
    "context_parallel": "write --parallel context, and set DG_PARALLEL_DEGREE=2.",
    "cp_degree": "write --parallel context, and set DG_PARALLEL_DEGREE=2.",
    # APIs
    "base_url": "--api_base", "api_url": "--api_base", "url": "--api_base", "endpoint": "--api_base",
    "retries": "--api_max_retries", "budget": "--max_cost", "max_price": "--max_cost",
    "batch_api": "--api_batch", "batch_mode": "--api_batch", "use_batch_api": "--api_batch",
}  # fmt: skip
"""What is typed -> the flag that does it, or what to do instead as the end of a sentence."""


CLOSE = 0.8
"""Of difflib, from where a word is taken for a habit that is misspelt."""


def told(word: str, flags: Mapping[str, Flag], command: str) -> str:
    """Return what is said of a word that is no flag of a command: a sentence or two with the remedy.

    Args:
        word: as it was typed: --stpes, or a text that stands alone.
        flags: what the command has.
        command: t2i, plan t2i, verify, ...
    """
    if not word.startswith("-"):
        return f"{command} does not know what {word!r} is, which stands behind no flag.{_place_of(word, flags)}"
    name = word.lstrip("-").replace("-", "_")
    if habit := _habit(name, flags):
        return f"{command} has no {word}{habit}"
    if others := _commands_with(name):
        return f"{command} has no {word}, which is a flag of {' and '.join(others)}: dglaunch {others[0]} --help."
    by_name = [flag for flag in flags if not flags[flag].by_place]
    for near in difflib.get_close_matches(name, [*by_name, *HABITS], n=3, cutoff=0.65):
        if near in flags:
            return f"{command} has no {word}. The nearest is --{near}: {flags[near].first_sentence}"
        if difflib.SequenceMatcher(None, name, near).ratio() >= CLOSE and (habit := _habit(near, flags)):
            return f"{command} has no {word}, nor a --{near}{habit}"
    return f"{command} has no {word}, nor anything near it; dglaunch {command} --help all lists the flags."


def _habit(name: str, flags: Mapping[str, Flag]) -> str:
    """What is said of a name that people type by habit, to follow the name; empty: nothing that helps with this command."""
    habit = HABITS.get(name, "")
    if habit.startswith("--"):
        flag = flags.get(habit[2:])
        return f"; it is {habit} here: {flag.first_sentence}" if flag is not None else ""
    return f": {habit}" if habit and "config" in flags else ""


def _place_of(word: str, flags: Mapping[str, Flag]) -> str:
    """Where a word that stands alone may belong."""
    if word.lower() in TRUTHS:
        return " A switch takes no value: --overwrite turns it on, and --no_overwrite off."
    if "prompt" in flags:
        return " A prompt stands behind --prompt, a file of them behind --prompts_file."
    return ""


def _commands_with(name: str) -> list[str]:
    """The commands that have a flag, jobs first."""
    found = [command for command, config_type in COMMANDS.items() if name in flags_of(config_type)]
    return found or [command for command, around in AROUND.items() if name in flags_of(around.own)]
