"""What needs a newer diffusers than is here is refused before anything is loaded, with the version that has it."""

import re
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

from dglaunch import system
from support.checkpoint_folders import checkpoint_folder
from support.commands import ROOT, dglaunch
from support.input_tables import table
from support.versions import FLOOR


@pytest.mark.parametrize(
    ("pipeline", "flags", "what", "since"),
    [
        ("Krea2Pipeline", (), "The pipeline of Krea2", "0.39.0"),
        ("FluxPipeline", ("--shard", "tensor"), "--shard tensor", "0.40.0"),
    ],
)
def test_it_is_told_with_the_version_that_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pipeline: str, flags: tuple[str, ...], what: str, since: str
) -> None:
    monkeypatch.setattr(system, "version", lambda name: "0.38.1" if name == "diffusers" else version(name))
    model = checkpoint_folder(tmp_path / "model", _class_name=pipeline)
    degrees = {"DG_SHARD_DEGREE": "2", "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"} if flags else {}
    ended = dglaunch("t2i", "--prompt", "x", "--model_name", model, "--output_dir", tmp_path / "out", *flags, **degrees)
    remedy = f"Update it: pip install -U 'diffusers>={since}'"
    assert ended.code == 2, ended.output
    assert f"{what} needs diffusers {since} or newer, and here is 0.38.1. {remedy}" in " ".join(ended.output.split())
    assert not (tmp_path / "out").exists()


def test_only_rows_with_a_mask_need_the_pipeline_that_paints_within_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system, "version", lambda name: "0.37.0" if name == "diffusers" else version(name))
    model = checkpoint_folder(tmp_path / "model", _class_name="Flux2KleinPipeline")
    row = {"instruction": "x", "input_images": "i0.png", "mask": "m0.png"}
    for rows, code in (([row], 2), ([row | {"mask": ""}], 0)):
        plan = ["plan", "edit", "--model_name", model, "--input", table(tmp_path, rows), "--mask_column", "mask"]
        ended = dglaunch(*plan)
        assert ended.code == code, ended.output
        told = (
            "Flux2KleinInpaintPipeline, for an image with a mask, needs diffusers 0.38.0 or newer, and here is 0.37.0"
        )
        assert (told in " ".join(ended.output.split())) == (code == 2)


def test_the_makefile_takes_the_oldest_diffusers_of_pyproject() -> None:
    said = subprocess.run(["make", "-n", "floor"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert re.findall(r'"diffusers==(.+?)"', said) == [FLOOR]
