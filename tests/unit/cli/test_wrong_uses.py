"""Wrong uses: each ends with exit 2 and one paragraph, which says the remedy, before a model is loaded.

What each says stands in golden/wrong_uses.md, in full: a message that changes is read there by whoever changes it.
GOLDEN=1 pytest tests/unit/cli/test_wrong_uses.py writes it anew.
"""

import fcntl
import os
import re
from pathlib import Path

import pytest

from support.commands import dglaunch
from support.lora_files import LAYERS, write_lora
from support.results import write_jsonl
from support.versions import skip_what_is_newer

T2I = "t2i --prompts_file p.jsonl"
FLUX = f"{T2I} --model_name flux"
WRONG: dict[str, tuple[str, dict[str, str]]] = {
    "an unknown command": ("t2v --prompt x", {}),
    "a row that is not there": ("t2i --prompts_file p.jsonl --filter_rows 0,7,9", {}),
    "a column that is not there": ("t2i --prompts_file p.jsonl --filter_rows promt==1", {}),
    "a filter that is none": ("t2i --prompts_file p.jsonl --filter_rows seed=3", {}),
    "rows of one prompt": ("t2i --prompt x --limit 3", {}),
    "a redo of nothing": ("redo used", {}),
    "a redo of a row that is not there": ("redo used --filter_rows 3", {}),
    "a redo with another model": ("redo used --filter_rows 0 --set model_name=flux", {}),
    "a redo where nothing is": ("redo plain --failed", {}),
    "shards of nothing": (f"{T2I} --backend fake --shard_size 500", {}),
    "shards that are there already": (f"{T2I} --backend fake --store parquet --layout parquet", {}),
    "folders of shards": (f"{T2I} --backend fake --store webdataset --files_per_folder 100", {}),
    "folders of fewer than none": (f"{T2I} --backend fake --files_per_folder -3", {}),
    "a folder that keeps files": (f"{T2I} --backend fake --output_dir used --store webdataset", {}),
    "a misspelt flag": ("t2i --promt x", {}),
    "neither a prompt nor a file": ("t2i", {}),
    "a file that is not there": ("t2i --prompts_file nowhere.jsonl", {}),
    "a kind of file that is not read": ("t2i --prompts_file p.xlsx", {}),
    "an empty file": ("t2i --prompts_file empty.jsonl", {}),
    "bad rows": ("t2i --prompts_file bad.jsonl", {}),
    "a name that leaves the folder": ("t2i --prompts_file escape.jsonl --output_name_column name", {}),
    "a size that the model does not take": (f"{T2I} --width 1000", {}),
    "a batch of none": (f"{T2I} --batch_size 0", {}),
    "a word for a number": (f"{T2I} --seed abc", {}),
    "a revision of a folder": (f"{FLUX} --revision main", {}),
    "a model that is nowhere": (f"{T2I} --model_name ./FLUX.1-dev", {}),
    "a folder that is no checkpoint": (f"{T2I} --model_name plain", {}),
    "an output folder that cannot be": (f"{T2I} --backend fake --output_dir p.jsonl/out", {}),
    "another job's folder": (f"{T2I} --backend fake --output_dir used", {}),
    "a negative prompt for a model that ignores it": (f"{FLUX} --negative_prompt ugly", {}),
    "guidance of a distilled model": (f"{T2I} --model_name tiny --guidance_scale 4", {}),
    "a negative prompt without guidance": (f"{T2I} --model_name sd3 --negative_prompt ugly --guidance_scale 1", {}),
    "guidance without what it guides against": (f"{T2I} --model_name qwen --guidance_scale 4", {}),
    "a GPU that is not there": (f"{T2I} --device cuda", {}),
    "a GPU that is not known": (f"plan {T2I} --gpu RTX-4099", {}),
    "a GPU that comes in two sizes": (f"plan {T2I} --gpu A100", {}),
    "a GPU of no name": (f"plan {T2I} --gpu", {}),
    "a GPU for a backend without one": (f"plan {T2I} --backend fake --gpu H100", {}),
    "a GPU and the CPU": (f"plan {T2I} --device cpu --gpu H100", {}),
    "an optimisation that a GPU is too old for": (f"plan {FLUX} --gpu A100-80GB --quantization fp8 --enable_compile", {}),
    "a misspelt variable": (T2I, {"DG_XDIT_ULYSSES_DEGRE": "2"}),
    "a variable that does not parse": (T2I, {"DG_BATCH_SIZE": "3O"}),
    "degrees without xDiT": (T2I, {"DG_XDIT_ULYSSES_DEGREE": "2"}),
    "degrees that are not the world": (f"plan {FLUX} --backend xdit --world_size 8", {"DG_XDIT_ULYSSES_DEGREE": "3"}),
    "a product that is not the world": (
        f"plan {FLUX} --backend xdit --world_size 8",
        {"DG_XDIT_ULYSSES_DEGREE": "2", "DG_XDIT_DATA_PARALLEL_DEGREE": "2"},
    ),
    "heads that cannot be divided": (f"plan {FLUX} --backend xdit --world_size 8", {"DG_XDIT_ULYSSES_DEGREE": "8"}),
    "heads of keys that cannot be divided": (
        f"plan {T2I} --model_name lumina2 --backend xdit --world_size 3",
        {"DG_XDIT_ULYSSES_DEGREE": "3"},
    ),
    "a text that cannot be split": (
        f"plan {FLUX} --backend xdit --world_size 2 --max_sequence_length 77",
        {"DG_XDIT_ULYSSES_DEGREE": "2"},
    ),
    "a text length that xfuser drops": (
        f"plan {T2I} --model_name sd3 --backend xdit --world_size 2 --max_sequence_length 128",
        {"DG_XDIT_USE_CFG_PARALLEL": "1"},
    ),
    "tokens in multiples that cannot be split": (
        f"plan {T2I} --model_name zimage --backend xdit --world_size 3",
        {"DG_XDIT_ULYSSES_DEGREE": "3"},
    ),
    "an image that cannot be split": (
        f"plan {FLUX} --backend xdit --world_size 4 --height 48 --width 48",
        {"DG_XDIT_ULYSSES_DEGREE": "4"},
    ),
    "a model that xDiT does not have": (f"{T2I} --backend xdit --model_name sdxl", {}),
    "shared weights on one rank": (f"{FLUX} --shard fsdp", {}),
    "a degree without its flag": (f"plan {FLUX} --world_size 2", {"DG_SHARD_DEGREE": "2"}),
    "a shared model that is not the world": (f"plan {FLUX} --world_size 8 --shard fsdp", {"DG_SHARD_DEGREE": "3"}),
    "images and weights over other ranks": (
        f"plan {FLUX} --world_size 4 --shard fsdp --parallel context", {"DG_SHARD_DEGREE": "4", "DG_PARALLEL_DEGREE": "2"},
    ),
    "shared weights under xDiT": (f"plan {FLUX} --backend xdit --world_size 2 --shard fsdp", {"DG_SHARD_DEGREE": "2"}),
    "a family without a plan": (
        f"plan {T2I} --model_name zimage --world_size 2 --parallel context", {"DG_PARALLEL_DEGREE": "2"},
    ),
    "a cache with shared weights": (
        f"plan {FLUX} --world_size 2 --shard fsdp --cache_type pab", {"DG_SHARD_DEGREE": "2"},
    ),
    "prompts kept by ranks that share their encoder": (
        f"plan {FLUX} --world_size 2 --shard fsdp --embedding_cache texts", {"DG_SHARD_DEGREE": "2"},
    ),
    "heads that tensor parallelism cannot divide": (
        f"plan {FLUX} --world_size 5 --shard tensor", {"DG_SHARD_DEGREE": "5"},
    ),
    "tensor and context parallelism": (
        f"plan {FLUX} --world_size 2 --shard tensor --parallel context", {"DG_SHARD_DEGREE": "2", "DG_PARALLEL_DEGREE": "2"},
    ),
    "xfuser's cache without xfuser": (f"{FLUX} --cache_type fbcache", {}),
    "xfuser's cache for a family without it": (f"{T2I} --model_name qwen --cache_type fbcache", {}),
    "a cache that decides over the world": (f"{FLUX} --backend xdit --cache_type cache_dit", {}),
    "PipeFusion": (f"plan {FLUX} --backend xdit --world_size 2", {"DG_XDIT_PIPEFUSION_DEGREE": "2"}),
    "CFG parallel for a distilled model": (f"plan {FLUX} --backend xdit --world_size 2", {"DG_XDIT_USE_CFG_PARALLEL": "1"}),
    "ring for Qwen": (f"plan {T2I} --backend xdit --model_name qwen --world_size 2", {"DG_XDIT_RING_DEGREE": "2"}),
    "prompts ahead for an unknown pipeline": (f"{T2I} --model_name sdxl --encode ahead", {}),
    "a cache that nothing fills": (f"{FLUX} --encode inline --embedding_cache texts", {}),
    "a cache that xDiT would not use": (f"{FLUX} --backend xdit --cache_type first_block_cache", {}),
    "a benchmark's layout for another table": (f"{T2I} --layout geneval", {}),
    "half of the node's place": (f"{T2I} --node_rank 1", {}),
    "a node beyond the last": (f"{T2I} --node_rank 4 --num_nodes 4", {}),
    "an optimisation whose package is missing": (f"{T2I} --attention_backend sage", {}),
    "a family for an API": ("edit --input t.csv --backend openai --model_name gpt-image-2 --model_type qwen", {}),
    "an API that does not edit": (
        "edit --input t.csv --backend google_genai --model_name imagen-4.0-generate-001", {},
    ),
    "a size that an API does not have": (
        f"{T2I} --backend openai --model_name gpt-image-2 --width 512 --height 512", {},
    ),
    "a model that an API has no more": (f"{T2I} --backend openai --model_name gpt-image-1", {}),
    "an option that an API's model does not have": (
        f"{T2I} --backend google_genai --model_name gemini-3.1-flash-image --quality high", {},
    ),
    "a key and a project": (
        f"{T2I} --backend google_genai --model_name gemini-3.1-flash-image --api_project mine", {"GEMINI_API_KEY": "k"},
    ),
    "optimisations that exclude each other": (f"{T2I} --enable_layerwise_casting --quantization int8", {}),
    "an optimisation that this family does not have": (f"{T2I} --model_name qwen --enable_fuse_qkv", {}),
    "a GPU's optimisation on a CPU": (f"{T2I} --enable_group_offloading", {}),
    "a parameter of another cache": (f"{T2I} --cache_type pab --cache_threshold 0.1", {}),
    "prompts that are too long": ("t2i --prompts_file long.jsonl --on_long_prompt fail", {}),
    "a text that is longer than the pipeline takes": (f"{FLUX} --max_sequence_length 4096", {}),
    "a text that is longer than it takes, for another family": (
        f"{T2I} --model_name qwen --max_sequence_length 1025", {},
    ),
    "a folder that is an unset variable": (f"{T2I} --output_dir=", {}),
    "a rank alone": (T2I, {"RANK": "0"}),
    "a side that WebP does not have": (f"{T2I} --output_format webp --width 16384", {}),
    "seeds beyond the last": ("t2i --prompts_file ids.jsonl --num_images_per_prompt 4", {}),
    "columns that look like settings": ("t2i --prompts_file near.csv", {}),
    "the same mistake in many rows": ("t2i --prompts_file near.csv --prompt_column text", {}),
    "a column for seeds that is not there": ("t2i --prompts_file near.csv --seed_column sed", {}),
    "a template of no column": ("t2i --prompts_file near.csv --prompt_template {promt}", {}),
    "a template that is none": ("t2i --prompts_file near.csv --prompt_template {prompt", {}),
    "a grid of nothing there is": (f"{T2I} --grid guidence_scale=2,4", {}),
    "a grid of what is no number": (f"{T2I} --grid seed=1,x", {}),
    "a grid beside its flag": (f"{T2I} --grid seed=1,2 --seed 5", {}),
    "columns without a table": ("t2i --prompt x --seed_column s", {}),
    "a pattern that fits nothing": ("t2i --prompts_file tables/*.csv", {}),
    "a LoRA that is nowhere": (f"{FLUX} --lora style=nowhere.safetensors:0.8", {}),
    "a LoRA of which half is missing": (f"{FLUX} --lora half.safetensors", {}),
    "a row with a LoRA that is not given": ("t2i --prompts_file loras.jsonl --lora style=whole.safetensors", {}),
    "a LoRA and fused projections": (f"{FLUX} --lora whole.safetensors --enable_fuse_qkv", {}),
    "LoRAs by row where they are added to the weights": (
        "plan t2i --prompts_file rows.jsonl --model_name sd3 --backend xdit --world_size 2 --lora style=whole.safetensors",
        {"DG_XDIT_ULYSSES_DEGREE": "2"},
    ),
    "a flag that the pipeline does not take": (f"{T2I} --model_name sdxl --max_sequence_length 128", {}),
}  # fmt: skip
GOLDEN = Path(__file__).parent / "golden" / "wrong_uses.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, families: Path) -> Path:
    """The files that the wrong uses name."""
    from support.tiny_models import build

    folder = tmp_path_factory.mktemp("wrong")
    for name, family in [("qwen", "qwenimage"), *((f, f) for f in ("flux", "sdxl", "lumina2", "sd3", "zimage"))]:
        (folder / name).symlink_to(build(family, families / family))
    write_lora(folder / "whole.safetensors")
    write_lora(folder / "half.safetensors", change={f"{LAYERS[0]}.lora_A.weight": None})
    write_jsonl(
        folder / "loras.jsonl", [{"prompt": "a cat", "lora": "stile:0.5"}, {"prompt": "a fox", "lora": "style:x"}]
    )
    write_jsonl(folder / "rows.jsonl", [{"prompt": "a cat", "lora": "style"}, {"prompt": "a fox", "lora": "none"}])
    (folder / "plain").mkdir()
    (folder / "empty.jsonl").write_text("")
    write_jsonl(folder / "p.jsonl", [{"prompt": "a cat"}])
    (folder / "bad.jsonl").write_text('{"prompt": ""}\n{"prompt": "a", "seed": 1.5}\n{"prompt": "a"\n')
    rows = "".join(f"a fox {n},{n},7,euler\n" for n in range(20))
    (folder / "near.csv").write_text("Prompt,Seed,cfg,Sampler\n" + rows)
    write_jsonl(folder / "escape.jsonl", [{"prompt": "a", "name": "../../etc/passwd"}])
    write_jsonl(folder / "long.jsonl", [{"prompt": "a red star " * n} for n in (1, 8, 2, 9)])
    write_jsonl(folder / "ids.jsonl", [{"prompt": "a cat", "id": 8_999_999_999_999_999_999}])
    dogs = write_jsonl(folder / "dogs.jsonl", [{"prompt": "a dog"}])
    ended = dglaunch("t2i", "--backend", "fake", "--prompts_file", dogs, "--output_dir", folder / "used")
    assert ended.code == 0, ended.output
    return folder


def run(folder: Path, words: str, variables: dict[str, str]) -> tuple[int, str]:
    """Exit code and text of a command that is started in the folder."""
    ended = dglaunch(*words.split(), cwd=folder, **variables, COLUMNS="2000")
    return ended.code, paragraph(ended.output.replace(str(folder) + "/", "").replace(str(folder), "."))


def paragraph(text: str) -> str:
    """What was said, as one line."""
    said = " ".join(line.strip() for line in text.splitlines() if line.strip())
    start = said.find("dglaunch: ")
    return said[start:] if start >= 0 else said


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_use_is_told_in_one_paragraph_with_its_remedy(folder: Path, name: str) -> None:
    before = {path: path.stat().st_mtime_ns for path in (folder / "used").glob("[!.]*")}
    code, said = run(folder, *WRONG[name])
    skip_what_is_newer(said)
    assert code == 2, said
    assert "Traceback" not in said and 40 < len(said) < 1200, said
    assert {path: path.stat().st_mtime_ns for path in (folder / "used").glob("[!.]*")} == before
    if "GOLDEN" in os.environ:
        write_golden(name, said)
    assert read_golden().get(name) == section(name, said), "if that is meant: GOLDEN=1 writes it"


def test_the_golden_file_has_no_other_sections() -> None:
    if "GOLDEN" in os.environ:
        pytest.skip("it is being written")
    assert list(read_golden()) == list(WRONG)


def test_a_guidance_scale_that_is_none_needs_nothing_to_guide_against(folder: Path) -> None:
    command = f"plan {T2I} --model_name qwen --world_size 1 --guidance_scale"
    for scale, expected in (("0", 0), ("1", 0), ("1.01", 2)):
        code, said = run(folder, f"{command} {scale}", {})
        assert code == expected, said


# -- the golden file ----------------------------------------------------------------------------------------------


def section(name: str, said: str) -> str:
    words, variables = WRONG[name]
    command = " ".join([*(f"{key}={value}" for key, value in variables.items()), f"dglaunch {words}"])
    return f"    {command}\n\n{said}\n"


def read_golden() -> dict[str, str]:
    found = re.findall(
        r"^## ([^\n]*)\n\n(.*?)(?=\n## |\Z)", GOLDEN.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    return dict(found)


def write_golden(name: str, said: str) -> None:
    with open(GOLDEN, "a+", encoding="utf-8") as file:  # other processes of pytest-xdist write their own sections
        fcntl.flock(file, fcntl.LOCK_EX)
        sections = read_golden() | {name: section(name, said)}
        kept = "\n".join(f"## {n}\n\n{sections[n]}" for n in WRONG if n in sections)
        file.truncate(0)
        file.write(f"# Wrong uses, and what is said of them (exit 2)\n\n{kept}")


def test_guidance_of_zimage_needs_a_mask(families: Path) -> None:
    """Here, where the libraries are loaded anyway."""
    from support.tiny_models import build

    model = build("zimage", families / "zimage")
    command = ["plan", "t2i", "--model_name", model, "--prompt", "x", "--attention_backend", "_native_flash"]
    ended = dglaunch(*command)
    assert ended.code == 2 and "takes no mask" in ended.output
    assert dglaunch(*command, "--guidance_scale", "0").code == 0
