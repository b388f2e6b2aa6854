"""Two values of each flag that changes the image, and how a family's tiny checkpoint is run with them.

    for value in VALUES["guidance_scale"].values:
        dglaunch(*command(model, folder), *value, "--output_dir", out)

The prompt is longer than the shortest --max_sequence_length here (also what it quotes: GLM-Image cuts nothing else), and the
picture wider than the widest tile of a VAE where
tiling is asked for: else a flag that works would look as if it did not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from support.edit_images import save_pictures
from support.results import write_jsonl

TEXT = "two blue dogs on the moon, at night, in the rain, with a green house by the sea " * 4
PROMPT = f'a sign that says "{TEXT}"'
WIDE = "--width=320"
"""More than a tile of most VAEs."""
WIDER = "--width=1088"
"""More than FLUX.2's."""


@dataclass(frozen=True, slots=True)
class Values:
    """The words of two runs that must not give the same image."""

    first: tuple[str, ...]
    second: tuple[str, ...]
    both: tuple[str, ...] = ()
    """What the two runs have in common besides: without it the flag may do nothing."""


def _two(flag: str, first: object, second: object, *both: str) -> Values:
    return Values((f"--{flag}={first}",), (f"--{flag}={second}",), both)


def _switch(*words: str, both: Sequence[str] = ()) -> Values:
    return Values((), words, tuple(both))


GUIDED = ("--guidance_scale=4",)
STEPS = ("--num_inference_steps=6",)
"""In which a cache has something to reuse."""
MORE_STEPS = ("--num_inference_steps=14",)
"""Enough for the caches that begin late."""
ALL_STEPS = ("--num_inference_steps=28",)
DBCACHE = ("--cache_type=cache_dit", "--cache_threshold=1")
VALUES: dict[str, Values] = {
    "seed": _two("seed", 1, 2),
    "height": _two("height", 64, 128),
    "width": _two("width", 64, 128),
    "num_inference_steps": _two("num_inference_steps", 2, 3),
    "guidance_scale": _two("guidance_scale", 2, 6),
    "negative_prompt": _two("negative_prompt", "a blue dog", "ugly, a house", *GUIDED),
    "max_sequence_length": _two("max_sequence_length", 64, 128),
    "enable_vae_tiling": _switch("--enable_vae_tiling", both=(WIDE,)),
    "enable_layerwise_casting": _switch("--enable_layerwise_casting"),
    "enable_tf32": _switch("--enable_tf32"),
    "quantization int8": _switch("--quantization=int8"),
    "quantization fp8": _switch("--quantization=fp8"),
    "quantization nf4": _switch("--quantization=nf4"),
    "cache_type first_block_cache": _switch("--cache_type=first_block_cache", "--cache_threshold=100", both=STEPS),
    "cache_type taylor_seer": _switch("--cache_type=taylor_seer", "--cache_interval=2", "--cache_warmup=1", both=STEPS),
    "cache_type faster_cache": _switch("--cache_type=faster_cache", both=MORE_STEPS),
    "cache_type pab": _switch("--cache_type=pab", both=MORE_STEPS),
    "cache_type mag_cache": _switch("--cache_type=mag_cache", both=ALL_STEPS),
    "cache_type cache_dit": _switch(*DBCACHE, "--cache_warmup=1", both=STEPS),
    "cache_threshold first_block_cache": _two("cache_threshold", 0.01, 100, "--cache_type=first_block_cache", *STEPS),
    "cache_threshold mag_cache": _two("cache_threshold", 0.01, 0.6, "--cache_type=mag_cache", *ALL_STEPS),
    "cache_threshold cache_dit": _two(
        "cache_threshold", 0.001, 1, "--cache_type=cache_dit", "--cache_warmup=1", *STEPS
    ),
    "cache_interval taylor_seer": _two("cache_interval", 2, 4, "--cache_type=taylor_seer", "--cache_warmup=1", *STEPS),
    "cache_interval faster_cache": _two("cache_interval", 2, 4, "--cache_type=faster_cache", *ALL_STEPS),
    "cache_interval pab": _two("cache_interval", 2, 4, "--cache_type=pab", *MORE_STEPS),
    "cache_warmup taylor_seer": _two("cache_warmup", 1, 4, "--cache_type=taylor_seer", "--cache_interval=2", *STEPS),
    "cache_warmup cache_dit": _two("cache_warmup", 1, 4, *DBCACHE, *STEPS),
}
"""By flag, and by value, or by the cache that it belongs to, where each is a thing of its own."""


def command(model: Path | str, folder: Path, edits: bool) -> list[str | Path]:
    """Return the words of a small job of a checkpoint, without an output folder."""
    small = ["--model_name", model, "--batch_size", "1"]
    if not edits:
        return ["t2i", *small, "--prompts_file", write_jsonl(folder / "prompts.jsonl", [{"prompt": PROMPT}])]
    save_pictures(folder / "images")
    row = {"input_images": ["images/a.png"], "instruction": PROMPT}
    return ["edit", *small, "--input", write_jsonl(folder / "edits.jsonl", [row])]


def small(values: Values, *, sizes: bool = True, texts: bool = True) -> list[str]:
    """Return the words of both runs that say nothing of what the flag is: a small picture, few steps, a short text.

    Args:
        sizes: whether the family takes a size.
        texts: whether it takes the length of texts.
    """
    given = {word.partition("=")[0] for word in (*values.first, *values.second, *values.both)}
    words = {"--num_inference_steps": "2"}
    if sizes:
        words |= {"--height": "64", "--width": "64"}
    if texts:
        words["--max_sequence_length"] = "64"
    return [f"{flag}={value}" for flag, value in words.items() if flag not in given]
