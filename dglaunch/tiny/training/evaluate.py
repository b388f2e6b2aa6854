"""How often does the checkpoint `tiny` draw what it was asked for? Held-out prompts, the real pipelines, a CPU.

    python -m dglaunch.tiny.training.evaluate                        # the table, some minutes on two cores
    python -m dglaunch.tiny.training.evaluate --quick                # seconds
    python -m dglaunch.tiny.training.evaluate --sheet sheet.png      # and the pictures; those that fail have a red frame

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

GOALS = {"one": 0.95, "two": 0.85, "object edit": 0.85, "scene edit": 0.85}
QUICK = 32
BATCH = 32
SHOWN = 32
TITLES = {
    "one": "one object",
    "two": "two objects",
    "scene": "scene (roughly)",
    "object edit": "edit of objects",
    "scene edit": "edit of a scene",
}


@dataclass(kw_only=True, slots=True)
class Settings:
    folder: Path | None = None
    """The checkpoint; the embedded one by default."""
    count: int = 256
    """Prompts of each kind."""
    quick: bool = False
    """32 prompts of each kind."""
    steps: int | None = None
    """Sampling steps, where not the checkpoint's own."""
    seed: int = 0
    sheet: Path | None = None
    """Write a contact sheet of the first 32 pictures of each kind."""


@dataclass(slots=True)
class Score:
    """How many of a kind passed in all, and for each thing that was checked."""

    count: int = 0
    right: Counter[str] = field(default_factory=Counter)
    asked: Counter[str] = field(default_factory=Counter)

    def add(self, result: dict[str, bool]) -> None:
        self.count += 1
        self.asked.update(result.keys())
        self.right.update(name for name, right in result.items() if right)

    def share(self, name: str = "all") -> float:
        return self.right[name] / max(1, self.asked[name])


def _chunks(items: list, size: int = BATCH) -> Iterator[tuple[int, list]]:
    for begin in range(0, len(items), size):
        yield begin, items[begin : begin + size]


def _generators(seed: int, begin: int, count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed + begin + i) for i in range(count)]


class Evaluation:
    """Both pipelines over one set of networks, with the checkpoint's own settings."""

    def __init__(self, folder: Path, steps: int | None = None, seed: int = 0):
        self.settings = json.loads((folder / "dglaunch.json").read_text())
        self.edit_settings = self.settings.pop("edit")
        if steps is not None:
            self.settings["num_inference_steps"] = steps
        self.seed = seed
        self.pipeline = FluxPipeline.from_pretrained(folder)
        self.kontext = FluxKontextPipeline(**self.pipeline.components)
        for pipeline in (self.pipeline, self.kontext):
            pipeline.set_progress_bar_config(disable=True)

    def pictures(self, kind: str, count: int) -> Iterator[tuple[Image.Image, dict[str, bool]]]:
        rng = random.Random(f"evaluate {self.seed} {kind}")
        items = [spec.sample(rng, kind, is_held_out=True) for _ in range(count)]
        check = checker.scene if kind == "scene" else checker.objects
        for begin, part in _chunks(items):
            prompts = [spec.prompt(rng, item) for item in part]
            generators = _generators(self.seed, begin, len(part))
            images = self.pipeline(prompts, generator=generators, **self.settings).images
            yield from ((image, check(image, item)) for image, item in zip(images, part, strict=True))

    def edits(self, of: str, count: int) -> Iterator[tuple[Image.Image, dict[str, bool]]]:
        """As many of each kind of edit; each counts for itself too."""
        rng = random.Random(f"evaluate {self.seed} {of}")
        kinds = spec.SCENE_EDITS if of == "scene" else spec.OBJECT_EDITS
        sources = ("scene",) if of == "scene" else ("one", "two")
        items = [
            spec.sample_edit(rng, True, rng.choice(sources[-1:] if kind == "remove" else sources), kind)
            for kind in (kinds[i % len(kinds)] for i in range(count))
        ]
        width, height = self.settings["width"], self.settings["height"]
        for begin, part in _chunks(items):
            before = [draw.picture(edit.before, width, height) for edit in part]
            images = self.kontext(
                image=before,
                prompt=[edit.instruction for edit in part],
                generator=_generators(self.seed, begin, len(part)),
                **self.settings,
                **self.edit_settings,
            ).images
            for image, source, edit in zip(images, before, part, strict=True):
                result = checker.edit(image, source, edit)
                yield image, result | {edit.kind: result["all"]}

    def run(self, count: int) -> tuple[dict[str, Score], list[Image.Image]]:
        """A score for each kind of prompt, and pictures for a contact sheet."""
        scores, shown = {}, []
        for kind in TITLES:
            scores[kind] = Score()
            of, _, is_edit = kind.partition(" ")
            results = self.edits(of, count) if is_edit else self.pictures(kind, count)
            for index, (image, result) in enumerate(results):
                scores[kind].add(result)
                if index < SHOWN:
                    shown.append(ImageOps.expand(image, 2, "white" if result["all"] else "red"))
        return scores, shown


def table(scores: dict[str, Score]) -> str:
    """A Markdown table: the share that is all right, the goal, and the share for each thing checked."""
    lines = ["| prompts | number | all right | goal | of which |", "|---|---|---|---|---|"]
    for kind, score in scores.items():
        goal = f"{GOALS[kind]:.0%}" if kind in GOALS else "-"
        parts = ", ".join(f"{name} {score.share(name):.1%}" for name in score.asked if name != "all")
        lines.append(f"| {TITLES[kind]} | {score.count} | {score.share():.1%} | {goal} | {parts} |")
    return "\n".join(lines)


def main() -> None:
    settings = tyro.cli(Settings)
    evaluation = Evaluation(settings.folder or checkpoint(), settings.steps, settings.seed)
    scores, shown = evaluation.run(QUICK if settings.quick else settings.count)
    print(table(scores))
    if settings.sheet:
        draw.sheet(shown, 16).save(settings.sheet)


if __name__ == "__main__":
    main()
