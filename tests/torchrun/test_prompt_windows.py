"""What dglaunch counts is what the pipelines read: at the edge of the window, and a token beyond it; and all ranks tell it."""

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dglaunch import BackendConfig, EditingConfig, T2IConfig
from dglaunch.backends.diffusers.long_prompts import windows_of
from dglaunch.data.prompt_windows import CUT, CUT_FOR, PromptWindows
from dglaunch.data.task import Task
from dglaunch.models.checkpoint import load_tokenizer, resolve
from support.commands import dglaunch
from support.edit_images import save_pictures
from support.family_runs import T2I
from support.ranks import on_ranks
from support.results import ledger, run_json, write_jsonl
from support.tiny_models import build

ENCODERS_OF_77 = {"flux": ("tokenizer",), "sd3": ("tokenizer", "tokenizer_2")}


def told(windows: PromptWindows, text: str) -> dict[str, Any]:
    return windows.cuts([Task(index=0, prompt=text, seed=0, stem="0")])[0]


def longest_that_fits(fits: Callable[[int], bool]) -> int:
    least, most = 1, 2000
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (middle, most) if fits(middle) else (least, middle)
    return least


def encoded(pipeline: Any, texts: list[str], length: int) -> list[torch.Tensor]:
    """All that encode_prompt returns of each text, as one tensor."""
    takes = inspect.signature(pipeline.encode_prompt).parameters
    others: dict[str, Any] = {name: None for name in ("prompt_2", "prompt_3") if name in takes}
    others |= {"max_sequence_length": length} if "max_sequence_length" in takes else {}
    encode = partial(pipeline.encode_prompt, device="cpu", **others)
    with torch.inference_mode():
        values = [encode(prompt=[text]) for text in texts]
    return [
        torch.cat([part.float().flatten() for value in each for part in _parts(value)]) for each in values
    ]  # fmt: skip


def _parts(value: Any) -> list[torch.Tensor]:
    if value is None:
        return []
    return [value] if isinstance(value, torch.Tensor) else [part for each in value for part in _parts(each)]


@pytest.mark.parametrize("family", [*T2I, "sdxl"])
def test_what_is_counted_is_what_is_read(families: Path, family: str) -> None:
    from diffusers import DiffusionPipeline

    folder = build(family, families / family)
    config = T2IConfig(prompt="x", backend=BackendConfig(model_name=str(folder)))
    checkpoint = resolve(config.backend)
    pipeline = DiffusionPipeline.from_pretrained(folder)
    windows = windows_of(checkpoint, config, lambda name: getattr(pipeline, name))
    from_files = windows_of(checkpoint, config, partial(load_tokenizer, checkpoint, config=config.backend))

    def text(count: int, end: str = "2") -> str:
        return "1" * (count - 1) + end  # each tokenizer makes a token of each digit

    fitting = longest_that_fits(lambda count: CUT not in told(windows, text(count)))
    beyond = told(windows, text(fitting + 1))
    assert beyond == told(from_files, text(fitting + 1)) and CUT in beyond
    length = checkpoint.text_length(None)
    assert any(tokens == read + 1 for tokens, read in beyond[CUT].values())
    one, other = encoded(pipeline, [text(fitting), text(fitting, "3")], length)
    assert not torch.equal(one, other), "the last character is read"
    one, other = encoded(pipeline, [text(fitting + 1), text(fitting + 1, "3")], length)
    assert torch.equal(one, other), "it is not read"
    named = tuple(told(windows, text(fitting)).get(CUT_FOR, {}))
    assert named == ENCODERS_OF_77.get(family, ())


QUOTING = ["", "it's 'a word' and 12", 'don\'t "spell it" so', "\u2018this\u2019 \u201ctoo\u201d 'no end"]


def test_longcat_fails_on_what_is_refused_and_only_there(families: Path, tmp_path: Path) -> None:
    from diffusers import DiffusionPipeline

    folder = build("longcat_edit", families / "longcat_edit")
    pipeline = DiffusionPipeline.from_pretrained(folder)
    config = EditingConfig(input=tmp_path / "t.jsonl", backend=BackendConfig(model_name=str(folder)))
    windows = windows_of(resolve(config.backend), config, lambda name: getattr(pipeline, name))
    picture = Image.new("RGB", (32, 32))

    def is_read(text: str) -> bool:
        try:
            with torch.inference_mode():
                pipeline._encode_prompt([text], picture)
        except TypeError:  # len(len(...))
            return False
        return True

    for begin in QUOTING:
        fitting = longest_that_fits(lambda count, begin=begin: CUT not in told(windows, begin + "1" * count))  # type: ignore[misc]
        assert is_read(begin + "1" * fitting) and not is_read(begin + "1" * (fitting + 1)), begin
    save_pictures(tmp_path)
    write_jsonl(tmp_path / "t.jsonl", [{"input_images": "a.png", "instruction": "1" * count} for count in (512, 513)])
    ended = dglaunch("plan", "edit", "--model_name", folder, "--input", tmp_path / "t.jsonl")
    assert ended.code == 2 and "row 1: the prompt has 513 tokens, of which tokenizer reads 512" in ended.output
    assert "row 0" not in ended.output and "LongCatImageEditPipeline fails on longer ones" in ended.output


@pytest.mark.parametrize("engine", ["diffusers", "xdit"])
def test_what_is_told_is_of_all_ranks(tmp_path: Path, engine: str) -> None:
    """Two replicas, and one replica of two ranks."""
    table = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "red " * count} for count in (3, 16, 20, 15)])
    words = ["t2i", "--prompts_file", table, "--backend", engine, "--num_inference_steps", "1", "--batch_size", "1"]
    split = {"DG_XDIT_ULYSSES_DEGREE": "2"} if engine == "xdit" else {}
    case = on_ranks(tmp_path, 2, *words, "--output_dir", tmp_path / "out", **split)
    assert case.codes == [0, 0], case.output
    cuts = {line["index"]: line.get(CUT) for line in ledger(tmp_path / "out")}
    assert cuts[0] is cuts[3] is None and cuts[1] == {name: [17, 16] for name in ("tokenizer", "tokenizer_2")}
    assert run_json(tmp_path / "out")["num_rows_cut"] == 2
    assert case.output.count("2 rows lost the end of a prompt: the longest has 21 tokens") == 1, case.output
