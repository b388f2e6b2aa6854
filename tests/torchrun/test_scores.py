"""`dglaunch score` by models of transformers: as transformers says it, on one rank and on two, killed and resumed."""

import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from support.commands import dglaunch
from support.ranks import World, on_ranks
from support.results import ledger, write_jsonl
from support.tiny_clip import by_hand, linear_head, tiny_clip, tiny_siglip

LONG = "a very long prompt " * 5
PROMPTS = ["a red fox", "a blue dog at night", LONG, "two cats", "a boat"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, and ten images of five prompts."""
    folder = tmp_path_factory.mktemp("scores")
    tiny_clip(folder / "clip")
    tiny_siglip(folder / "siglip")
    table = write_jsonl(folder / "prompts.jsonl", [{"prompt": prompt} for prompt in PROMPTS])
    words = ["--prompts_file", table, "--num_images_per_prompt", "2", "--height", "40", "--width", "64"]
    assert dglaunch("t2i", "--backend", "fake", *words, "--output_dir", folder / "out").code == 0
    return folder


@pytest.fixture
def out(folder: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(folder / "out", tmp_path / "out"))


def scores(out: Path, name: str) -> dict[tuple[int, int], float]:
    return {(line["index"], line["sample"]): line["score"] for line in ledger(out / "scores", f"{name}.jsonl")}


@pytest.mark.parametrize("model", ["clip", "siglip"])
def test_it_is_what_transformers_says(folder: Path, out: Path, model: str) -> None:
    ended = dglaunch("score", out, "--with", folder / model, "--batch_size", "4")
    assert ended.code == 0, ended.output
    assert "2 prompts are longer than the model reads" in ended.output
    found = scores(out, model)
    for line in ledger(out):
        wanted = by_hand(folder / model, out / line["file_name"], line["prompt"])
        assert found[line["index"], line["sample"]] == pytest.approx(wanted, abs=2e-6)
    assert len({round(score, 4) for score in found.values()}) > 5, "they differ"
    assert [line.get("cut") for line in ledger(out / "scores", f"{model}.jsonl")].count(True) == 2


def test_two_ranks_killed_and_resumed_say_the_same(folder: Path, out: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    import shutil

    shutil.copytree(out, alone)
    assert dglaunch("score", alone, "--with", folder / "clip", "--batch_size", "8").code == 0
    words = ["score", out, "--with", folder / "clip", "--batch_size", "1", "--best_of", "1"]
    world = World(tmp_path, 2, words)
    limit = time.monotonic() + 60
    while not any(path.stat().st_size for path in (out / "scores").glob("clip-rank*.jsonl")):
        assert world.poll() is None and time.monotonic() < limit, world.output()
        time.sleep(0.002)
    world.kill()
    before = sum(path.read_bytes().count(b"\n") for path in (out / "scores").glob("clip*.jsonl"))
    assert before, "some were scored"
    ended = on_ranks(tmp_path, 2, *words)
    assert ended.codes == [0, 0], ended.output
    assert ended.output.count("images scored") == 1 and f"({before:,} were before)" in ended.output, ended.output
    assert scores(out, "clip") == pytest.approx(scores(alone, "clip"), abs=1e-6)
    assert [path.name for path in (out / "scores").glob("*.jsonl")] == ["clip.jsonl"]
    assert len(list((out / "best_of_1_clip").glob("*.png"))) == len(PROMPTS)


def test_a_mistake_is_told_once_by_all_ranks(folder: Path, out: Path, tmp_path: Path) -> None:
    ended = on_ranks(tmp_path, 2, "score", out, "--with", "clop")
    assert ended.codes == [2, 2] and ended.output.count("there is no such model") == 1


def test_a_head_says_how_beautiful_it_is(folder: Path, out: Path, tmp_path: Path) -> None:
    import transformers

    head, layers = linear_head(tmp_path)
    ended = dglaunch("score", out, "--with", folder / "clip", "--head", head, "--name", "beauty")
    assert ended.code == 0, ended.output
    model = transformers.CLIPModel.from_pretrained(folder / "clip")
    images = transformers.CLIPImageProcessor.from_pretrained(folder / "clip")
    for line in ledger(out)[:3]:
        with torch.inference_mode(), Image.open(out / line["file_name"]) as image:
            vector = model.get_image_features(**images(images=[image.convert("RGB")], return_tensors="pt"))
            vector = getattr(vector, "pooler_output", vector)
            wanted = float(layers(vector / vector.norm()))
        assert scores(out, "beauty")[line["index"], line["sample"]] == pytest.approx(wanted, abs=2e-6)
    pickled = ["score", out, "--with", folder / "clip", "--head", tmp_path / "head.pth", "--name", "pickled"]
    refused = dglaunch(*pickled)
    assert refused.code == 2 and "--allow_pickle" in refused.output
    assert dglaunch(*pickled, "--allow_pickle").code == 0
    assert scores(out, "pickled") == scores(out, "beauty")
    other, _ = linear_head(tmp_path, size=32)
    refused = dglaunch("score", out, "--with", folder / "clip", "--head", other, "--name", "other")
    assert refused.code == 2 and "for vectors of 32 numbers" in refused.output


def test_models_that_cannot_score_are_refused(folder: Path, out: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    def refused(path: Path) -> str:
        ended = dglaunch("score", out, "--with", path)
        assert ended.code == 2 and not list(out.glob("scores/*.jsonl")), ended.output
        return ended.output

    half = Path(shutil.copytree(folder / "clip", tmp_path / "half"))
    tensors = load_file(half / "model.safetensors")
    save_file({n: t for n, t in tensors.items() if "visual_projection" not in n}, half / "model.safetensors")
    assert "visual_projection" in refused(half), "transformers would fill it with random numbers"
    bert = Path(shutil.copytree(folder / "clip", tmp_path / "bert"))
    (bert / "config.json").write_text('{"model_type": "bert"}')
    assert "of the type 'bert'" in refused(bert)
    pickled = Path(shutil.copytree(folder / "clip", tmp_path / "pickled"))
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    assert "lacks *.safetensors" in refused(pickled)
    (tmp_path / "empty").mkdir()
    assert "has no config.json" in refused(tmp_path / "empty")
