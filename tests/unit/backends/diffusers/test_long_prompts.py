"""--on_long_prompt fail, with the tokenizers of `tiny`, which reads 16 tokens: 15 words that it knows."""

from pathlib import Path

import pytest

from dglaunch import BackendConfig, T2IConfig
from dglaunch.backends.diffusers.long_prompts import check_long_prompts
from dglaunch.data.task import Task
from dglaunch.errors import UserError
from dglaunch.models.checkpoint import Checkpoint, load_tokenizer, token_lengths
from dglaunch.models.families import FAMILIES, OTHER
from support.commands import Ended, dglaunch
from support.results import write_jsonl


def planned(folder: Path, counts: list[int], *flags: str) -> Ended:
    """A plan for prompts of so many words."""
    table = write_jsonl(folder / "p.jsonl", [{"prompt": "red " * count} for count in counts])
    return dglaunch("plan", "t2i", "--model_name", "tiny", "--prompts_file", table, *flags)


def test_all_rows_that_are_too_long_are_named_before_a_model_is_loaded(tmp_path: Path) -> None:
    ended = planned(tmp_path, [15, 16, 3, 40], "--on_long_prompt", "fail", "--num_images_per_prompt", "2")
    assert ended.code == 2 and "has 2 bad rows; nothing was run" in ended.output, ended.output
    assert "row 1: the prompt has 17 tokens, of which tokenizer reads 16" in ended.output
    assert "row 3: the prompt has 41 tokens" in ended.output and "row 0" not in ended.output
    assert "or drop --on_long_prompt fail" in ended.output


def test_what_fits_and_what_may_be_cut_passes(tmp_path: Path) -> None:
    assert planned(tmp_path, [15], "--on_long_prompt", "fail").code == 0
    assert planned(tmp_path, [40]).code == 0


def test_a_single_prompt_and_a_shorter_window(tmp_path: Path) -> None:
    ended = dglaunch("plan", "t2i", "--prompt", "red " * 16, "--on_long_prompt", "fail")
    assert ended.code == 2 and "--prompt, row 0: the prompt has 17 tokens" in ended.output


def test_a_backend_without_text_encoders_refuses_the_flag(tmp_path: Path) -> None:
    words = ["t2i", "--backend", "fake", "--prompt", "x", "--on_long_prompt", "fail", "--output_dir", tmp_path / "out"]
    ended = dglaunch(*words)
    assert ended.code == 2 and "--on_long_prompt fail would do nothing" in ended.output
    assert not (tmp_path / "out").exists() and dglaunch(*words[:5], *words[7:]).code == 0


@pytest.mark.parametrize("name", ["tokenizer", "token_lengths"])
def test_tokenizers_are_those_of_the_revision(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    asked: list[dict[str, object]] = []

    def from_pretrained(source: str, **given: object) -> object:
        asked.append(given)
        return lambda texts: {"input_ids": [[1]] * len(texts)}

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", from_pretrained)
    checkpoint = Checkpoint("owner/name", "QwenImagePipeline", FAMILIES["QwenImagePipeline"], {}, {}, False)
    config = BackendConfig(model_name="owner/name", revision="v2", trust_remote_code=True)
    if name == "tokenizer":
        load_tokenizer(checkpoint, name, config)
    else:
        assert token_lengths(checkpoint, ["a", "b"], config) == [1, 1]
    assert asked == [{"subfolder": "tokenizer", "revision": "v2", "trust_remote_code": True}]


def test_what_is_not_known_cannot_be_promised() -> None:
    checkpoint = Checkpoint("x", "SomePipeline", OTHER, {}, {}, True)
    task = Task(index=0, prompt="x", seed=0, stem="000000")
    with pytest.raises(UserError, match=r"does not know how many tokens .* SomePipeline read\. Drop the flag"):
        check_long_prompts(checkpoint, T2IConfig(prompt="x", on_long_prompt="fail"), [task])


def test_tokenizers_that_are_not_there_are_told(tmp_path: Path) -> None:
    checkpoint = Checkpoint(str(tmp_path), "SomePipeline", OTHER, {}, {}, True, ("tokenizer",))
    with pytest.raises(UserError, match=r"which cannot be loaded: .* download the checkpoint again"):
        check_long_prompts(checkpoint, T2IConfig(prompt="x", on_long_prompt="fail"), [])
