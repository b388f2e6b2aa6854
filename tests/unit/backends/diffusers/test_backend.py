"""The backend with an engine whose pipeline only writes down how it is called: no checkpoint, no library of models."""

import traceback
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from dglaunch import EditingConfig, T2IConfig
from dglaunch.backends.base import Context, ItemError
from dglaunch.backends.diffusers.backend import DiffusersBackend
from dglaunch.backends.diffusers.loading import PipelineLoader
from dglaunch.backends.diffusers.long_prompts import windows_of
from dglaunch.backends.diffusers.pixels import NOT_A_NUMBER
from dglaunch.data.images import probe
from dglaunch.data.task import Batch, Task
from dglaunch.distributed.channel import Channel
from dglaunch.distributed.topology import Topology
from dglaunch.errors import Drained
from dglaunch.models.checkpoint import Checkpoint
from dglaunch.models.families import FAMILIES, OTHER, Family


class Recording:
    """A pipeline that gives gray tensors."""

    components: dict[str, object] = {}

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.frames: list[str] = []
        self.trouble: Callable[[], Any] = lambda: None
        self.forgot = 0
        self.image_processor = SimpleNamespace(resize=None)
        self.transformer = SimpleNamespace(_reset_stateful_cache=self._forget)

    def _forget(self) -> None:
        self.forgot += 1

    def set_progress_bar_config(self, disable: bool) -> None:
        pass

    def to(self, device: str) -> None:
        pass

    def __call__(
        self, prompt: Any, image: Any = None, generator: Any = None, num_inference_steps: int = 4, output_type: Any = "pil",
        callback_on_step_end: Any = None,
    ) -> Any:  # fmt: skip
        files = [frame.filename for frame in traceback.extract_stack()]
        self.frames = [file for file in files if "/dglaunch/backends/" in file and "/tests/" not in file]
        self.calls.append({"prompt": prompt, "image": image, "output_type": output_type})
        if callback_on_step_end is not None:
            callback_on_step_end(self, 0, 0, {})
        return self.trouble() or SimpleNamespace(images=torch.full((len(prompt), 3, 8, 8), 0.5))


class RecordingEngine:
    def __init__(self, pipeline: Recording) -> None:
        self.pipeline = pipeline

    def start(self, undo: ExitStack) -> None:
        pass

    def load_pipeline(self, loader: PipelineLoader) -> Any:
        return self.pipeline

    def optimize(self, pipeline: Any, loras: Any, undo: ExitStack) -> dict[str, str]:
        return {"enable_tf32": "as asked"}

    def prepare(self, pipeline: Any, batch: Batch, arguments: dict[str, object]) -> Any:
        return partial(pipeline, **arguments)


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[DiffusersBackend, Recording]]:
    monkeypatch.setattr(PipelineLoader, "check", lambda _: None)

    def loaded(config: Any = None, family: Family = OTHER, **context: Any) -> tuple[DiffusersBackend, Recording]:
        pipeline = Recording()
        checkpoint = Checkpoint("x", "X", family, {"num_inference_steps": 2}, {}, True)
        backend = DiffusersBackend(
            Context(
                config=config or T2IConfig(prompt="x", debug=True), checkpoint=checkpoint, topology=Topology(),
                channel=Channel(Topology(), "cpu"), device="cpu", dtype="float32", **context,
            ),
            RecordingEngine(pipeline),
        )  # fmt: skip
        facts = backend.load()
        assert facts.defaults["num_inference_steps"] == 2 and facts.effects == {"enable_tf32": "as asked"}
        return backend, pipeline

    return loaded


def batch(count: int, **fields: Any) -> Batch:
    return Batch(tuple(Task(index=n, prompt=f"p{n}", seed=n, stem=str(n), **fields) for n in range(count)))


def test_generate_calls_the_pipeline_itself(load: Any) -> None:
    backend, pipeline = load()
    images = backend.generate(batch(3))
    assert [image.getpixel((0, 0)) for image in images] == [(128, 128, 128)] * 3
    assert pipeline.calls == [{"prompt": ["p0", "p1", "p2"], "image": None, "output_type": "pil"}]
    assert len(pipeline.frames) == 1, pipeline.frames
    assert backend.seconds["denoise"] > 0 and pipeline.forgot == 0


def test_what_is_cut_off_a_prompt_goes_into_the_ledger(load: Any) -> None:
    class Letters:
        model_max_length = 4
        num_special_tokens_to_add = staticmethod(lambda: 1)

        def __call__(self, texts: Any, **_: Any) -> dict[str, Any]:
            return {"input_ids": [list(text) for text in texts]}

    backend, pipeline = load()
    pipeline.tokenizer = Letters()
    checkpoint = replace(backend.context.checkpoint, tokenizers=("tokenizer",))
    backend.windows = windows_of(checkpoint, backend.context.config, backend._tokenizer)
    tasks = [Task(index=n, prompt=text, seed=n, stem=str(n)) for n, text in enumerate(("abc", "abcde"))]
    backend.generate(Batch(tuple(tasks)))
    assert backend.facts.of_task == {(1, 0): {"prompt_cut": {"tokenizer": [6, 4]}}}


def test_a_rank_that_does_not_get_the_images_gives_none(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, _ = load()
    monkeypatch.setattr(backend.engine, "prepare", lambda *_: lambda: None)
    assert backend.generate(batch(2)) is None


def test_a_call_that_breaks_off_leaves_no_steps_in_a_cache(load: Any) -> None:
    backend, pipeline = load(should_stop=lambda: True)
    with pytest.raises(Drained):
        backend.generate(batch(1))
    assert pipeline.forgot == 1 and backend.seconds["denoise"] > 0


def test_blocked_images_and_images_of_nan_are_errors_of_their_items(load: Any) -> None:
    backend, pipeline = load(family=Family(name="x"))
    pixels = torch.full((3, 3, 8, 8), 0.25)
    pixels[2, 0, 0, 0] = torch.nan
    pipeline.trouble = lambda: SimpleNamespace(images=pixels, nsfw_content_detected=[False, True, False])
    image, blocked, nan = backend.generate(batch(3))
    assert image.size == (8, 8) and blocked == ItemError("blocked by the checkpoint's safety checker")
    assert nan == ItemError(NOT_A_NUMBER) and pipeline.calls[0]["output_type"] == "pt"


def test_items_whose_images_turn_out_bad_are_put_aside(load: Any, tmp_path: Path) -> None:
    tasks = []
    for number in range(4):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
        image = probe(path.name, path, path.read_bytes())
        tasks.append(
            Task(index=number, prompt=f"p{number}", seed=0, stem=str(number), images=(image,), row=f"line {number}")
        )
    for number in (0, 2):
        (tmp_path / f"{number}.png").write_bytes(b"changed")
    config = EditingConfig(input=tmp_path / "t.csv", debug=True)
    kontext = Family(name="x", edit=FAMILIES["FluxKontextPipeline"].edit)
    backend, pipeline = load(config, family=kontext)
    first, second, third, fourth = backend.generate(Batch(tuple(tasks)))
    assert isinstance(first, ItemError) and first.message.startswith("line 0: ")
    assert isinstance(third, ItemError) and third.message.startswith("line 2: ")
    assert second.size == fourth.size == (8, 8)
    (call,) = pipeline.calls
    assert call["prompt"] == ["p1", "p3"] and [i.getpixel((0, 0))[0] for i in call["image"]] == [1, 3]
    (alone,) = backend.generate(Batch(tuple(tasks[:1])))
    assert isinstance(alone, ItemError) and len(pipeline.calls) == 1
