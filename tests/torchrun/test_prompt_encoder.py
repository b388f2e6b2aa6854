"""Prompts encoded ahead: each distinct one once, then the text encoders are gone; kept between runs; errors stay apart.

That the images are those of a run that encodes in each batch is shown for each family in torchrun/test_t2i_models.py.
"""

import gc
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dglaunch.backends.base import Context
from dglaunch.backends.diffusers import embedding_cache, engine, prompt_encoder, prompt_interception
from dglaunch.backends.diffusers.loading import PipelineLoader
from dglaunch.backends.diffusers.prompt_encoder import PromptEncoder
from dglaunch.cli.main import main
from dglaunch.data.task import Batch
from dglaunch.planning.batches import Plan
from dglaunch.run import runner
from support.commands import run_process
from support.results import PROMPTS, difference, ledger, run_json, write_jsonl


class Seen:
    """What the text encoder of `tiny` was asked for, and what was in memory when the transformer ran."""

    def __init__(self) -> None:
        self.texts: list[tuple[int, ...]] = []
        self.calls = 0
        self.encoders_while_denoising: set[int] = set()
        self.poison: tuple[int, ...] | None = None
        self.looks_around = False


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Seen]:
    from diffusers import FluxTransformer2DModel
    from transformers import T5EncoderModel

    seen = Seen()
    encoder, transformer = T5EncoderModel.forward, FluxTransformer2DModel.forward

    def encoding(self: Any, input_ids: Any, *args: Any, **kwargs: Any) -> Any:
        rows = [tuple(row) for row in input_ids.tolist()]
        seen.calls += 1
        seen.texts += set(rows)
        if seen.poison in rows:
            raise ValueError("no such letter")
        return encoder(self, input_ids, *args, **kwargs)

    def denoising(self: Any, *args: Any, **kwargs: Any) -> Any:
        if seen.looks_around:
            gc.collect()
            seen.encoders_while_denoising.add(sum(type(thing) is T5EncoderModel for thing in gc.get_objects()))
        return transformer(self, *args, **kwargs)

    monkeypatch.setattr(T5EncoderModel, "forward", encoding)
    monkeypatch.setattr(FluxTransformer2DModel, "forward", denoising)
    yield seen
    gc.unfreeze()


def make(folder: Path, name: str, prompts: list[str], *words: str, code: int = 0) -> Path:
    """Run t2i with `tiny` in this process."""
    table = write_jsonl(folder / f"{name}.jsonl", [{"prompt": prompt} for prompt in prompts])
    out = folder / name
    arguments = ["t2i", "--prompts_file", str(table), "--num_inference_steps", "1", "--output_dir", str(out), *words]
    assert main(arguments) == code
    return out


def test_each_distinct_prompt_is_encoded_once_and_then_the_encoders_are_gone(tmp_path: Path, seen: Seen) -> None:
    seen.looks_around = True
    gc.freeze()  # each look goes through what is made from here on, not through all that the libraries hold
    prompts = [*PROMPTS[:3], *PROMPTS[:2]]
    out = make(tmp_path, "ahead", prompts, "--num_images_per_prompt", "3", "--batch_size", "4")
    assert len(ledger(out)) == 15
    assert (seen.calls, len(seen.texts)) == (1, 3)
    assert seen.encoders_while_denoising == {0}
    inline = make(
        tmp_path, "inline", prompts, "--num_images_per_prompt", "3", "--batch_size", "4", "--encode", "inline"
    )
    assert seen.encoders_while_denoising == {0, 1} and seen.calls == 1 + 4
    assert difference(out, inline) <= 2


def test_with_all_prompts_in_the_embedding_cache_no_encoder_is_loaded(
    tmp_path: Path, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = ("--embedding_cache", str(tmp_path / "cache"))
    first = make(tmp_path, "first", PROMPTS[:5], *cache)
    assert (seen.calls, len(seen.texts)) == (1, 5)
    loads: list[object] = []
    interception = prompt_interception.PromptInterception
    load = interception._encode_missing
    monkeypatch.setattr(interception, "_encode_missing", lambda self, *given: loads.append(given) or load(self, *given))
    second = make(tmp_path, "second", PROMPTS[:5], *cache)
    assert not loads and difference(first, second) == 0
    assert "5 of this rank's from the embedding cache" in run_json(second)["effects"]["encode"]
    file = sorted((tmp_path / "cache").rglob("*.safetensors"))[0]
    file.write_bytes(file.read_bytes()[:100])
    third = make(tmp_path, "third", PROMPTS[:6], *cache)
    assert len(loads) == 1 and len(seen.texts) == 5 + 2, "the damaged one and the new one"
    assert len(ledger(third)) == 6 and not list((tmp_path / "cache").rglob("*.tmp"))


def test_an_embedding_cache_that_cannot_be_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would silently do nothing. At the start the model is not loaded for it; later what is made stays."""
    (tmp_path / "file").touch()
    with monkeypatch.context() as patch:
        patch.setattr(engine.DiffusersEngine, "load_pipeline", None)
        make(tmp_path, "out", PROMPTS[:2], "--embedding_cache", str(tmp_path / "file"), code=2)
    assert f"--embedding_cache {tmp_path / 'file'} cannot be written" in capsys.readouterr().err
    disk = OSError(28, "No space left on device")
    encoded: list[int] = []

    def full(_self: Any, rows: dict[str, Any]) -> None:
        encoded.append(len(rows))
        if len(encoded) > 1:
            with embedding_cache.EmbeddingCache._writing(_self):
                raise disk

    monkeypatch.setattr(embedding_cache.EmbeddingCache, "write", full)
    words = ("--batch_size", "4", "--embedding_cache", str(tmp_path / "cache"))
    out = make(tmp_path, "full", PROMPTS[:16], *words, code=2)
    assert "No space left on device" in capsys.readouterr().err
    assert sorted(line["index"] for line in ledger(out)) == list(range(8)) and encoded == [8, 8]


@pytest.mark.parametrize("words", [(), ("--encode", "inline"), ("--embedding_cache", "{cache}")])
def test_what_is_cut_off_a_prompt_is_told(
    tmp_path: Path, seen: Seen, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    """Two prompts of which the first 15 words are the same give equal pixels. With the cache the second run, in which
    nothing is encoded, knows it too."""
    prompts = ["red " * 15 + end for end in ("", "circle", "green star " * 400)]
    for name in ("first", "second")[: 1 + bool(words and words[0] == "--embedding_cache")]:
        out = make(tmp_path, name, prompts, "--seed", "1", *(word.format(cache=tmp_path / "cache") for word in words))
        told = {line["index"]: line.get("prompt_cut") for line in ledger(out)}
        assert told == {0: None, **{i: {"tokenizer": [n, 16], "tokenizer_2": [n, 16]} for i, n in ((1, 17), (2, 816))}}
        assert run_json(out)["num_rows_cut"] == 2
        said = capsys.readouterr().err
        assert said.count("2 rows lost the end of a prompt: the longest has 816 tokens, of which tokenizer") == 1, said


def test_the_terminal_belongs_to_dglaunch(tmp_path: Path) -> None:
    """What the libraries say while they are imported is about kernels that nobody asked for."""
    ended = run_process(
        "t2i", "--prompt", "a red circle", "--num_inference_steps", "1", "--output_dir", tmp_path / "out"
    )
    assert ended.code == 0 and ended.output.startswith("tiny (FluxPipeline) on CPU"), ended.output
    noise = ("torchao", "Warning", "Failed to load", "deprecated")
    assert not [line for line in ended.output.splitlines() if any(word in line for word in noise)], ended.output


def test_another_length_and_other_encoders_are_other_entries(tmp_path: Path, seen: Seen) -> None:
    cache = ("--embedding_cache", str(tmp_path / "cache"))
    make(tmp_path, "first", PROMPTS[:2], *cache)
    make(tmp_path, "longer", PROMPTS[:2], "--max_sequence_length", "32", *cache)
    assert seen.calls == 2
    for name in ("text_encoder", "tokenizer"):
        (tmp_path / name).mkdir()
    weights = tmp_path / "text_encoder" / "model.safetensors"
    weights.write_bytes(b"one")
    one = embedding_cache.encoders_key(tmp_path, "Flux")
    assert one == embedding_cache.encoders_key(tmp_path, "Flux") != embedding_cache.encoders_key(tmp_path, "SD3")
    weights.write_bytes(b"other")
    assert embedding_cache.encoders_key(tmp_path, "Flux") != one


@pytest.mark.parametrize("device", ["like a GPU", "a CPU"])
def test_more_prompts_than_memory_are_encoded_in_turns(
    tmp_path: Path, seen: Seen, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    """With memory each distinct prompt is encoded once; on a GPU all of them before the first batch."""
    if device == "like a GPU":
        monkeypatch.setattr(prompt_encoder, "GRADUAL_ON", ())
        monkeypatch.setattr(prompt_encoder, "ROUND", 8)
    prompts = [*PROMPTS[:20], *PROMPTS[:4]]
    whole = make(tmp_path, "whole", prompts, "--batch_size", "4")
    assert (seen.calls, len(seen.texts)) == (3, 20)
    first = "20 distinct prompts ahead (" if device == "like a GPU" else "8 distinct prompts ahead ("
    assert run_json(whole)["effects"]["encode"].startswith(first)
    monkeypatch.setattr(prompt_encoder, "HOST_SHARE", 0.0)
    turns = make(tmp_path, "turns", prompts, "--batch_size", "4")
    assert (seen.calls, len(seen.texts)) == (3 + 3, 20 + 24), "those that come again at the end are encoded again"
    assert "those of 4 more batches in their turn" in run_json(turns)["effects"]["encode"]
    assert difference(whole, turns) == 0


def test_batches_of_another_replica_bring_the_encoders_back_once(
    tmp_path: Path, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A share of two batches, and then three that were taken over together."""
    plain = make(tmp_path, "plain", PROMPTS[:20], "--batch_size", "4")
    loads: list[int] = []
    load, encode = PipelineLoader.load_text_encoders, PromptEncoder.encode

    def taken_over(_self: object, context: Context, plan: Plan) -> Iterator[Batch]:
        yield from plan.batches[0][:2]
        left = plan.batches[0][2:]
        for number, batch in enumerate(left):
            context.coming = partial(left.__getitem__, slice(number + 1, None))
            yield batch

    monkeypatch.setattr(prompt_encoder, "GRADUAL_ON", ())
    monkeypatch.setattr(runner._Run, "_batches", taken_over)
    monkeypatch.setattr(PromptEncoder, "encode", lambda self, batches, stop: encode(self, list(batches)[:2], stop))
    monkeypatch.setattr(PipelineLoader, "load_text_encoders", lambda *given: loads.append(1) or load(*given))
    seen.texts.clear()
    out = make(tmp_path, "taken-over", PROMPTS[:20], "--batch_size", "4")
    assert len(loads) == 2 and len(seen.texts) == 20
    assert difference(out, plain) == 0


def test_a_prompt_that_cannot_be_encoded_costs_its_own_image_only(tmp_path: Path, seen: Seen) -> None:
    make(tmp_path, "one", PROMPTS[3:4])
    (seen.poison,) = seen.texts
    out = make(tmp_path, "all", PROMPTS[:6], "--batch_size", "3", code=3)
    (failure,) = ledger(out, "failures.jsonl")
    assert failure["index"] == 3 and "could not be encoded: ValueError: no such letter" in failure["error"]
    assert sorted(line["index"] for line in ledger(out)) == [0, 1, 2, 4, 5]


def test_encoders_that_cannot_be_loaded_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import T5EncoderModel

    def missing(*_args: Any, **_kwargs: Any) -> Any:
        raise OSError("model.safetensors is not there.")

    monkeypatch.setattr(T5EncoderModel, "from_pretrained", missing)
    make(tmp_path, "out", PROMPTS[:2], code=2)
    assert "cannot be loaded: model.safetensors is not there." in capsys.readouterr().err
