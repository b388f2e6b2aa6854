"""What comes back from an API, and the options that go out, with the real SDKs against the server on loopback: drafts, words beside
images, errors in odd places, answers with too few or too many images, Vertex AI."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dglaunch.backends.api.models import model_of
from dglaunch.cli.main import main
from support.api_answers import DRAFT, compressed
from support.api_servers import TOKEN, ApiServer, colour_of
from support.edit_images import png
from support.remote_runs import rows_of, words
from support.results import ledger, run_json, write_jsonl


def outcome(server: ApiServer, folder: Path, backend: str, prompts: list[str], *more: Any) -> dict[str, dict[str, Any]]:
    """Run it; the line of each prompt, of the ledger or of the failures."""
    out = folder / "out"
    code = main(words(server, backend, rows_of(folder, prompts), out, "--api_max_retries", "1", *more))
    failed = ledger(out, "failures.jsonl")
    assert code == (3 if failed else 0)
    return {line["prompt"]: line for line in [*ledger(out), *failed]}


def pixel(folder: Path, line: dict[str, Any]) -> tuple[int, ...]:
    return Image.open(folder / "out" / line["file_name"]).convert("RGB").getpixel((3, 3))  # type: ignore[return-value]


def test_a_draft_is_never_the_image_and_words_go_into_the_ledger(server: ApiServer, tmp_path: Path) -> None:
    prompts = [
        "a [always draft]",
        "b",
        "c [always only draft]",
        "d [always video]",
        "e [always language]",
        "f [always escalation]",
    ]
    lines = outcome(server, tmp_path, "google_genai", prompts)
    for prompt in prompts[:2]:
        assert pixel(tmp_path, lines[prompt]) == colour_of(prompt) != DRAFT
    assert lines[prompts[0]]["answer_text"] == "Here it is: \x1b[31mred" and "answer_text" not in lines["b"]
    assert "NO_IMAGE" in lines[prompts[2]]["error"] and "tried 2 times" in lines[prompts[2]]["error"]
    assert "video/mp4 came" in lines[prompts[3]]["error"]
    assert lines[prompts[4]]["error"] == "no image came, finish reason LANGUAGE: because of language"
    assert "ESCALATION" in lines[prompts[5]]["error"] and server.asked[prompts[5]] == 1


def test_answers_in_other_forms_are_images_all_the_same(server: ApiServer, tmp_path: Path) -> None:
    prompts = ["a [always lines]", "b [always data url]", "c [always rewritten]", "d [always surplus]"]
    lines = outcome(server, tmp_path, "openai", prompts)
    assert all(pixel(tmp_path, lines[prompt]) == colour_of(prompt) for prompt in prompts)
    assert lines[prompts[2]]["revised_prompt"] == "a better prompt" and "revised_prompt" not in lines[prompts[0]]
    told = run_json(tmp_path / "out")
    assert told["usage"]["surplus_images"] == 1 and any("sent 2 images where 1" in event for event in told["events"])


def test_a_server_that_makes_one_image_where_ten_are_asked_for_is_asked_for_the_rest(
    server: ApiServer, tmp_path: Path
) -> None:
    rows, out = rows_of(tmp_path, ["a [always one only]"]), tmp_path / "out"
    assert main(words(server, "openai", rows, out, "--num_images_per_prompt", "10", "--api_max_retries", "0")) == 0
    assert [body["n"] for body in server.bodies] == list(range(10, 0, -1)) and len(ledger(out)) == 10


def test_errors_are_told_in_the_words_of_the_server(server: ApiServer, tmp_path: Path) -> None:
    said = {
        "[always detail]": "body.num_inference_steps: should be at most 200",
        "[always told]": "prompt is too long",
        "[always plain]": "Bad prompt: no such word",
        "[always busy as 200]": "HTTP 503: the scheduler has no free slot (tried 2 times)",
        "[always refused as 200]": "the image is too wide for this checkpoint",
        "[always not again]": "HTTP 500: the image is too wide for this checkpoint",
        "[always again]": "HTTP 400: the image is too wide for this checkpoint (tried 2 times)",
        "[always nothing]": "0 of 1 images came (tried 2 times)",
        "[always svg]": "the image in the answer is damaged: is no image that can be read",
    }
    lines = outcome(server, tmp_path, "openai", [*said, "a"])
    for prompt, words_of_server in said.items():
        assert lines[prompt]["error"].startswith(words_of_server), lines[prompt]["error"]
    tried = {prompt: server.asked[prompt] for prompt in said}
    again = [prompt for prompt, times in tried.items() if times == 2]
    assert again == [prompt for prompt in said if "tried" in said[prompt]] + ["[always svg]"]
    assert pixel(tmp_path, lines["a"]) == colour_of("a")


@pytest.mark.parametrize("backend", ["openai", "google_genai"])
def test_a_limit_of_zero_ends_the_run_with_that_text(
    server: ApiServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], backend: str
) -> None:
    rows = rows_of(tmp_path, [f"{n} [always limit 0]" for n in range(20)])
    assert main(words(server, backend, rows, tmp_path / "out", "--num_processes", "2")) == 2
    told = capsys.readouterr().err
    assert "Quota exceeded, limit: 0" in told and server.num_requests <= 3
    assert not ledger(tmp_path / "out", "failures.jsonl")


def test_an_error_in_place_of_images_is_told_by_gemini_too(server: ApiServer, tmp_path: Path) -> None:
    lines = outcome(server, tmp_path, "google_genai", ["a [always refused as 200]"])
    assert lines["a [always refused as 200]"]["error"] == "INVALID: the image is too wide for this checkpoint"
    assert server.num_requests == 1


def test_a_limited_account_ends_the_run(server: ApiServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_of(tmp_path, [f"{n} [always limited]" for n in range(20)])
    assert main(words(server, "google_genai", rows, tmp_path / "out", "--num_processes", "2")) == 2
    assert "PUP_LIMITED_DISABLED: because of" in capsys.readouterr().err and server.num_requests <= 4


def test_a_pause_in_milliseconds_comes_before_one_in_seconds(server: ApiServer, tmp_path: Path) -> None:
    outcome(server, tmp_path, "openai", ["a [wait ms]"])
    first, second = server.asked_at["a [wait ms]"]
    assert 0.2 <= second - first < 30


def test_the_time_out_says_what_it_is(server: ApiServer, tmp_path: Path) -> None:
    for backend in ("openai", "google_genai"):
        (tmp_path / backend).mkdir()
        lines = outcome(
            server, tmp_path / backend, backend, ["a [always timeout]"], "--timeout", "0.3", "--api_max_retries", "0"
        )
        assert "within 0.3 s" in lines["a [always timeout]"]["error"]


@pytest.mark.parametrize("output_format", ["png", "webp", "jpg"])
def test_what_is_transparent_stays_so_and_stands_on_white_in_a_jpeg(
    server: ApiServer, tmp_path: Path, output_format: str
) -> None:
    lines = outcome(server, tmp_path, "openai", ["a [always transparent]"], "--output_format", output_format)
    image = Image.open(tmp_path / "out" / lines["a [always transparent]"]["file_name"])
    told = any("they stand on white" in event for event in run_json(tmp_path / "out")["events"])
    if output_format == "jpg":
        assert min(image.getpixel((3, 3))) > 250 and told  # type: ignore[type-var, arg-type]  # it was (200, 0, 0, 0)
    else:
        assert image.convert("RGBA").getpixel((3, 3))[3] == 0 and not told  # type: ignore[index]


# -- options ------------------------------------------------------------------------------------------------------


def test_options_of_openai_are_sent(server: ApiServer, tmp_path: Path) -> None:
    options = {"quality": "low", "background": "transparent", "output_compression": "50", "moderation": "low"}
    flags = [word for name, value in options.items() for word in (f"--{name}", value)]
    more = ["--model_name", "gpt-image-2", "--output_format", "webp", "--api_extra", "safety_identifier=me"]
    outcome(server, tmp_path, "openai", ["a"], *flags, *more)
    sent = {"output_compression": 50, "output_format": "webp", "safety_identifier": "me"}
    assert (options | sent).items() <= server.bodies[0]["raw"].items()
    assert run_json(tmp_path / "out")["settings"]["quality"] == "low"


@pytest.mark.parametrize(("kind", "output_format"), [("jpeg", "jpg"), ("webp", "webp")])
def test_what_the_api_compressed_is_what_lies_in_the_folder(
    server: ApiServer, tmp_path: Path, kind: str, output_format: str
) -> None:
    flags = ("--output_format", output_format, "--output_compression", "30")
    lines = outcome(server, tmp_path, "openai", [f"a [always {kind}]", "b"], *flags)
    sent = compressed(kind)
    kept = tmp_path / "out" / lines[f"a [always {kind}]"]["file_name"]
    with Image.open(kept) as image:
        assert image.tobytes() == Image.open(io.BytesIO(sent)).tobytes()
    assert kept.stat().st_size < len(sent) + 2000, "our text, and nothing else"
    assert main(["verify", str(tmp_path / "out")]) == 0


def test_a_mask_goes_along_with_its_image(server: ApiServer, tmp_path: Path) -> None:
    mask = png(1, (64, 64))
    (tmp_path / "mask.png").write_bytes(mask)
    (tmp_path / "a.png").write_bytes(png(2, (64, 64)))
    path = write_jsonl(tmp_path / "edits.jsonl", [{"input_images": "a.png", "instruction": "x", "mask": "mask.png"}])
    assert main(words(server, "openai", path, tmp_path / "out", "--input_fidelity", "high", "--quality", "high")) == 0
    (body,) = server.bodies
    assert body["mask"] == mask and body["images"] == [png(2, (64, 64))]
    assert {"input_fidelity": "high", "quality": "high"}.items() <= body["raw"].items()


def test_options_of_gemini_are_sent(server: ApiServer, tmp_path: Path) -> None:
    flags = [
        "--model_name", "gemini-3.1-flash-image", "--image_config", "aspect_ratio=1:8", "--image_config", "image_size=512",
        "--safety_settings", "HARM_CATEGORY_HARASSMENT=BLOCK_ONLY_HIGH", "--system_instruction", "as a woodcut",
    ]  # fmt: skip
    outcome(server, tmp_path, "google_genai", ["a"], *flags)
    sent = server.bodies[0]["raw"]
    assert sent["generationConfig"]["imageConfig"] == {"aspectRatio": "1:8", "imageSize": "512"}
    assert sent["safetySettings"] == [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_ONLY_HIGH"}]
    assert sent["systemInstruction"]["parts"][0]["text"] == "as a woodcut"
    assert "automaticContinuation" not in json.dumps(sent)


REFUSED = [
    ("openai", ["--quality", "xhigh"], {}, "--quality xhigh: gpt-image-2 takes low, medium, high, auto"),
    ("openai", ["--input_fidelity", "high"], {}, "--input_fidelity: gpt-image-2 takes none"),
    ("openai", ["--system_instruction", "x"], {}, "--system_instruction: gpt-image-2 takes none"),
    ("openai", ["--background", "transparent", "--output_format", "jpg"], {}, "a JPEG has no transparency"),
    ("openai", ["--output_compression", "50"], {}, "does nothing for PNG"),
    ("openai", ["--output_compression", "101"], {}, "it must be 0 to 100"),
    ("openai", ["--api_project", "p"], {}, "--api_project and --api_location are Vertex AI's"),
    ("google_genai", ["--image_config", "aspect_ratio=5:6"], {}, "takes 1:1, 2:3"),
    ("google_genai", ["--image_config", "image_size=8K"], {}, "takes 512, 1K, 2K, 4K"),
    ("google_genai", ["--image_config", "ratio=1:1"], {}, "there is no such key"),
    ("google_genai", ["--safety_settings", "HARASSMENT=OFF"], {}, "a category begins with HARM_CATEGORY_"),
    ("google_genai", ["--image_config", "image_size=2K"], {"width": 1024, "height": 1024}, "and --image_config image_size as well"),
    ("google_genai", ["--api_location", "here"], {}, "name it with --api_project"),
    ("google_genai", ["--api_project", "p"], {}, "GEMINI_API_KEY is a key"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("backend", "flags", "columns", "said"),
    [pytest.param(*case, marks=[pytest.mark.slow] if n % 2 else []) for n, case in enumerate(REFUSED)],
)
def test_options_that_a_model_has_not_are_refused(
    server: ApiServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], backend: str, flags: list[str],
    columns: dict[str, Any], said: str,
) -> None:  # fmt: skip
    model = {"openai": "gpt-image-2", "google_genai": "gemini-3.1-flash-image"}[backend]
    rows = rows_of(tmp_path, ["a"], **columns)
    assert main(words(server, backend, rows, tmp_path / "out", "--model_name", model, *flags)) == 2
    assert said in " ".join(capsys.readouterr().err.split()) and server.num_requests == 0


def test_all_bad_rows_are_told_at_once(server: ApiServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"prompt": "a", "width": 512, "height": 512},
        {"prompt": "b"},
        {"prompt": "c", "negative_prompt": "rain"},
        {"prompt": "d", "width": 1024},
    ]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    assert main(words(server, "openai", path, tmp_path / "out", "--model_name", "gpt-image-2")) == 2
    told = capsys.readouterr().err
    assert "has 3 bad rows" in told and all(f"row {n}:" in told for n in (0, 2, 3)) and server.num_requests == 0


def test_every_name_of_the_openai_sdk_has_a_row() -> None:
    from openai.types.image_model import ImageModel

    assert [name for name in ImageModel.__args__ if model_of("openai", name) is None] == []  # type: ignore[attr-defined]


# -- Vertex AI ----------------------------------------------------------------------------------------------------


@pytest.fixture
def service_account(server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Application default credentials for which the server on loopback gives out tokens."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=1024).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    account = {
        "type": "service_account", "project_id": "other", "private_key_id": "1", "private_key": key.decode(),
        "client_email": "me@example.com", "client_id": "1", "token_uri": f"{server.google}/token",
    }  # fmt: skip
    (tmp_path / "account.json").write_text(json.dumps(account))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "account.json"))
    monkeypatch.delenv("GEMINI_API_KEY")


@pytest.mark.usefixtures("service_account")
def test_vertex_ai_is_asked_with_a_projects_credentials(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths: list[str] = []
    server.on_request = paths.append
    lines = outcome(server, tmp_path, "google_genai", ["a"], "--api_project", "mine", "--api_location", "europe-west4")
    assert pixel(tmp_path, lines["a"]) == colour_of("a") and server.keys == [TOKEN]
    model = "publishers/google/models/gemini-2.5-flash-image"
    assert paths == [f"/v1beta1/projects/mine/locations/europe-west4/{model}:generateContent"]
    for name, value in (("USE_VERTEXAI", "true"), ("PROJECT", "p2")):
        monkeypatch.setenv(f"GOOGLE_{'GENAI' if 'USE' in name else 'CLOUD'}_{name}", value)
    (tmp_path / "2").mkdir()
    outcome(server, tmp_path / "2", "google_genai", ["a"])
    assert paths[1] == f"/v1beta1/projects/p2/locations/global/{model}:generateContent"
    assert TOKEN not in (tmp_path / "out" / "run.json").read_text()


def test_without_credentials_vertex_ai_is_refused_with_the_remedy(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("GEMINI_API_KEY")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "nowhere.json"))
    assert main(words(server, "google_genai", rows_of(tmp_path, ["a"]), tmp_path / "out", "--api_project", "mine")) == 2
    told = capsys.readouterr().err
    assert "gcloud auth application-default login" in told and "Traceback" not in told and server.num_requests == 0
