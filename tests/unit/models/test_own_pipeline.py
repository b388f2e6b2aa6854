"""A pipeline of the user's own: what is known of it before anything of it is run, and what is refused."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dglaunch.config import BackendConfig
from dglaunch.models.checkpoint import Checkpoint, resolve
from dglaunch.tiny.folder import checkpoint as tiny_folder
from support.commands import Ended, dglaunch
from support.results import write_jsonl

LIT = "print('was run')\n"
"""What is printed if a module is run."""


@pytest.fixture(autouse=True)
def nobody_has_imported_it() -> Iterator[None]:
    """A test that runs the module does so in this process."""
    yield
    sys.modules.pop("lit", None)


def checkpoint_of(folder: Path, monkeypatch: pytest.MonkeyPatch, source: str, name: str = "lit:Lit") -> Checkpoint:
    (folder / "lit.py").write_text(source)
    monkeypatch.chdir(folder)
    return resolve(BackendConfig(pipeline=name))


@pytest.mark.parametrize(
    "source",
    [
        "from diffusers import FluxPipeline\nclass Lit(FluxPipeline): pass",
        "from diffusers import FluxPipeline as Base\nclass Lit(Base): pass",
        "import diffusers\nclass Lit(diffusers.FluxPipeline): pass",
        "from diffusers.pipelines.flux.pipeline_flux import FluxPipeline\nclass Mid(FluxPipeline): ...\nclass Lit(Mid): ...",
    ],
)
def test_its_source_says_of_which_family_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    """Also that it batches as the family does; its prompts are its own to encode."""
    found = checkpoint_of(tmp_path, monkeypatch, LIT + source)
    assert (found.pipeline_class, found.pipeline_name) == ("FluxPipeline", "lit:Lit")
    assert found.family.batch and found.family.size_multiple == 16 and not found.encodes_ahead("auto")
    assert "lit" not in sys.modules


@pytest.mark.parametrize(
    "source",
    [
        "from diffusers import DiffusionPipeline\nclass Lit(DiffusionPipeline): pass",
        "from diffusers import StableDiffusionXLPipeline as Base\nclass Lit(Base): pass",
        "from mine import FluxPipeline\nclass Lit(FluxPipeline): pass",
        "class Lit(Lit): pass",
        "from other import Lit",
    ],
)
def test_of_no_family_it_makes_one_image_a_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    found = checkpoint_of(tmp_path, monkeypatch, source)
    assert (found.pipeline_class, found.family.batch) == ("Lit", False)
    assert "derives from no pipeline" in found.family.batch_reason


def plan(folder: Path, *words: str | Path) -> Ended:
    return dglaunch("plan", "t2i", "--prompt", "a", *words, cwd=folder, COLUMNS="2000")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--pipeline", "lit"), "such as my_module:MyPipeline"),
        (("--pipeline", "lit.py:Lit"), "name the module, not its file: lit:Lit"),
        (
            ("--pipeline", "nowhere:Lit"),
            "Start in the folder that holds nowhere.py, or put that folder into PYTHONPATH",
        ),
        (("--pipeline", "nowhere.at.all:Lit"), "there is no module nowhere.at.all"),
        (("--pipeline", "broken:Lit"), "is no Python"),
        (("--pipeline", "lit:Lit", "--encode", "ahead"), "cannot be encoded ahead"),
        (
            ("--pipeline", "lit:Lit", "--backend", "openai", "--model_name", "gpt-image-1"),
            "--pipeline would do nothing",
        ),
    ],
)
def test_a_wrong_name_or_use_is_refused_with_its_remedy(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    (tmp_path / "lit.py").write_text("from diffusers import FluxPipeline\nclass Lit(FluxPipeline): pass")
    (tmp_path / "broken.py").write_text("class Lit(:\n")
    ended = plan(tmp_path, *words)
    assert ended.code == 2 and said in ended.output and "Traceback" not in ended.output


def test_it_is_part_of_the_jobs_identity(tmp_path: Path) -> None:
    """With the fake backend, which looks for no pipeline, and says so."""
    job = ("t2i", "--backend", "fake", "--prompt", "a", "--output_dir", "out")
    ended = dglaunch(*job, "--pipeline", "lit:Lit", cwd=tmp_path)
    assert ended.code == 0 and "pipeline does nothing: --backend fake has no model" in ended.output
    ended = dglaunch(*job, cwd=tmp_path)
    assert ended.code == 2 and "pipeline: 'lit:Lit' -> None" in ended.output


def bring(folder: Path, source: str, **entries: object) -> Path:
    """A copy of `tiny` that names a pipeline of its own."""
    shutil.copytree(tiny_folder(Path("~/.cache/dglaunch").expanduser()), folder)
    index = json.loads((folder / "model_index.json").read_text()) | {"_class_name": ["pipeline", "Lit"]} | entries
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "pipeline.py").write_text(source)
    return folder


def test_code_that_comes_with_a_checkpoint_is_not_run_unasked(tmp_path: Path) -> None:
    model = bring(tmp_path / "model", LIT + "from diffusers import FluxPipeline\nclass Lit(FluxPipeline): pass")
    ended = plan(tmp_path, "--model_name", model)
    assert ended.code == 2 and "was run" not in ended.output
    assert "comes with Python code of its own (pipeline.py), which is not run unasked" in ended.output
    assert "if you trust it, add --trust_remote_code" in ended.output
    ended = plan(tmp_path, "--model_name", model, "--trust_remote_code")
    assert ended.code == 0 and "pipeline.py:Lit" in ended.output and "was run" not in ended.output


def test_a_part_with_code_of_its_own_is_not_run_unasked_either(tmp_path: Path) -> None:
    model = bring(tmp_path / "model", "", _class_name="FluxPipeline", transformer=["mine", "Mine"])
    (model / "transformer" / "mine.py").write_text(LIT)
    ended = plan(tmp_path, "--model_name", model)
    assert ended.code == 2 and "of its own (transformer/mine.py)" in ended.output


def test_the_file_that_a_checkpoint_names_must_be_there(tmp_path: Path) -> None:
    model = bring(tmp_path / "model", "")
    (model / "pipeline.py").unlink()
    ended = plan(tmp_path, "--model_name", model, "--trust_remote_code")
    assert ended.code == 2 and "names the pipeline Lit in pipeline.py, which is not in the folder" in ended.output


def test_of_two_pipelines_of_ones_own_none_is_chosen(tmp_path: Path) -> None:
    """diffusers would take the checkpoint's, whatever it is asked for."""
    model = bring(tmp_path / "model", "class Lit: pass")
    (tmp_path / "lit.py").write_text("class Lit: pass")
    ended = plan(tmp_path, "--model_name", model, "--trust_remote_code", "--pipeline", "lit:Lit")
    assert ended.code == 2 and "Drop --pipeline" in ended.output


def test_an_image_cannot_name_the_code_that_makes_it_again(tmp_path: Path) -> None:
    words = ("--prompts_file", write_jsonl(tmp_path / "p.jsonl", [{"prompt": "a"}]), "--output_dir", "out")
    assert dglaunch("t2i", "--backend", "fake", "--pipeline", "lit:Lit", *words, cwd=tmp_path).code == 0
    ended = dglaunch("replay", "out/000000.png", cwd=tmp_path)
    assert ended.code == 0
    assert "It was made with --pipeline lit:Lit; to run that code again, add --set pipeline=lit:Lit." in ended.output


@pytest.mark.parametrize("source", ["", "class Lid: ...", "from diffusers import FluxPipeline", "import Lit.x"])
def test_a_class_that_is_not_there_is_told_from_the_source(tmp_path: Path, source: str) -> None:
    (tmp_path / "lit.py").write_text(LIT + source)
    ended = dglaunch("t2i", "--prompt", "a", "--pipeline", "lit:Lit", "--output_dir", "out", cwd=tmp_path)
    assert ended.code == 2 and "lit.py has no class Lit" in ended.output and "was run" not in ended.output
    assert ("its classes: Lid" in ended.output) == ("Lid" in source) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "source", ["from mine import *", "Lit = make()", "def __getattr__(name): ...", "globals()['Lit'] = 1"]
)
def test_one_that_the_source_may_have_is_left_to_the_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    assert checkpoint_of(tmp_path, monkeypatch, source).pipeline_class == "Lit"
