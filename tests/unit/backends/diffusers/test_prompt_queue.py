"""Which prompts are encoded when, and by which rank, with a pipeline that only writes down what it is asked for."""

import threading
from collections.abc import Iterator
from functools import partial
from itertools import chain
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dglaunch.backends.diffusers import prompt_encoder
from dglaunch.backends.diffusers.prompt_encoder import PromptEncoder
from dglaunch.backends.diffusers.prompt_interception import CHUNK, PromptInterception
from dglaunch.backends.diffusers.text_encoders import TextEncoders
from dglaunch.data.task import Batch, Task
from dglaunch.distributed.channel import Channel
from dglaunch.distributed.topology import Topology
from dglaunch.errors import UserError
from support.scripted import World


class Recording:
    """A pipeline whose embedding of a prompt is its length."""

    components: dict[str, object] = {}

    def __init__(self) -> None:
        self.chunks: list[list[str]] = []
        self.fails: dict[str, Exception] = {}
        self.text_encoder: Any = None
        self.went_on = 0

    def encode_prompt(self, prompt: str | list[str], device: object = None) -> tuple[torch.Tensor]:
        assert self.text_encoder is not None, "the text encoder is not there"
        self.chunks.append(list(prompt))
        for word, error in self.fails.items():
            if word in prompt:
                raise error
        return (torch.tensor([[float(len(text))] for text in prompt]),)

    def prepare_latents(self) -> None:
        self.went_on += 1

    def __call__(self, prompt: list[str]) -> list[float]:
        (embeddings,) = self.encode_prompt(prompt=prompt, device="cpu")
        self.prepare_latents()
        return [float(value) for value in embeddings[:, 0]]


def encoder_of(pipeline: Any, channel: Channel, budget: float = 1e9) -> PromptEncoder:
    encoders = TextEncoders(pipeline, "cpu", lambda: {"text_encoder": torch.nn.Linear(1, 1)})
    interception = PromptInterception(pipeline, ("row",), encoders)
    return PromptEncoder(interception, lambda batch: pipeline([task.prompt for task in batch.tasks]), channel, budget)


def batches(prompts: list[str], size: int = 4) -> list[Batch]:
    tasks = [Task(index=n, prompt=prompt, seed=n, stem=str(n)) for n, prompt in enumerate(prompts)]
    return [Batch(tuple(tasks[start : start + size])) for start in range(0, len(tasks), size)]


PROMPTS = ["p" * n for n in range(1, 21)]


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, PromptEncoder]]:
    """A pipeline on one rank, as on a GPU: all rounds come before the first batch."""
    monkeypatch.setattr(prompt_encoder, "GRADUAL_ON", ())
    pipeline = Recording()
    yield pipeline, encoder_of(pipeline, Channel(Topology(), "cpu"))


def test_each_distinct_prompt_is_encoded_once_in_chunks_of_one_size(alone: tuple[Any, PromptEncoder]) -> None:
    pipeline, encoder = alone
    text = encoder.encode(batches([*PROMPTS, *PROMPTS]))
    assert text == "20 distinct prompts ahead (0.0 MiB on the host)"
    assert [len(chunk) for chunk in pipeline.chunks] == [CHUNK] * 3
    assert [prompt for chunk in pipeline.chunks for prompt in chunk][:20] == PROMPTS
    assert set(pipeline.chunks[-1][4:]) == {PROMPTS[-1]}, "a smaller chunk is filled up"
    assert pipeline.text_encoder is None and pipeline.went_on == 0
    assert pipeline(PROMPTS[:3]) == [1, 2, 3] and pipeline.went_on == 1 and len(pipeline.chunks) == 3


def test_on_a_cpu_a_chunk_is_encoded_when_a_batch_needs_it() -> None:
    pipeline = Recording()
    encoder = encoder_of(pipeline, Channel(Topology(), "cpu"))
    todo = batches(PROMPTS)
    assert (
        encoder.encode(todo) == "8 distinct prompts ahead (0.0 MiB on the host); those of 3 more batches in their turn"
    )
    for batch in todo:
        encoder.ensure(batch)
        assert pipeline([task.prompt for task in batch.tasks]) == [len(task.prompt) for task in batch.tasks]
    assert len(pipeline.chunks) == 3


def test_embeddings_beyond_the_budget_take_the_place_of_earlier_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_encoder, "GRADUAL_ON", ())
    monkeypatch.setattr(prompt_encoder, "ROUND", CHUNK)
    pipeline = Recording()
    encoder = encoder_of(pipeline, Channel(Topology(), "cpu"), budget=0)
    encoder.encode(batches(PROMPTS))
    assert len(encoder.prompts.known) == CHUNK
    for batch in batches(PROMPTS):
        encoder.ensure(batch)
    assert len(pipeline.chunks) == 3 and len(encoder.prompts.known) == 4


def test_a_prompt_that_fails_costs_its_own_image_only(alone: tuple[Any, PromptEncoder]) -> None:
    pipeline, encoder = alone
    pipeline.fails = {"ppp": ValueError("no such letter")}
    encoder.encode(batches(PROMPTS[:6]))
    assert pipeline(["p", "pp"]) == [1, 2]
    with pytest.raises(RuntimeError, match="the prompt could not be encoded: ValueError: no such letter"):
        pipeline(["p", "ppp"])


def test_text_encoders_without_enough_memory_end_the_run(alone: tuple[Any, PromptEncoder]) -> None:
    pipeline, encoder = alone
    pipeline.fails = {"p": RuntimeError("CUDA out of memory.")}
    with pytest.raises(UserError, match="The text encoders run out of memory on cpu with 8 prompts"):
        encoder.encode(batches(PROMPTS[:6]))
    assert len(pipeline.chunks) == 1, "one by one would need as much memory"


def test_text_encoders_that_cannot_be_loaded_end_the_run(alone: tuple[Any, PromptEncoder]) -> None:
    pipeline, encoder = alone

    def missing() -> dict[str, torch.nn.Module]:
        raise UserError("the encoders are not there")

    encoder.prompts.encoders.load = missing
    with pytest.raises(UserError, match="encoders are not there"):
        encoder.encode(batches(PROMPTS[:6]))
    assert not pipeline.chunks


def test_the_ranks_of_a_replica_share_the_work_and_what_comes_out_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_encoder, "GRADUAL_ON", ())
    world = World(4, replica_size=2)
    pipelines = [Recording() for _ in world.ranks]
    encoders = [encoder_of(pipeline, rank.channel) for pipeline, rank in zip(pipelines, world.ranks)]
    threads = [threading.Thread(target=partial(encoder.encode, batches(PROMPTS))) for encoder in encoders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for first, second in (pipelines[:2], pipelines[2:]):
        assert [len(first.chunks), len(second.chunks)] == [2, 1]
        assert set(chain(*first.chunks, *second.chunks)) == set(PROMPTS)
    for pipeline in pipelines:
        assert pipeline(PROMPTS) == [len(prompt) for prompt in PROMPTS], "each rank knows all of them"


def test_what_one_rank_cannot_encode_ends_the_run_on_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_encoder, "GRADUAL_ON", ())
    world = World(2, replica_size=2)
    pipelines = [Recording() for _ in world.ranks]
    pipelines[1].fails = {PROMPTS[CHUNK]: RuntimeError("CUDA out of memory.")}
    errors: list[UserError] = []

    def encode(encoder: PromptEncoder) -> None:
        try:
            encoder.encode(batches(PROMPTS))
        except UserError as error:
            errors.append(error)

    encoders = [encoder_of(pipeline, rank.channel) for pipeline, rank in zip(pipelines, world.ranks)]
    threads = [threading.Thread(target=partial(encode, encoder)) for encoder in encoders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [str(error) for error in errors] == [str(errors[0])] * 2 and "run out of memory" in str(errors[0])


def test_networks_come_and_go_by_device() -> None:
    """Where nothing else is on the device there is no room to make."""
    pipeline = SimpleNamespace(components={"transformer": torch.nn.Linear(1, 1)}, text_encoder=None)
    encoders = TextEncoders(pipeline, "cpu", lambda: {"text_encoder": torch.nn.Linear(1, 1)})  # type: ignore[arg-type]
    encoders.attach()
    assert pipeline.text_encoder is not None and not encoders.make_room()
    encoders.detach(needed_again=True)
    assert pipeline.text_encoder is None
