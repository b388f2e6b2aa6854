"""Differences of two pictures, against their definitions written out, and of two folders matched by task."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dglaunch import strict_json
from dglaunch.output.differences import C1, C2, Comparison, compare, difference, psnr, ssim
from support.commands import dglaunch
from support.results import ledger, write_jsonl


def noise(seed: int, height: int = 24, width: int = 17) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def ssim_by_definition(one: np.ndarray, other: np.ndarray, side: int) -> float:
    """Eq. 13, window by window."""
    found = []
    for top in range(one.shape[0] - side + 1):
        for left in range(one.shape[1] - side + 1):
            for channel in range(3):
                x, y = (
                    picture[top : top + side, left : left + side, channel].astype(float) for picture in (one, other)
                )
                covariance = ((x - x.mean()) * (y - y.mean())).mean()
                above = (2 * x.mean() * y.mean() + C1) * (2 * covariance + C2)
                found.append(above / ((x.mean() ** 2 + y.mean() ** 2 + C1) * (x.var() + y.var() + C2)))
    return float(np.mean(found))


def test_psnr_alone_is_that_of_the_whole_difference() -> None:
    for other in (noise(1), noise(2), np.full((24, 17, 3), 255, dtype=np.uint8)):
        assert psnr(noise(1), other) == pytest.approx(difference(noise(1), other).psnr)
    with pytest.raises(ValueError, match="the sizes differ: 17x24 and 9x5"):
        psnr(noise(1), noise(1, 5, 9))


def test_ssim_is_its_formula() -> None:
    one = noise(1)
    near = np.clip(one.astype(int) + np.random.default_rng(2).integers(-9, 10, one.shape), 0, 255).astype(np.uint8)
    assert ssim(one, near) == pytest.approx(ssim_by_definition(one, near, 7), abs=1e-9)
    assert ssim(one, noise(3)) == pytest.approx(ssim_by_definition(one, noise(3), 7), abs=1e-9)
    assert ssim(one, noise(3)) < 0.2 < 0.95 < ssim(one, near) < ssim(one, one) == 1
    small = noise(4, 5, 9)
    assert ssim(small, noise(5, 5, 9)) == pytest.approx(ssim_by_definition(small, noise(5, 5, 9), 5), abs=1e-9)


def test_two_pictures() -> None:
    one = np.full((10, 10, 3), 100, np.uint8)
    other = one.copy()
    other[0, 0] = (110, 100, 100)
    other[1, :] = 98
    found = difference(one, other)
    assert found.greatest == 10 and found.share == 0.01
    assert found.mean == pytest.approx((10 + 2 * 30) / 300)
    assert found.psnr == pytest.approx(10 * math.log10(255**2 / ((100 + 4 * 30) / 300)))
    assert difference(one, other, seen=0).share == 0.11
    assert difference(one, one).psnr == math.inf
    assert difference(np.zeros((9, 9, 3), np.uint8), np.full((9, 9, 3), 255, np.uint8)).greatest == 255, "no wrapping"
    with pytest.raises(ValueError, match="10x10 and 9x9"):
        difference(one, one[:9, :9])


def run(folder: Path, name: str, *words: str | Path) -> Path:
    prompts = write_jsonl(folder / "p.jsonl", [{"prompt": f"prompt {n}"} for n in range(4)])
    ended = dglaunch("t2i", "--backend", "fake", "--prompts_file", prompts, *words, "--output_dir", folder / name)
    assert ended.code == 0, ended.output
    return folder / name


def test_two_folders_are_matched_by_task_not_by_name(tmp_path: Path) -> None:
    reference = run(tmp_path, "reference")
    same = run(tmp_path, "same", "--output_format", "webp")
    found = compare(same, reference)
    assert list(found.images) == [(0, 0), (1, 0), (2, 0), (3, 0)] and not found.not_compared
    changed = run(tmp_path, "changed")
    told = compare(changed, reference).record()
    assert (told["greatest"], told["mean"], told["share"], told["psnr"], told["ssim"]) == (0, 0, 0, None, 1)
    for number, brighter in ((1, 3), (2, 90)):
        file = changed / f"{number:06d}.png"
        pixels = np.asarray(Image.open(file)).astype(int)
        Image.fromarray(np.clip(pixels + brighter, 0, 255).astype(np.uint8)).save(file)
    found = compare(changed, reference)
    assert found.worst == (2, 0) and 3 < found.greatest <= 90
    assert found.images[1, 0].greatest == 3 and found.images[0, 0].greatest == 0
    assert found.images[2, 0].psnr < found.psnr < found.images[1, 0].psnr
    told = json.loads(strict_json.dumps(found.record()))
    assert told["num_images"] == 4 and told["worst"] == [2, 0] and Comparison.of(told) == found


def test_what_cannot_be_compared_is_told(tmp_path: Path) -> None:
    reference, other = run(tmp_path, "reference"), run(tmp_path, "other")
    (other / "000000.png").unlink()
    (other / "000001.png").write_bytes(b"no image")
    Image.new("RGB", (8, 8)).save(other / "000002.png")
    lines = [line for line in ledger(other) if line["index"] != 3]
    write_jsonl(other / "metadata.jsonl", lines)
    found = compare(other, reference)
    assert found.images == {} and found.worst is None
    said = found.not_compared
    assert "000000.png cannot be read" in said[0, 0] and "is no image" in said[1, 0]
    assert said[2, 0] == "the sizes differ: 8x8 and 64x64" and said[3, 0] == f"{other} has no such image"
    assert Comparison({}).record()["psnr"] is None and Comparison.of(found.record()) == found
