"""A view of the results stays what it is through a kill, a repair and a replay."""

import time
from pathlib import Path

import pytest
from PIL import Image

from dglaunch.cli.main import main
from support.ranks import World
from support.results import ledger, write_jsonl

GENEVAL = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {"tag": "color_attr", "include": [{"class": "cow", "count": 1, "color": "red"}], "prompt": "a photo of a red cow"},
    {"tag": "counting", "include": [{"class": "car", "count": 3}], "prompt": "a photo of three cars"},
]


def test_kill_resume_damage_repair_gallery_and_replay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = write_jsonl(
        tmp_path / "p.jsonl", [row | {"prompt": row["prompt"] + " [sleep 0.05]"} for row in GENEVAL * 4]
    )
    out, view = tmp_path / "out", tmp_path / "out" / "geneval"
    words = [
        "t2i",
        "--backend",
        "fake",
        "--prompts_file",
        prompts,
        "--output_dir",
        out,
        "--layout",
        "geneval",
        "--gallery",
    ]
    world = World(tmp_path, 2, words)
    while len(ledger(out)) < 2 and world.poll() is None:
        time.sleep(0.005)
    world.kill()
    assert 2 <= len(ledger(out)) < 48 and not view.exists()
    assert main(list(map(str, words))) == 0
    assert len(list(view.rglob("*.png"))) == 48 and (out / "gallery.html").exists()
    assert main(["verify", str(out)]) == 0, "the view is no concern of verify"

    broken = out / "000003_02.png"
    broken.write_bytes(broken.read_bytes()[:100])  # the link shows the damage too
    assert main(["verify", str(out), "--repair"]) == 1 and not broken.exists()
    assert main(list(map(str, words))) == 0
    sample = view / "00003" / "samples" / "00002.png"
    assert sample.samefile(broken) and Image.open(sample).size
    assert main(["replay", str(sample), "--output", str(tmp_path / "again.png")]) == 0
    assert "the same, pixel for pixel" in capsys.readouterr().out
    assert not list(out.glob(".dglaunch-*.tmp")), "no temporary file is left"
