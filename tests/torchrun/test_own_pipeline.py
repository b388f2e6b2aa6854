"""Pipelines of the user's own draw: a class from a module beside the table, and one that comes with the checkpoint."""

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from support.commands import ROOT, Ended, dglaunch
from support.results import images, ledger, run_json, write_jsonl

PAGE = (ROOT / "docs" / "new_family.md").read_text(encoding="utf-8")
DARK = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)[0]
NOISE = """
import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.pipelines import ImagePipelineOutput

class Noise(DiffusionPipeline):
    def __init__(self, transformer, vae):
        super().__init__()
        self.register_modules(transformer=transformer, vae=vae)

    def __call__(self, prompt, generator, height: int = 64, width: int = 64, num_inference_steps: int = 1):
        assert len(prompt) == len(generator) == 1
        noise = torch.rand(height, width, 3, generator=generator[0]).numpy()
        return ImagePipelineOutput(images=self.numpy_to_pil(noise[None]))

class Deaf(Noise):
    def __call__(self, prompt):
        pass

class More(Noise):
    def __init__(self, transformer, vae, refiner):
        super().__init__(transformer, vae)

class Less(Noise):
    def __init__(self, transformer, vae):
        DiffusionPipeline.__init__(self)

if False:
    Gone = Noise
"""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "my_pipeline.py").write_text(DARK)
    (tmp_path / "own_noise.py").write_text(NOISE)
    write_jsonl(tmp_path / "p.jsonl", [{"prompt": "a red circle"}, {"prompt": "a blue square"}])
    return tmp_path


def t2i(here: Path, out: str, *words: str | Path) -> Ended:
    command = ("t2i", "--prompts_file", "p.jsonl", "--num_inference_steps", "2", "--output_dir", out)
    return dglaunch(*command, *words, cwd=here, COLUMNS="2000")


def test_one_that_derives_from_a_family_batches_as_it_does(here: Path) -> None:
    """Its call hands on what the family's takes: --height is not lost."""
    words = ("--batch_size", "2", "--height", "64", "--width", "64")
    assert t2i(here, "plain", *words).code == 0
    ended = t2i(here, "dark", "--pipeline", "my_pipeline:MyPipeline", *words)
    assert ended.code == 0, ended.output
    assert "tiny (my_pipeline:MyPipeline)" in ended.output
    dark, plain = images(here / "dark"), images(here / "plain")
    assert all(np.abs(dark[name].astype(int) - plain[name].astype(int) // 2).max() <= 1 for name in plain)
    assert [line["batch_size"] for line in ledger(here / "dark")] == [2, 2]
    assert run_json(here / "dark")["settings"]["pipeline"] == "my_pipeline:MyPipeline"


def test_one_that_comes_with_the_checkpoint_draws_if_it_is_trusted(here: Path) -> None:
    model = here / "model"
    shutil.copytree(ROOT / "dglaunch" / "tiny" / "weights", model)
    index = json.loads((model / "model_index.json").read_text()) | {"_class_name": ["my_pipeline", "MyPipeline"]}
    (model / "model_index.json").write_text(json.dumps(index))
    shutil.move(here / "my_pipeline.py", model)
    ended = t2i(here, "out", "--model_name", model, "--trust_remote_code")
    assert ended.code == 0, ended.output
    assert max(image.max() for image in images(here / "out").values()) <= 128


def test_what_the_page_says_to_type_works(here: Path) -> None:
    (command,) = re.findall(r"^    dglaunch (t2i .*--pipeline .*)$", PAGE, re.MULTILINE)
    ended = dglaunch(*shlex.split(command), cwd=here)
    assert ended.code == 0, ended.output
    assert images(here / "own")["000000.png"].max() <= 128


def test_any_other_makes_one_image_a_call(here: Path) -> None:
    ended = t2i(here, "out", "--pipeline", "own_noise:Noise", "--height", "32")
    assert ended.code == 0, ended.output
    assert [line["batch_size"] for line in ledger(here / "out")] == [1, 1]
    first, second = images(here / "out").values()
    assert first.shape == (32, 64, 3) and not np.array_equal(first, second)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Loud", "own_noise.py has no class Loud; its classes: Noise, Deaf, More, Less."),
        ("Gone", "The pipeline own_noise:Gone cannot be imported (module 'own_noise' has no attribute 'Gone')"),
        ("np", "own_noise:np is no class that derives from diffusers' DiffusionPipeline"),
        ("Deaf", "The call of own_noise:Deaf takes no generator"),
        ("More", "cannot be loaded as own_noise:More: Pipeline"),
        ("Less", "cannot be loaded as own_noise:Less"),
    ],
)
def test_what_cannot_be_one_is_the_users_mistake(here: Path, name: str, said: str) -> None:
    command = ("t2i", "--prompt", "a", "--output_dir", "out", "--pipeline", f"own_noise:{name}")
    ended = dglaunch(*command, cwd=here, COLUMNS="2000")
    assert ended.code == 2 and said in ended.output, ended.output
    assert "Traceback" not in ended.output
    shows_when_loaded = name in ("More", "Less")
    assert (here / "out").exists() == shows_when_loaded


def test_a_module_that_breaks_off_is_the_users_mistake(here: Path) -> None:
    (here / "own_broken.py").write_text("from own_noise import Noise\nclass Broken(Noise):\n    side = undefined")
    ended = dglaunch("t2i", "--prompt", "a", "--output_dir", "out", "--pipeline", "own_broken:Broken", cwd=here)
    assert ended.code == 2 and "cannot be imported (name 'undefined' is not defined)" in ended.output, ended.output
    assert not (here / "out").exists()


def test_a_flag_that_its_call_does_not_take_is_refused(here: Path) -> None:
    ended = t2i(here, "out", "--pipeline", "own_noise:Noise", "--guidance_scale", "3")
    assert (
        ended.code == 2
        and "own_noise:Noise does not take guidance_scale, so --guidance_scale would do nothing" in ended.output
    )
    assert not (here / "out").exists(), "before anything is written"
