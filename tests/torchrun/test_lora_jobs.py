"""LoRAs through whole jobs: 24 rows on ranks, splits and batch sizes, killed and resumed; optimizations; the embedding cache.

Against plain diffusers and peft one by one, or against a checkpoint that has the LoRA in its weights.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.lora_files import fitting_lora
from support.ranks import World, launch
from support.results import PROMPTS, difference, images, ledger, run_json, write_jsonl
from support.selection import rarely
from support.tiny_models import build

pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config`"),  # of a second LoRA, by peft itself
    pytest.mark.filterwarnings("ignore:TorchaoLoraLinear was instantiated"),  # it could not be merged
]
TOLERANCE = 2
"""Of 255."""
CELLS = ["one", "two", "three", "none", "one:0.5", "two:-0.7", "three:1.3", "one:0.4,three:0.6"]
ROWS = [{"prompt": PROMPTS[n % 23], "lora": CELLS[n * 5 % 8]} for n in range(24)]
SIZE = ["--height", "64", "--width", "64", "--num_inference_steps", "2"]
CACHES: dict[str, list[str]] = {
    "first_block_cache": ["--cache_threshold", "0.5"],
    "taylor_seer": ["--cache_interval", "2", "--cache_warmup", "1"],
    "faster_cache": [],
    "pab": [],
    "mag_cache": ["--num_inference_steps", "28"],
    "cache_dit": ["--cache_threshold", "1"],
}


@pytest.fixture(scope="module")
def models(families: Path) -> Path:
    build("flux", families / "flux")
    parts = {"one": ("transformer",), "two": ("transformer", "text_encoder"), "three": ("transformer",)}
    for seed, name in enumerate(parts):
        fitting_lora(families / "flux", families / "three" / f"{name}.safetensors", seed=seed, parts=parts[name])
    return families


def loras(models: Path, *names: str) -> list[Path]:
    return [models / "three" / f"{name}.safetensors" for name in names or ("one", "two", "three")]


def pipeline_of(folder: Path) -> Any:
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def drawn(pipeline: Any, prompt: str, seed: int, steps: int = 2) -> np.ndarray:
    import torch

    generator = torch.Generator().manual_seed(seed)
    output = pipeline(prompt=prompt, height=64, width=64, num_inference_steps=steps, generator=generator)
    return np.asarray(output.images[0].convert("RGB")).astype(int)


def one_by_one(models: Path) -> list[np.ndarray]:
    """The 24 rows by diffusers itself."""
    pipeline = pipeline_of(models / "flux")
    for file in loras(models):
        pipeline.load_lora_weights(str(file), weight_name=file.name, adapter_name=file.stem)
    made = []
    for n, row in enumerate(ROWS):
        words = [word.partition(":") for word in row["lora"].split(",") if word != "none"]
        if words:
            pipeline.enable_lora()
            pipeline.set_adapters([word[0] for word in words], [float(word[2] or 1) for word in words])
        else:
            pipeline.disable_lora()
        made.append(drawn(pipeline, row["prompt"], n))
    return made


# -- 24 rows ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_24_rows_with_three_loras_are_as_diffusers_makes_them_one_by_one(
    models: Path, tmp_path: Path, world: int
) -> None:
    table = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    base = ["t2i", "--model_name", models / "flux", *SIZE, "--prompts_file", table, "--lora", *loras(models)]
    split = {"DG_XDIT_ULYSSES_DEGREE": "2"} if world == 2 else {}
    words = [*base, "--backend", "xdit"] if world == 2 else base
    expected = one_by_one(models)
    wanted = {size: [*words, "--batch_size", str(size), "--output_dir", tmp_path / str(size)] for size in (1, 4, 8)}
    for case in launch(tmp_path, world, [(command, split) for command in wanted.values()]):
        assert case.codes == [0] * world, case.output
    for size in wanted:
        assert worst(tmp_path / str(size), expected) <= TOLERANCE, size
        assert size / 2 < max(line["batch_size"] for line in ledger(tmp_path / str(size))) <= size
    out = tmp_path / "resumed"
    for size in (1, 4):
        killed(World(tmp_path, world, [*words, "--batch_size", str(size), "--output_dir", out], split), out)
    (case,) = launch(tmp_path, world, [([*words, "--batch_size", "8", "--output_dir", out], split)])
    assert case.codes == [0] * world, case.output
    assert worst(out, expected) <= TOLERANCE
    assert len({line["batch_size"] for line in ledger(out)}) > 1, "made in one start"


def killed(world: World, out: Path) -> None:
    """Kill all ranks once there are some more images."""
    before, limit = len(list(out.glob("0*.png"))), time.monotonic() + 300
    while len(list(out.glob("0*.png"))) < before + 3 and world.poll() is None:
        assert time.monotonic() < limit
        time.sleep(0.01)
    world.kill()


def worst(folder: Path, expected: list[np.ndarray]) -> int:
    made = images(folder)
    assert sorted(made) == [f"{n:06d}.png" for n in range(len(expected))]
    return max(int(abs(mine.astype(int) - theirs).max()) for mine, theirs in zip(made.values(), expected))


# -- optimizations ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def merged(models: Path) -> Path:
    """The checkpoint with the LoRA in its weights."""
    folder = models / "flux-one"
    if not folder.exists():
        pipeline = pipeline_of(models / "flux")
        file = loras(models, "one")[0]
        pipeline.load_lora_weights(str(file), weight_name=file.name)
        pipeline.fuse_lora()
        pipeline.unload_lora_weights()
        pipeline.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_a_cache_does_what_it_does_with_the_lora_in_the_weights(models: Path, merged: Path, tmp_path: Path) -> None:
    table = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": prompt} for prompt in PROMPTS[:3]])
    base = ["t2i", "--height", "64", "--width", "64", "--prompts_file", table, "--batch_size", "2"]
    options = {"none": ["--num_inference_steps", "14"]} | {
        name: [*(["--num_inference_steps", "14"] if name != "mag_cache" else []), "--cache_type", name, *more]
        for name, more in CACHES.items()
    }
    commands = {}
    for name, words in options.items():
        over = ["--model_name", models / "flux", "--lora", *loras(models, "one"), "--output_dir", tmp_path / name]
        commands[name] = [*base, *words, *over]
        commands[f"{name} merged"] = [
            *base, *words, "--model_name", merged, "--output_dir", tmp_path / f"{name} merged",
        ]  # fmt: skip
    for case in launch(tmp_path, 1, [(command, {}) for command in commands.values()]):
        assert case.codes == [0], case.output
    far = {name: difference(tmp_path / name, tmp_path / f"{name} merged") for name in options}
    assert all(value <= TOLERANCE for value in far.values()), far
    assert all(difference(tmp_path / name, tmp_path / "none") > TOLERANCE for name in CACHES if name != "mag_cache")


def casting(pipeline: Any, file: Path) -> None:
    import torch

    pipeline.load_lora_weights(str(file), weight_name=file.name)
    pipeline.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)


def int8(pipeline: Any, file: Path) -> None:
    from torchao import quantization as torchao

    def modulates(module: Any, name: str) -> bool:
        return name.startswith("norm") and type(module).__name__ == "Linear"

    def others(module: Any, name: str) -> bool:
        return not name.startswith("norm") and type(module).__name__ == "Linear"

    blocks = [*pipeline.transformer.transformer_blocks, *pipeline.transformer.single_transformer_blocks]
    for block in blocks:
        torchao.quantize_(block, torchao.Int8DynamicActivationInt8WeightConfig(), others)
        torchao.quantize_(block, torchao.Int8WeightOnlyConfig(), modulates)
    pipeline.load_lora_weights(str(file), weight_name=file.name)


IN_ORDER: dict[str, tuple[list[str], Callable[[Any, Path], None]]] = {
    "casting": (["--enable_layerwise_casting"], casting),
    "int8": (["--quantization", "int8"], int8),
}


@pytest.mark.parametrize("option", rarely(IN_ORDER, set(IN_ORDER)))
def test_weights_of_fewer_bits_in_the_order_that_is_right(models: Path, tmp_path: Path, option: str) -> None:
    from support.commands import dglaunch

    words, apply = IN_ORDER[option]
    table = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": prompt} for prompt in PROMPTS[:3]])
    (file,) = loras(models, "one")
    command = ["t2i", "--model_name", models / "flux", *SIZE, "--prompts_file", table, "--batch_size", "1"]
    ended = dglaunch(*command, *words, "--lora", file, "--output_dir", tmp_path / "out")
    assert ended.code == 0, ended.output
    pipeline = pipeline_of(models / "flux")
    apply(pipeline, file)
    assert worst(tmp_path / "out", [drawn(pipeline, prompt, n) for n, prompt in enumerate(PROMPTS[:3])]) <= TOLERANCE
    assert "layers of the transformer" in run_json(tmp_path / "out")["effects"]["lora"]


@pytest.mark.slow
def test_layers_that_come_and_go_draw_the_same_mixture(models: Path) -> None:
    """Group offloading by layers, without the streams that only a GPU has."""
    import torch

    from dglaunch.backends.diffusers.loras import PipelineLoras
    from dglaunch.data.task import Task
    from dglaunch.models.families import FAMILIES
    from dglaunch.models.lora import read_loras

    found = read_loras([str(file) for file in loras(models)])
    tasks = [Task(index=n, prompt="x", seed=n, stem="", lora=found.of_row(cell)) for n, cell in enumerate(CELLS[:6])]
    made = []
    for offloads in (False, True):
        pipeline, mixed = pipeline_of(models / "flux"), PipelineLoras(found, FAMILIES["FluxPipeline"].lora)
        mixed.attach(pipeline)
        if offloads:
            cpu = torch.device("cpu")
            pipeline.transformer.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type="leaf_level")
        mixed.use(tasks)
        generators = [torch.Generator().manual_seed(task.seed) for task in tasks]
        call = {"height": 64, "width": 64, "num_inference_steps": 2, "output_type": "np"}
        made.append(pipeline(prompt=["x"] * len(tasks), generator=generators, **call).images)
    assert abs(made[0] - made[1]).max() == 0
    assert abs(made[0][0] - made[0][3]).max() > TOLERANCE / 255


@pytest.mark.slow  # minutes of gcc
def test_a_compiled_model_draws_each_set_of_them(models: Path, tmp_path: Path) -> None:
    from support.ranks import run_forked

    rows = [{"prompt": PROMPTS[n], "lora": cell} for n, cell in enumerate(["one", "none", "two:0.5", "one"])]
    table = write_jsonl(tmp_path / "rows.jsonl", rows)
    words = [
        "t2i",
        "--model_name",
        models / "flux",
        *SIZE,
        "--prompts_file",
        table,
        "--lora",
        *loras(models, "one", "two"),
    ]
    for name, more in (("plain", []), ("compiled", ["--enable_compile", "--cache_dir", str(tmp_path / "cache")])):
        ended = run_forked(tmp_path, *words, *more, "--output_dir", tmp_path / name)
        assert ended.code == 0, ended.output
    assert difference(tmp_path / "compiled", tmp_path / "plain") <= TOLERANCE
    assert max(line["batch_size"] for line in ledger(tmp_path / "compiled")) == 2, "one set a batch"


def test_a_set_of_loras_for_each_row_is_not_compiled(tmp_path: Path) -> None:
    from support.commands import dglaunch
    from support.lora_files import write_lora

    file = write_lora(tmp_path / "x.safetensors")
    table = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "x", "lora": f"x:{n / 100}"} for n in range(30)])
    ended = dglaunch("plan", "t2i", "--prompts_file", table, "--lora", file, "--enable_compile")
    assert ended.code == 2 and "and these rows have 30; beyond 24" in " ".join(ended.output.split()), ended.output


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--enable_fuse_qkv"], "leaves out the LoRAs of query, key and value"),
        (["--enable_cpu_offload"], "nobody has measured what the two do together"),
    ],
)
def test_what_would_lose_a_lora_is_refused(tmp_path: Path, words: list[str], told: str) -> None:
    from support.commands import dglaunch
    from support.lora_files import write_lora

    file = write_lora(tmp_path / "x.safetensors")
    ended = dglaunch("plan", "t2i", "--prompt", "x", "--gpu", "H100", "--lora", file, *words)
    assert ended.code == 2 and told in " ".join(ended.output.split()), ended.output


# -- prompts ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_embedding_cache_knows_the_part_for_text_encoders(models: Path, tmp_path: Path) -> None:
    table = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": prompt} for prompt in PROMPTS[:4]])
    base = ["t2i", "--model_name", models / "flux", *SIZE, "--prompts_file", table]
    kept = ["--embedding_cache", tmp_path / "texts"]
    one, two = (["--lora", *loras(models, name)] for name in ("one", "two"))
    wanted: dict[str, list[Any]] = {
        "plain": kept, "one": [*kept, *one], "two": [*kept, *two], "two again": [*kept, *two],
        "half": [*kept, "--lora", f"{two[1]}:0.5"], "one inline": ["--encode", "inline", *one],
        "two inline": ["--encode", "inline", *two], "half inline": ["--encode", "inline", "--lora", f"{two[1]}:0.5"],
    }  # fmt: skip
    commands = [[*base, *words, "--output_dir", tmp_path / name] for name, words in wanted.items()]
    for case in launch(tmp_path, 1, [(command, {}) for command in commands]):
        assert case.codes == [0], case.output
    cached = {name: "4 of this rank's from the embedding cache" in run_json(tmp_path / name)["effects"]["encode"]
              for name in ("plain", "one", "two", "two again", "half")}  # fmt: skip
    assert cached == {"plain": False, "one": True, "two": False, "two again": True, "half": False}
    for name in ("one", "two", "half"):
        assert difference(tmp_path / name, tmp_path / f"{name} inline") <= TOLERANCE, name
    assert difference(tmp_path / "two again", tmp_path / "two") == 0
