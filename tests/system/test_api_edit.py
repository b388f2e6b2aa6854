"""`edit` with the API backends, with the official SDK clients against real HTTP servers on loopback. Kills, resumption and
several ranks are in test_remote.py, for both commands.

Layers, cheapest first: what is sent of a file, what is refused, whole runs in this process.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dglaunch.backends.api.uploads import upload
from dglaunch.cli.main import main
from dglaunch.data.images import BadImage, decode, probe
from dglaunch.models.shape import Shape
from support.api_servers import ApiServer, colour_of
from support.edit_images import ADOBE, bomb, picture, png
from support.remote_runs import MODELS, assert_no_key, assert_right_images, edits_of, words
from support.results import ledger, run_json, write_jsonl

ALL = frozenset({"PNG", "JPEG", "WEBP"})


# -- what is sent of a file -----------------------------------------------------------------------------------------


def saved(path: Path, image: Image.Image, **options: Any) -> Any:
    image.save(path, **options)
    return probe(path.name, path, path.read_bytes())


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_a_file_goes_out_as_it_is_where_the_api_takes_its_format(tmp_path: Path, suffix: str) -> None:
    found = saved(tmp_path / f"a.{suffix}", picture(1))
    sent = upload(found, ALL)
    assert sent.data == (tmp_path / f"a.{suffix}").read_bytes()
    assert sent.media_type == {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp"}[suffix]


@pytest.mark.parametrize("suffix", ["bmp", "tif", "gif"])
def test_other_formats_go_out_as_png(tmp_path: Path, suffix: str) -> None:
    found = saved(tmp_path / f"a.{suffix}", picture(1))
    sent = upload(found, ALL)
    assert sent.media_type == "image/png" and sent.data.startswith(b"\x89PNG")
    own = decode((tmp_path / f"a.{suffix}").read_bytes())
    assert np.array_equal(np.asarray(decode(sent.data)), np.asarray(own))
    assert upload(saved(tmp_path / "b.webp", picture(1)), frozenset({"PNG"})).data.startswith(b"\x89PNG")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_what_lies_on_its_side_is_sent_upright(tmp_path: Path, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    found = saved(tmp_path / f"a.{suffix}", picture(2, (96, 64)), exif=exif)
    sent = upload(found, ALL)
    shown = Image.open(io.BytesIO(sent.data))
    assert found.shape == Shape(96, 64) and shown.size == (64, 96) and shown.getexif().get(0x0112, 1) == 1
    assert sent.media_type == ("image/jpeg" if suffix == "jpg" else "image/png")
    expected = np.asarray(decode((tmp_path / f"a.{suffix}").read_bytes())).astype(int)
    assert abs(np.asarray(shown.convert("RGB")) - expected).mean() < 3


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_what_is_not_srgb_is_sent_in_srgb(tmp_path: Path, suffix: str) -> None:
    found = saved(tmp_path / f"a.{suffix}", Image.new("RGB", (64, 64), (150, 100, 100)), icc_profile=ADOBE)
    shown = Image.open(io.BytesIO(upload(found, ALL).data))
    assert abs(shown.getpixel((9, 9))[0] - 167) <= 3 and "icc_profile" not in shown.info


def test_of_an_animation_the_first_picture_is_sent(tmp_path: Path) -> None:
    found = saved(tmp_path / "a.webp", picture(1), save_all=True, append_images=[picture(2)], lossless=True)
    shown = Image.open(io.BytesIO(upload(found, ALL).data))
    assert getattr(shown, "n_frames", 1) == 1
    assert np.array_equal(np.asarray(shown), np.asarray(picture(1)))


def test_a_torn_file_is_not_sent(tmp_path: Path) -> None:
    whole = io.BytesIO()
    picture(2, (256, 256)).save(whole, "JPEG", quality=95)
    (tmp_path / "a.jpg").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    with pytest.raises(BadImage, match="torn or damaged"):
        upload(probe("a.jpg", tmp_path / "a.jpg", (tmp_path / "a.jpg").read_bytes()), ALL)


# -- refused before anything is sent ------------------------------------------------------------------------------


REFUSED: list[tuple[str, list[str], dict[str, Any], str]] = [
    ("openai", ["--model_type", "qwen"], {}, "--model_type would do nothing"),
    ("google_genai", ["--model_type", "qwen", "--device", "cpu"], {}, "--device, --model_type would do nothing"),
    ("openai", ["--num_inference_steps", "4"], {}, "takes no num_inference_steps"),
    ("openai", ["--negative_prompt", "rain"], {}, "takes no negative_prompt"),
    ("google_genai", [], {"guidance_scale": 3.0}, "takes no guidance_scale"),
    ("openai", [], {"width": 512, "height": 512}, "makes 1024x1024, 1536x1024, 1024x1536"),
    ("openai", [], {"width": 1024}, "width and height together"),
    ("google_genai", ["--model_name", "imagen-4.0-generate-001"], {}, "edits none through the Imagen API. Choose"),
    ("openai", ["--model_name", "dall-e-3"], {}, "edits none through the OpenAI images API. Choose"),
    ("openai", [], {"instruction": " "}, "line 1: instruction"),
]


@pytest.mark.parametrize(("backend", "flags", "columns", "said"), REFUSED)
def test_what_cannot_work_is_refused_before_anything_is_sent(
    server: ApiServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], backend: str, flags: list[str],
    columns: dict[str, Any], said: str,
) -> None:  # fmt: skip
    rows, _ = edits_of(tmp_path, ["a"], 1, **columns)
    assert main(words(server, backend, rows, tmp_path / "out", *flags)) == 2
    told = capsys.readouterr().err
    assert said in told and "Traceback" not in told
    assert server.num_requests == 0 and not (tmp_path / "out").exists()


def noise(side: int) -> bytes:
    """A PNG that does not compress: a square of 1200 has 4.3 MB."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()


def test_bad_images_fail_their_rows_and_the_others_are_made(server: ApiServer, tmp_path: Path) -> None:
    torn = io.BytesIO()
    picture(2, (256, 256)).save(torn, "JPEG", quality=95)
    files = {
        "good.png": png(1),
        "torn.png": png(1)[:200],
        "torn.jpg": torn.getvalue()[: len(torn.getvalue()) // 2],
        "empty.png": b"",
        "bomb.png": bomb(),
        "text.png": b"no image",
        "large.png": noise(1200),
        "wide.png": png(1, (96, 64)),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    cases = {
        "torn.png": "input image torn.png is torn or damaged",
        "torn.jpg": "input image torn.jpg is torn or damaged",
        "empty.png": "is empty (0 bytes)",
        "bomb.png": "as a decompression bomb has",
        "text.png": "is no image that can be read",
        "nowhere.png": "there is no file",
        "large.png": "bytes; the API takes at most 4,000,000",
        "wide.png": "takes at most 1:1",
    }
    cells = [cell for bad in cases for cell in (bad, "good.png")]
    rows = [{"input_images": cell, "instruction": f"edit {n}"} for n, cell in enumerate(cells)]
    path, out = write_jsonl(tmp_path / "edits.jsonl", rows), tmp_path / "out"
    assert main(words(server, "openai", path, out, "--model_name", "dall-e-2")) == 3
    failures = {line["index"]: line["error"] for line in ledger(out, "failures.jsonl")}
    assert sorted(failures) == list(range(0, len(cells), 2))
    for number, said in enumerate(cases.values()):
        error = failures[2 * number]
        assert error.startswith(f"{path}, line {2 * number + 1}: ") and said in error, error
    good = [f"edit {n}" for n in range(1, len(cells), 2)]
    assert_right_images(out, good, {prompt: [files["good.png"]] for prompt in good})
    assert server.num_requests == len(good)


@pytest.mark.parametrize(
    ("backend", "model", "most", "said"),
    [
        ("openai", "gpt-image-2", 16, "17 input images, but gpt-image-2 takes 1 to 16"),
        ("openai", "dall-e-2", 1, "2 input images, but dall-e-2 takes exactly one"),
        (
            "google_genai",
            "gemini-3-pro-image-preview",
            14,
            "15 input images, but gemini-3-pro-image-preview takes 1 to 14",
        ),
    ],
)
def test_no_more_images_than_the_model_takes(
    server: ApiServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    backend: str,
    model: str,
    most: int,
    said: str,
) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    rows = [{"input_images": ["a.png"] * count, "instruction": f"{count}"} for count in (most, most + 1)]
    path, out = write_jsonl(tmp_path / "edits.jsonl", rows), tmp_path / "out"
    assert main(words(server, backend, path, out, "--model_name", model)) == 2
    told = capsys.readouterr().err
    assert "1 bad row; nothing was run" in told and f"line 2: {said}" in told and server.num_requests == 0
    assert main(words(server, backend, path, out, "--model_name", model, "--filter_rows", "0")) == 0
    assert_right_images(out, [f"{most}"], {f"{most}": [png(1)] * most})


# -- whole runs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("backend", MODELS)
def test_images_go_out_in_their_order_with_the_instruction_and_no_size_is_made_up(
    server: ApiServer, tmp_path: Path, backend: str, count: int
) -> None:
    instructions, out = [f"make it {n}" for n in range(4)], tmp_path / "out"
    rows, given = edits_of(tmp_path, instructions, count)
    assert main(words(server, backend, rows, out)) == 0
    assert_right_images(out, instructions, given)
    for body in server.bodies:
        assert body["images"] == given[body["prompt"]]
        assert set(body["kinds"]) <= {"image/png", "image/jpeg", "image/webp"}
        size = body["raw"].get("size") if backend == "openai" else body["raw"]["generationConfig"].get("imageConfig")
        assert size is None
    for line in ledger(out):
        assert (line["width"], line["height"]) == (32, 32)  # of the image that came
        assert line["instruction"] == line["prompt"] and len(line["input_sha256"]) == count
        assert line["seed_sent"] is (backend == "google_genai")
    assert "1024x1024" not in (out / "run.json").read_text()


def test_sizes_seeds_and_samples_of_a_row(server: ApiServer, tmp_path: Path) -> None:
    rows, given = edits_of(tmp_path, ["a", "b [truncated]"], 2, width=1536, height=1024)
    command = words(server, "openai", rows, tmp_path / "o", "--num_images_per_prompt", "3")
    assert main(command) == 0
    assert sorted((body["prompt"], body["n"], body["raw"]["size"]) for body in server.bodies) == [
        ("a", 3, "1536x1024"),
        ("b [truncated]", 1, "1536x1024"),
        ("b [truncated]", 3, "1536x1024"),
    ]
    (tmp_path / "o" / "000000_02.png").unlink()
    assert main(command) == 0
    assert server.paid == {"a": 4, "b [truncated]": 3}
    rows, given = edits_of(tmp_path, ["c"], 1, width=1344, height=768, seed=7)
    assert main(words(server, "google_genai", rows, tmp_path / "g", "--num_images_per_prompt", "2")) == 0
    sent = [body["raw"]["generationConfig"] for body in server.bodies[-2:]]
    assert {config["seed"] for config in sent} == {7, 8} and sent[0]["imageConfig"] == {"aspectRatio": "16:9"}
    assert {tuple(Image.open(path).getpixel((3, 3))) for path in (tmp_path / "g").glob("*.png")} == {
        colour_of("c", given["c"])
    }


def test_flags_of_edit_work_as_with_a_local_model(server: ApiServer, tmp_path: Path) -> None:
    rows, given = edits_of(tmp_path, [f"{n}" for n in range(8)], 2)
    rows.write_text(rows.read_text().replace('"instruction"', '"wish"'))
    out = tmp_path / "out"
    command = words(server, "google_genai", rows, out, "--instruction_column", "wish", "--save_inputs", "--gallery")
    assert main([*command, "--filter_rows", "0:3,6"]) == 0
    assert_right_images(out, ["0", "1", "2", "6"], given)
    for line in ledger(out):
        copies = [(out / name).read_bytes() for name in line["input_file_names"]]
        assert copies == given[line["prompt"]]
    assert (out / "gallery.html").exists()
    # The rest of the table is another job's table no more: the same command without the filter goes on.
    assert main(command) == 0 and run_json(out)["num_skipped"] == 4
    assert_right_images(out, list(given), given)
    assert set(server.paid.values()) == {1}
    assert_no_key(out)


def test_images_in_a_parquet_table_and_a_refused_instruction(server: ApiServer, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = [png(n) for n in range(6)]
    rows = [{"instruction": f"{n}{' [refused]' * (n == 4)}", "input_images": [d, d]} for n, d in enumerate(data)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "edits.parquet")
    out = tmp_path / "out"
    assert main(words(server, "openai", tmp_path / "edits.parquet", out)) == 3
    good = [f"{n}" for n in range(6) if n != 4]
    assert_right_images(out, good, {f"{n}": [d, d] for n, d in enumerate(data)})
    (failure,) = ledger(out, "failures.jsonl")
    assert failure["index"] == 4 and "safety system" in failure["error"]
