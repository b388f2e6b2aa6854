"""What the text encoders read of a prompt, counted with tokenizers that make a token of each word."""

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from dglaunch.data.prompt_windows import UNLIMITED, Longest, PromptWindows, longest
from dglaunch.data.task import Record, Task
from dglaunch.models.checkpoint import Checkpoint
from dglaunch.models.families import FAMILIES, OTHER


class Words:
    """A tokenizer of words, with special tokens around them; it remembers the texts that it was given."""

    def __init__(self, model_max_length: int, specials: int = 1) -> None:
        self.model_max_length, self.specials = model_max_length, specials
        self.given: list[str] = []

    def __call__(self, texts: Sequence[str], *, add_special_tokens: bool, verbose: bool) -> dict[str, Any]:
        assert not add_special_tokens and not verbose, "or it warns of each text"
        self.given += texts
        return {"input_ids": [text.split() for text in texts]}

    def num_special_tokens_to_add(self) -> int:
        return self.specials

    def apply_chat_template(self, messages: list[dict[str, str]], tokenize: bool) -> str:
        (message,) = messages
        return f"<user> says: {message['content']} <end>"


def windows(pipeline: str, length: int | None = None, **tokenizers: Any) -> PromptWindows:
    family = FAMILIES.get(pipeline, OTHER)
    names = tuple(name for name, found in tokenizers.items() if found is not None)
    checkpoint = Checkpoint("x", pipeline, family, {}, {}, True, names)
    return PromptWindows(checkpoint, checkpoint.text_length(length), tokenizers.get)


def words(count: int) -> str:
    return "red " * (count - 1) + "fox"


def task(prompt: str, negative: str | None = None) -> Task:
    return Task(index=0, prompt=prompt, negative_prompt=negative, seed=0, stem="000000")


def cut(of: PromptWindows, prompt: str, negative: str | None = None) -> Record:
    return of.cuts([task(prompt, negative)])[0]


def test_flux_clip_is_no_cut_of_what_its_t5_reads() -> None:
    flux = windows("FluxPipeline", tokenizer=Words(77, specials=2), tokenizer_2=Words(512))
    assert cut(flux, words(75)) == {}
    assert cut(flux, words(76)) == {"prompt_cut_for": {"tokenizer": [78, 77]}}
    assert cut(flux, words(511)) == {"prompt_cut_for": {"tokenizer": [513, 77]}}
    assert cut(flux, words(700)) == {"prompt_cut": {"tokenizer": [702, 77], "tokenizer_2": [701, 512]}}


def test_max_sequence_length_is_the_window_of_the_t5() -> None:
    flux = windows("FluxPipeline", 128, tokenizer=Words(77, specials=2), tokenizer_2=Words(512))
    assert cut(flux, words(128)) == {"prompt_cut": {"tokenizer": [130, 77], "tokenizer_2": [129, 128]}}


def test_sd3_without_its_t5_has_only_what_clip_reads() -> None:
    clips = {"tokenizer": Words(77, specials=2), "tokenizer_2": Words(77, specials=2)}
    whole = windows("StableDiffusion3Pipeline", **clips, tokenizer_3=Words(512))
    assert cut(whole, words(100)) == {"prompt_cut_for": {"tokenizer": [102, 77], "tokenizer_2": [102, 77]}}
    without = windows("StableDiffusion3Pipeline", **clips, tokenizer_3=None)
    assert cut(without, words(100)) == {"prompt_cut": {"tokenizer": [102, 77], "tokenizer_2": [102, 77]}}


def test_a_negative_prompt_counts_too() -> None:
    lumina = windows("Lumina2Pipeline", tokenizer=Words(8192))
    system = 25
    assert cut(lumina, words(255 - system), words(255)) == {}, "the negative one has no system prompt before it"
    assert cut(lumina, words(256 - system), words(300)) == {
        "prompt_cut": {"tokenizer": [257, 256]},
        "negative_prompt_cut": {"tokenizer": [301, 256]},
    }


def test_a_chat_template_takes_a_part_of_the_window_but_its_end_is_no_cut() -> None:
    zimage = windows("ZImagePipeline", tokenizer=Words(100_000, specials=0))
    assert cut(zimage, words(510)) == {}
    assert cut(zimage, words(511)) == {"prompt_cut": {"tokenizer": [513, 512]}}


def test_the_window_of_qwen_is_for_the_prompt_alone() -> None:
    qwen = windows("QwenImagePipeline", tokenizer=Words(100_000, specials=0))
    assert cut(qwen, words(512)) == {} and cut(qwen, words(513)) == {"prompt_cut": {"tokenizer": [513, 512]}}


def test_longcat_spells_what_is_quoted() -> None:
    longcat = windows("LongCatImageEditPipeline", tokenizer=Words(100_000, specials=0))
    assert cut(longcat, words(506) + ' "abcd"') == {} and cut(longcat, words(511) + " don't") == {}
    assert cut(longcat, words(507) + ' "abcd"') == {"prompt_cut": {"tokenizer": [513, 512]}}


def test_sana_loses_a_token_to_its_instruction() -> None:
    sana = windows("SanaPipeline", tokenizer=Words(100_000))
    assert cut(sana, words(298)) == {} and cut(sana, words(299)) == {"prompt_cut": {"tokenizer": [301, 300]}}
    assert cut(sana, words(298), words(299)) == {}


def test_the_tokenizer_of_a_processor_counts() -> None:
    inside = Words(100_000, specials=0)
    qwen = windows("QwenImagePipeline", tokenizer=SimpleNamespace(tokenizer=inside))
    assert cut(qwen, words(600)) and inside.given


def test_what_is_short_is_not_tokenized() -> None:
    t5, clip = Words(512), Words(77, specials=2)
    flux = windows("FluxPipeline", tokenizer=clip, tokenizer_2=t5)
    assert cut(flux, "a red fox on a hill") == {} and not t5.given and not clip.given
    assert cut(flux, "\N{ARABIC LIGATURE SALLALLAHOU ALAYHE WASALLAM}") == {}
    assert t5.given, "one character, but many once it is normalized"


def test_each_distinct_text_is_tokenized_once() -> None:
    qwen = Words(100_000, specials=0)
    records = windows("QwenImagePipeline", tokenizer=qwen).cuts([task(words(600))] * 8)
    assert len(records) == 8 and all(record["prompt_cut"] for record in records) and len(qwen.given) == 1


def test_of_another_pipeline_each_tokenizer_says_its_window() -> None:
    clips = {"tokenizer": Words(77, specials=2), "tokenizer_2": Words(77, specials=2)}
    sdxl = windows("StableDiffusionXLPipeline", **clips)
    assert cut(sdxl, words(100)) == {"prompt_cut": {"tokenizer": [102, 77], "tokenizer_2": [102, 77]}}
    unknown = windows("SomePipeline", 10**12, tokenizer=Words(UNLIMITED * 10))
    assert not unknown.are_known and cut(unknown, words(5000)) == {}


@pytest.mark.parametrize("pipeline", ["QwenImageEditPipeline", "QwenImageEditPlusPipeline", "GlmImagePipeline"])
def test_some_read_everything(pipeline: str) -> None:
    assert cut(windows(pipeline, tokenizer=Words(77)), words(5000)) == {}


def test_the_longest_is_told_by_the_encoder_that_reads_the_most() -> None:
    found = longest([{"tokenizer": [702, 77], "tokenizer_2": [701, 512]}, {"tokenizer": [80, 77]}])
    assert found == Longest(701, 512, "tokenizer_2") and longest([]) is None


def test_every_family_says_what_it_reads() -> None:
    assert not [name for name, family in FAMILIES.items() if family.windows is None]
    assert replace(OTHER).windows is None
