"""This command measures how often the checkpoint `tiny` draws what held-out prompts ask for.

It runs diffusers' pipelines on a CPU.

    python -m dglaunch.tiny.training.evaluate                        # the table, some minutes on two cores
    python -m dglaunch.tiny.training.evaluate --quick                # seconds
    python -m dglaunch.tiny.training.evaluate --sheet sheet.png      # and the pictures, the wrong ones in red frames

The goals are 95 % for one object and 85 % for two and for edits; `checker.py` says what counts as right.
"""

import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
import tyro
from diffusers import FluxKontextPipeline, FluxPipeline
from PIL import Image, ImageOps

from dglaunch.tiny.folder import checkpoint
from dglaunch.tiny.training import checker, draw, spec
from dglaunch.tiny.training.edits import OBJECT_EDITS, SCENE_EDITS, sample_edit
from dglaunch.tiny.training.prompts import prompt

TITLES = {
    "one": "one object",
    "two": "two objects",
    "scene": "scene (roughly)",
    "object edit": "edit of objects",
    "scene edit": "edit of a scene",
}
"""The kinds of prompt, with their titles in the table."""
GOALS = {"one": 0.95, "two": 0.85, "object edit": 0.85, "scene edit": 0.85}
QUICK = 32
BATCH = 32
SHOWN = 32

CheckedImage = tuple[Image.Image, dict[str, bool]]


@dataclass(kw_only=True, slots=True)
class Settings:
    """What to measure, and with how many prompts."""

    folder: Path | None = None
    """The checkpoint; the embedded one by default."""
    count: int = 256
    """Prompts of each kind."""
    quick: bool = False
    """32 prompts of each kind."""
    steps: int | None = None
    """Denoising steps; by default as many as the checkpoint asks for."""
    seed: int = 0
    sheet: Path | None = None
    """Write a contact sheet of the first 32 pictures of each kind."""


@dataclass(slots=True)
class Score:
    """A score counts how many images of a kind passed each of the checks; the check "all" is that of all of them."""

    count: int = 0
    passed: Counter[str] = field(default_factory=Counter)
    checked: Counter[str] = field(default_factory=Counter)

    def add(self, result: dict[str, bool]) -> None:
        """Count an image's checks."""
        self.count += 1
        self.checked.update(result.keys())
        self.passed.update(name for name, is_right in result.items() if is_right)

    def share(self, name: str = "all") -> float:
        """Return the share of the images that passed a check."""
        return self.passed[name] / max(1, self.checked[name])


class Evaluation:
    """An evaluation runs FluxPipeline and FluxKontextPipeline over one set of networks, as the checkpoint asks for."""

    def __init__(self, folder: Path, steps: int | None = None, seed: int = 0):
        defaults = json.loads((folder / "dglaunch.json").read_text())
        self.edit_settings: dict[str, object] = defaults.pop("edit")
        self.settings: dict[str, object] = defaults
        self.size: tuple[int, int] = defaults["width"], defaults["height"]
        if steps is not None:
            self.settings["num_inference_steps"] = steps
        self.seed = seed
        self.pipeline = FluxPipeline.from_pretrained(folder)
        self.kontext = FluxKontextPipeline(**self.pipeline.components)
        for pipeline in (self.pipeline, self.kontext):
            pipeline.set_progress_bar_config(disable=True)

    def run(self, count: int) -> tuple[dict[str, Score], list[Image.Image]]:
        """Return a score for each kind of prompt, and framed images for a contact sheet."""
        scores: dict[str, Score] = {}
        shown: list[Image.Image] = []
        for kind in TITLES:
            scores[kind] = Score()
            for index, (image, result) in enumerate(self._images(kind, count)):
                scores[kind].add(result)
                if index < SHOWN:
                    shown.append(ImageOps.expand(image, 2, "white" if result["all"] else "red"))
        return scores, shown

    def pictures(self, kind: str, count: int) -> Iterator[CheckedImage]:
        """Make images from held-out prompts of a kind ("one", "two", "scene"), and check each."""
        rng = random.Random(f"evaluate {self.seed} {kind}")
        items = [spec.sample(rng, kind, is_held_out=True) for _ in range(count)]
        for begin in range(0, count, BATCH):
            batch = items[begin : begin + BATCH]
            prompts = [prompt(rng, item) for item in batch]
            generators = self._generators(begin, len(batch))
            images = self.pipeline(prompts, generator=generators, **self.settings).images
            for image, item in zip(images, batch, strict=True):
                yield image, checker.picture(image, item)

    def edits(self, source: str, count: int) -> Iterator[CheckedImage]:
        """Make held-out edits of a source ("object", "scene"), as many of each kind, and check each.

        The result of each edit counts for its kind too.
        """
        edits = self._sample_edits(source, count)
        for begin in range(0, count, BATCH):
            batch = edits[begin : begin + BATCH]
            before = [draw.picture(edit.before, *self.size) for edit in batch]
            images = self.kontext(
                image=before,
                prompt=[edit.instruction for edit in batch],
                generator=self._generators(begin, len(batch)),
                **self.settings,
                **self.edit_settings,
            ).images
            for image, picture, edit in zip(images, before, batch, strict=True):
                result = checker.edit(image, picture, edit)
                yield image, result | {edit.kind: result["all"]}

    def _images(self, kind: str, count: int) -> Iterator[CheckedImage]:
        if kind.endswith(" edit"):
            return self.edits(kind.removesuffix(" edit"), count)
        return self.pictures(kind, count)

    def _sample_edits(self, source: str, count: int) -> list[spec.Edit]:
        rng = random.Random(f"evaluate {self.seed} {source}")
        kinds = SCENE_EDITS if source == "scene" else OBJECT_EDITS
        edits = []
        for index in range(count):
            kind = kinds[index % len(kinds)]
            if source == "scene":
                pictures: tuple[str, ...] = ("scene",)
            elif kind == "remove":
                pictures = ("two",)
            else:
                pictures = ("one", "two")
            edits.append(sample_edit(rng, True, rng.choice(pictures), kind))
        return edits

    def _generators(self, begin: int, count: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(self.seed + begin + index) for index in range(count)]


def table(scores: dict[str, Score]) -> str:
    """Return a Markdown table: the share that is all right, the goal, and the share for each check."""
    lines = ["| prompts | number | all right | goal | of which |", "|---|---|---|---|---|"]
    for kind, score in scores.items():
        goal = f"{GOALS[kind]:.0%}" if kind in GOALS else "-"
        parts = ", ".join(f"{name} {score.share(name):.1%}" for name in score.checked if name != "all")
        lines.append(f"| {TITLES[kind]} | {score.count} | {score.share():.1%} | {goal} | {parts} |")
    return "\n".join(lines)


def main() -> None:
    """Measure a checkpoint and print the table."""
    settings = tyro.cli(Settings)
    evaluation = Evaluation(settings.folder or checkpoint(), settings.steps, settings.seed)
    scores, shown = evaluation.run(QUICK if settings.quick else settings.count)
    print(table(scores))
    if settings.sheet:
        draw.sheet(shown, 16).save(settings.sheet)


if __name__ == "__main__":
    main()
