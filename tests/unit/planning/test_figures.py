"""Where figures come from, what is kept of them, and what runs teach about memory. Traces are scripted here."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dglaunch import strict_json
from dglaunch.config import BackendConfig, ParallelConfig, RunConfig, T2IConfig
from dglaunch.data.task import Bucket
from dglaunch.models.checkpoint import Checkpoint, resolve
from dglaunch.models.figures import BlockSizes, Figures, Request, StageCost
from dglaunch.planning import figures
from dglaunch.planning.figures import MOST_TRACED, FigureBook, longest_prompt

FIGURES = Figures(
    weights={"transformer": 1000, "vae": 10},
    block_sizes={"transformer": BlockSizes(largest=3, outside=2, tables=1)},
    encode=StageCost(),
    denoise=StageCost(fixed_bytes=5, image_bytes=100, flops=1e12, sent_bytes=7),
    decode=StageCost(image_bytes=300, flops=2e12),
    num_inference_steps=28,
)
SQUARE = Bucket(height=768, width=768)
"""A size that is not shipped."""


class Tracer:
    """Answers with FIGURES and keeps what it was asked."""

    def __init__(self, error: Exception | None = None) -> None:
        self.asked: list[Request] = []
        self.error = error

    def __call__(self, request: Request) -> Figures:
        self.asked.append(request)
        if self.error is not None:
            raise self.error
        return FIGURES


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    backend = BackendConfig(model_name="black-forest-labs/FLUX.1-dev", cache_dir=tmp_path)
    return T2IConfig(backend=backend, prompts_file=Path("unused"))


@pytest.fixture
def checkpoint(config: RunConfig) -> Checkpoint:
    return resolve(config.backend)


def book(checkpoint: Checkpoint, config: RunConfig, trace: Tracer | None, machine: str = "") -> FigureBook:
    return FigureBook(checkpoint, config, ParallelConfig(), "bfloat16", trace, machine=machine)


LARGE = Bucket(height=1024, width=1024)
"""A size that is shipped."""


def here(monkeypatch: pytest.MonkeyPatch, **packages: str) -> None:
    """Pretend that these versions are installed beside those that the shipped figures were traced with."""
    traced_with = json.loads(figures.SHIPPED.read_text())["versions"]
    installed = {name: version for name, version in {**traced_with, **packages}.items() if version}
    monkeypatch.setattr(figures, "versions", lambda: installed)


@pytest.mark.parametrize(
    "packages",
    [
        {}, {"torch": "2.13.0"}, {"torch": "2.13.0+cu130"}, {"torch": "2.11.0+cu128"}, {"transformers": "5.17.0"}, {"xfuser": ""},
        {"diffusers": "0.42.0"}, {"torch": "", "transformers": "", "xfuser": ""},
    ],
)  # fmt: skip
def test_shipped_figures_are_those_of_all_versions_that_compute_alike(
    checkpoint: Checkpoint, config: RunConfig, monkeypatch: pytest.MonkeyPatch, packages: dict[str, str]
) -> None:
    here(monkeypatch, **packages)
    found = book(checkpoint, config, None)
    assert found(LARGE) is not None and found.traced_with(LARGE)["torch"] == "2.13.0+cpu"


@pytest.mark.parametrize(
    "packages", [{"diffusers": "0.43.0"}, {"diffusers": "0.43.0.dev0"}, {"transformers": "6.0.0"}, {"torch": "3.0.0"}]
)
def test_shipped_figures_are_not_those_of_other_model_classes(
    checkpoint: Checkpoint, config: RunConfig, monkeypatch: pytest.MonkeyPatch, packages: dict[str, str]
) -> None:
    here(monkeypatch, **packages)
    tracer = Tracer()
    found = book(checkpoint, config, tracer)
    assert found(LARGE) == FIGURES and tracer.asked
    assert packages.items() <= found.traced_with(LARGE).items()


def test_only_xfusers_own_splits_need_xfuser(
    checkpoint: Checkpoint, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    here(monkeypatch, xfuser="0.8.0")
    split = book(checkpoint, config, None).for_layout(ParallelConfig(ulysses_degree=2))
    assert book(checkpoint, config, None)(LARGE) is not None and split(LARGE) is None
    assert "xfuser" not in split.for_layout(ParallelConfig(context_degree=2)).traced_with(LARGE)


def test_shipped_figures_are_of_one_configuration(checkpoint: Checkpoint, config: RunConfig) -> None:
    other = dict(checkpoint.components)
    other["transformer"] = replace(other["transformer"], config={**other["transformer"].config, "num_layers": 3})
    shallow = replace(checkpoint)
    shallow.__dict__["components"] = other
    tracer = Tracer()
    assert book(shallow, config, tracer)(LARGE) == FIGURES and tracer.asked


def test_a_trace_is_kept_for_the_next_time(checkpoint: Checkpoint, config: RunConfig) -> None:
    first, second = Tracer(), Tracer()
    assert book(checkpoint, config, first)(SQUARE) == FIGURES
    assert book(checkpoint, config, second)(SQUARE) == FIGURES
    assert len(first.asked) == 1 and not second.asked


def test_another_size_guidance_or_configuration_is_another_trace(checkpoint: Checkpoint, config: RunConfig) -> None:
    tracer = Tracer()
    found = book(checkpoint, config, tracer)
    for bucket in (SQUARE, replace(SQUARE, width=512), replace(SQUARE, guidance_scale=1.0)):
        found(bucket)
    other = dict(checkpoint.components)
    other["transformer"] = replace(other["transformer"], config={**other["transformer"].config, "num_layers": 3})
    shallow = replace(checkpoint)
    shallow.__dict__["components"] = other
    book(shallow, config, tracer)(SQUARE)
    assert len(tracer.asked) == 4


@pytest.mark.parametrize("damage", [b"", b"[]", b'{"weights": 1}', b'{"weights": {"a": -1}}', b"\xff"])
def test_damaged_figures_are_traced_again(
    checkpoint: Checkpoint, config: RunConfig, tmp_path: Path, damage: bytes
) -> None:
    book(checkpoint, config, Tracer())(SQUARE)
    (file,) = (tmp_path / "figures").glob("*.json")
    file.write_bytes(damage)
    tracer = Tracer()
    assert book(checkpoint, config, tracer)(SQUARE) == FIGURES and tracer.asked


def test_of_many_sizes_a_few_are_traced_and_the_others_scaled(checkpoint: Checkpoint, config: RunConfig) -> None:
    tracer = Tracer()
    found = book(checkpoint, config, tracer)
    shapes = [Bucket(height=16 * n, width=768) for n in range(40, 60)]
    figures = [found(bucket) for bucket in shapes]
    assert len(tracer.asked) == MOST_TRACED
    last = figures[-1]
    assert last is not None and FIGURES.denoise.flops < last.denoise.flops < 1.6 * FIGURES.denoise.flops


def test_what_cannot_be_traced_is_tried_once_and_said(checkpoint: Checkpoint, config: RunConfig) -> None:
    tracer = Tracer(RuntimeError("no such layer"))
    found = book(checkpoint, config, tracer)
    assert found(SQUARE) is None and found(replace(SQUARE, width=512)) is None
    assert len(tracer.asked) == 1 and found.problem == "no such layer"


def test_what_a_run_measured_corrects_the_next_plan_on_that_gpu(checkpoint: Checkpoint, config: RunConfig) -> None:
    first = book(checkpoint, config, Tracer(), "H100")
    first.measured.note("H100", first.key(SQUARE), 1.5)
    here, elsewhere = (book(checkpoint, config, Tracer(), name)(SQUARE) for name in ("H100", "L40S"))
    assert here is not None and here.decode.image_bytes == 450 and here.weights == FIGURES.weights
    assert elsewhere == FIGURES
    again = book(checkpoint, config, Tracer(), "H100")
    again.measured.note("H100", again.key(SQUARE), 2.0)  # twice what it was planned by the corrected figures
    corrected = book(checkpoint, config, Tracer(), "H100")(SQUARE)
    assert corrected is not None and corrected.decode.image_bytes == 900


@pytest.mark.parametrize("planted", ["[]", "{", '{"H100 x": "y"}', '{"H100 KEY": 1e9}', '{"H100 KEY": null}'])
def test_a_planted_table_of_measurements_changes_nothing(
    checkpoint: Checkpoint, config: RunConfig, tmp_path: Path, planted: str
) -> None:
    (tmp_path / "figures").mkdir()
    key = book(checkpoint, config, None).key(SQUARE)
    (tmp_path / "figures" / "measured.json").write_text(planted.replace("KEY", key))
    assert book(checkpoint, config, Tracer(), "H100")(SQUARE) == FIGURES


def test_figures_survive_json() -> None:
    assert Figures.from_json(strict_json.loads(strict_json.dumps(FIGURES.as_json()).encode())) == FIGURES  # type: ignore[arg-type]


def test_the_longest_prompt_counts_in_steps() -> None:
    assert longest_prompt(["a cat"]) == 128
    assert longest_prompt(["word " * 200]) == 256
