"""Wrong uses: each ends with exit 2 and one paragraph, before a model is loaded. The README's table is what they print.

python tests/test_wrong_uses.py        writes the table into README.md
"""

import contextlib
import io
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import clean_environment, dglaunch, write_jsonl
from test_readme import section

T2I = "t2i --prompts_file p.jsonl"
FLUX = f"{T2I} --model_name flux"
WRONG: dict[str, tuple[str, dict[str, str]]] = {
    "an unknown command": ("t2v --prompt x", {}),
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
    "guidance without what it guides against": (f"{T2I} --model_name qwen --guidance_scale 4", {}),
    "a GPU that is not there": (f"{T2I} --device cuda", {}),
    "a misspelt variable": (T2I, {"DG_XDIT_ULYSSES_DEGRE": "2"}),
    "a variable that does not parse": (T2I, {"DG_BATCH_SIZE": "3O"}),
    "degrees without xDiT": (T2I, {"DG_XDIT_ULYSSES_DEGREE": "2"}),
    "degrees that are not the world": (f"plan {FLUX} --backend xdit --world_size 8", {"DG_XDIT_ULYSSES_DEGREE": "3"}),
    "a product that is not the world": (
        f"plan {FLUX} --backend xdit --world_size 8",
        {"DG_XDIT_ULYSSES_DEGREE": "2", "DG_XDIT_DATA_PARALLEL_DEGREE": "2"},
    ),
    "heads that cannot be divided": (f"plan {FLUX} --backend xdit --world_size 8", {"DG_XDIT_ULYSSES_DEGREE": "8"}),
    "a text that cannot be split": (
        f"plan {FLUX} --backend xdit --world_size 2 --max_sequence_length 77",
        {"DG_XDIT_ULYSSES_DEGREE": "2"},
    ),
    "an image that cannot be split": (
        f"plan {FLUX} --backend xdit --world_size 4 --height 48 --width 48",
        {"DG_XDIT_ULYSSES_DEGREE": "4"},
    ),
    "a model that xDiT does not have": (f"{T2I} --backend xdit --model_name sdxl", {}),
    "PipeFusion on a CPU": (f"plan {FLUX} --backend xdit --world_size 2", {"DG_XDIT_PIPEFUSION_DEGREE": "2"}),
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
        f"{T2I} --backend openai --model_name gpt-image-1.5 --width 512 --height 512", {},
    ),
    "optimisations that exclude each other": (f"{T2I} --enable_layerwise_casting --quantization int8", {}),
    "an optimisation that this family does not have": (f"{T2I} --model_name qwen --enable_fuse_qkv", {}),
    "a GPU's optimisation on a CPU": (f"{T2I} --enable_group_offloading", {}),
    "a parameter of another cache": (f"{T2I} --cache_type pab --cache_threshold 0.1", {}),
    "a flag that the pipeline does not take": (f"{T2I} --model_name sdxl --max_sequence_length 128", {}),
}  # fmt: skip
SEEN: dict[str, str] = {}


def prepare(folder: Path) -> None:
    """The files that the wrong uses name."""
    from tiny_models import build

    for name, family in (("flux", "flux"), ("qwen", "qwenimage"), ("sdxl", "sdxl")):
        build(family, folder / name)
    (folder / "plain").mkdir()
    (folder / "empty.jsonl").write_text("")
    write_jsonl(folder / "p.jsonl", [{"prompt": "a cat"}])
    (folder / "bad.jsonl").write_text('{"prompt": ""}\n{"prompt": "a", "seed": 1.5}\n{"prompt": "a"\n')
    write_jsonl(folder / "escape.jsonl", [{"prompt": "a", "name": "../../etc/passwd"}])
    write_jsonl(folder / "dogs.jsonl", [{"prompt": "a dog"}])
    ended = dglaunch(
        "t2i", "--backend", "fake", "--prompts_file", folder / "dogs.jsonl", "--output_dir", folder / "used"
    )
    assert ended.code == 0, ended.output


@contextlib.contextmanager
def inside(folder: Path, variables: dict[str, str]) -> Iterator[None]:
    """The folder as the working directory and a clean environment with the variables."""
    before, where = dict(os.environ), Path.cwd()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(clean_environment(variables) | {"COLUMNS": "2000"})
    try:
        yield
    finally:
        os.chdir(where)
        os.environ.clear()
        os.environ.update(before)


def told(folder: Path, name: str) -> tuple[int, str]:
    """Exit code and text of one wrong use."""
    return run(folder, *WRONG[name])


def run(folder: Path, words: str, variables: dict[str, str]) -> tuple[int, str]:
    """Exit code and text of a command, run in this process (importing torch for each would take minutes)."""
    from dglaunch.__main__ import main

    text = io.StringIO()
    with inside(folder, variables), contextlib.redirect_stderr(text), contextlib.redirect_stdout(text):
        try:
            code = main(words.split())
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else 1
    return code, paragraph(text.getvalue().replace(str(folder) + "/", "").replace(str(folder), "."))


def paragraph(text: str) -> str:
    """What was said, as one line: tyro's boxes lose their frame."""
    lines = [re.sub(r"^[│╭╰]\s?|\s*[│╮╯]$", "", line).strip() for line in text.splitlines()]
    said = re.sub(r"[─-]{5,}\s*", "", " ".join(line for line in lines if line))
    start = said.find("dglaunch: ")
    return said[start:] if start >= 0 else said


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wrong")
    prepare(folder)
    return folder


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_use_is_told_in_one_paragraph(folder: Path, name: str) -> None:
    before = {path: path.stat().st_mtime_ns for path in (folder / "used").glob("[!.]*")}
    code, said = told(folder, name)
    assert code == 2, said
    assert "Traceback" not in said and 40 < len(said) < 1200, said
    assert {path: path.stat().st_mtime_ns for path in (folder / "used").glob("[!.]*")} == before
    SEEN[name] = said


def test_a_guidance_scale_that_is_none_needs_nothing_to_guide_against(folder: Path) -> None:
    command = f"plan {T2I} --model_name qwen --world_size 1 --guidance_scale"
    for scale, expected in (("0", 0), ("1", 0), ("1.01", 2)):
        code, said = run(folder, f"{command} {scale}", {})
        assert code == expected, said


def table(seen: dict[str, str]) -> str:
    rows = ["| wrong use | command | what it says (exit 2) |", "|---|---|---|"]
    for name, (words, variables) in WRONG.items():
        command = " ".join([*(f"{key}={value}" for key, value in variables.items()), f"dglaunch {words}"])
        rows.append(f"| {name} | `{command}` | {seen[name].replace('|', chr(92) + '|')} |")
    return "\n".join(rows)


def test_the_readme_has_what_they_say() -> None:
    if len(SEEN) < len(WRONG):
        pytest.skip("needs every wrong use of this file to have run")
    assert section("wrong uses") == table(SEEN), "run make readme"


def generated() -> str:
    """The table, from running them all (for `make readme`)."""
    with tempfile.TemporaryDirectory() as scratch:
        prepare(Path(scratch))
        return table({name: told(Path(scratch), name)[1] for name in WRONG})
