"""Replay of a real model: made in a batch, on ranks of one replica, and then alone."""

import json
import platform
from pathlib import Path

from PIL import Image

from dglaunch import system
from support.commands import dglaunch
from support.edit_images import save_pictures
from support.ranks import on_ranks
from support.results import write_jsonl


def test_a_real_edit_in_a_batch_and_then_alone(tmp_path: Path) -> None:
    save_pictures(tmp_path)
    rows = [{"input_images": f"{name}.png", "instruction": "make it red"} for name in "abc"]
    words = ["edit", "--input", write_jsonl(tmp_path / "rows.jsonl", rows), "--num_inference_steps", "2"]
    ended = dglaunch(*words, "--output_dir", tmp_path / "out")
    assert ended.code == 0, ended.output
    ended = dglaunch("replay", tmp_path / "out" / "000002.png", "--output", tmp_path / "again.png")
    assert ended.code == 0 and "the same" in ended.output, ended.output


def test_a_real_model_in_a_batch_and_then_alone(tmp_path: Path) -> None:
    """The embedded checkpoint: batches of 3 on two ranks of an Ulysses pair, then one image in one process."""
    table = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": f"a red circle, {n}"} for n in range(3)])
    words = ["t2i", "--backend", "xdit", "--prompts_file", table, "--num_inference_steps", "2", "--batch_size", "3"]
    case = on_ranks(tmp_path, 2, *words, "--output_dir", tmp_path / "out", DG_XDIT_ULYSSES_DEGREE="2")
    assert case.codes == [0, 0], case.output
    ended = dglaunch("replay", tmp_path / "out" / "000001.png", "--output", tmp_path / "again.png")
    assert ended.code == 0 and "the same" in ended.output and "made by xdit" in ended.output, ended.output
    told = json.loads(Image.open(tmp_path / "again.png").text["settings"])  # type: ignore[attr-defined]
    assert (told["backend"], told["num_inference_steps"]) == ("diffusers", 2)
    made = json.loads(Image.open(tmp_path / "out" / "000001.png").text["settings"])  # type: ignore[attr-defined]
    assert told["versions"].keys() == {"dglaunch", "torch", "diffusers", "transformers"}
    assert {name: version for name, version in made["versions"].items() if name != "xfuser"} == told["versions"]
    assert made["versions"]["xfuser"] == system.versions()["xfuser"] and platform.node() not in str(made)
