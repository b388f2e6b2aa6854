"""Prompts rewritten by a tiny random language model of transformers: in batches, by seeds, on two ranks, before `tiny` is loaded."""

from pathlib import Path

import pytest

from support.commands import dglaunch
from support.ranks import on_ranks
from support.results import difference, ledger, write_jsonl
from support.selection import rarely
from support.tiny_language_model import language_model

PROMPTS = [
    "a red fox",
    "a blue dog at night in the rain",
    "a green house",
    "two cats",
    "a boat",
    "the sea",
    "a big tree",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return language_model(tmp_path_factory.mktemp("lm") / "lm")


def words(model: Path, folder: Path, *more: str | Path) -> list[str | Path]:
    table = write_jsonl(folder / "prompts.jsonl", [{"prompt": prompt} for prompt in PROMPTS])
    asked = ["--rewrite_prompts", model, "--rewrite_max_tokens", "64", "--output_dir", folder / "out"]
    return ["t2i", "--backend", "fake", "--prompts_file", table, *asked, *more]


def texts(folder: Path) -> dict[tuple[str, int], str]:
    return {(line["prompt"], line["sample"]): line["rewritten_prompt"] for line in ledger(folder / "out")}


def failures(folder: Path) -> dict[tuple[str, int], str]:
    return {(line["prompt"], line["sample"]): line["error"] for line in ledger(folder / "out", "failures.jsonl")}


@pytest.mark.parametrize("temperature", rarely(["0", "1"], ["0"]))
def test_batches_and_ranks_do_not_change_what_is_rewritten(model: Path, tmp_path: Path, temperature: str) -> None:
    """Of a random model some answers are empty, and some have no end: those images fail, the same on any number of ranks."""
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    flags = ["--rewrite_temperature", temperature, "--num_images_per_prompt", "2"]
    assert dglaunch(*words(model, one, *flags)).code in (0, 3)
    on_ranks(two, 2, *words(model, two, *flags))
    assert texts(one) == texts(two) and failures(one) == failures(two)
    assert len(texts(one)) + len(failures(one)) == 2 * len(PROMPTS) and len(texts(one)) >= len(PROMPTS)
    both = [prompt for prompt in PROMPTS if {(prompt, 0), (prompt, 1)} <= texts(one).keys()]
    same = all(texts(one)[prompt, 0] == texts(one)[prompt, 1] for prompt in both)
    assert both and same == (temperature == "0"), "greedy: both samples are alike; else each is drawn by its own seed"


def test_an_answer_without_an_end_fails_its_image(tmp_path: Path) -> None:
    endless = language_model(tmp_path / "endless", ends=False)
    ended = dglaunch(*words(endless, tmp_path))
    assert ended.code == 3 and "longer than --rewrite_max_tokens 64" in ended.output


def test_what_is_no_language_model_is_told(tmp_path: Path, model: Path) -> None:
    (tmp_path / "t5").mkdir()
    for file in model.iterdir():
        (tmp_path / "t5" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "t5" / "config.json").write_text('{"model_type": "vit", "architectures": ["ViTModel"]}')
    ended = dglaunch(*words(tmp_path / "t5", tmp_path))
    assert ended.code == 2 and "is no causal language model" in ended.output and not ledger(tmp_path / "out")


def test_the_image_is_that_of_the_rewritten_prompt_and_replay_makes_it_again(tmp_path: Path) -> None:
    by_hand = write_jsonl(
        tmp_path / "by_hand.jsonl", [{"prompt": "a", "rewritten": "a red circle on a blue background"}]
    )
    small = ["--num_inference_steps", "2"]
    here = ["--prompt", "a", "--rewritten_prompts", by_hand]
    assert dglaunch("t2i", *small, *here, "--png_parameters", "--output_dir", tmp_path / "here").code == 0
    plain = ["--prompt", "a red circle on a blue background"]
    assert dglaunch("t2i", *small, *plain, "--output_dir", tmp_path / "plain").code == 0
    assert difference(tmp_path / "here", tmp_path / "plain") == 0
    again = dglaunch("replay", tmp_path / "here" / "000000.png", "--output", tmp_path / "again.png")
    assert again.code == 0, again.output
