"""The table of the vendors' models: names, sizes, ends. The day is handed in, so that this holds next year."""

from datetime import date
from pathlib import Path

import pytest

from dglaunch.backends.api import models
from dglaunch.backends.api.models import MODELS, model_of
from dglaunch.backends.api.profile import ApiProfile
from dglaunch.backends.api.sizes import size_of
from dglaunch.config import BackendConfig, RemoteConfig, T2IConfig
from dglaunch.distributed.topology import Topology
from dglaunch.errors import UserError

BEFORE, AFTER = date(2026, 11, 30), date(2026, 12, 1)


@pytest.mark.parametrize(
    ("backend", "name", "row"),
    [
        ("openai", "gpt-image-2-2026-04-21", "gpt-image-2"),
        ("openai", "gpt-image-2.5-flare-2026-09-08", "gpt-image-2.5-flare"),
        ("openai", "gpt-image-1-mini", "gpt-image-1-mini"),
        ("openai", "gpt-image-3", None),
        ("openai", "gpt-image-2.7-flare", None),
        ("openai", "Qwen/Qwen-Image", None),
        ("google_genai", "gemini-3-pro-image-preview", "gemini-3-pro-image"),
        ("google_genai", "gemini-3.1-flash-lite-image", "gemini-3.1-flash-lite-image"),
        ("google_genai", "imagen-4.0-generate-001", "imagen-4.0-generate"),
        ("google_genai", "gemini-3.8-flash", None),
    ],
)
def test_a_snapshot_is_its_model_and_another_number_is_not(backend: str, name: str, row: str | None) -> None:
    assert model_of(backend, name) is (None if row is None else MODELS[backend][row])


def test_what_ends_has_a_successor_that_does_not() -> None:
    for rows in MODELS.values():
        for row in rows.values():
            assert (row.ends is None) or rows[row.successor].ends is None


@pytest.mark.parametrize(
    ("size", "fits"),
    [
        ((1024, 1024), True), ((816, 816), True), ((3840, 2160), True), ((2880, 2880), True), ((1536, 512), True),
        ((512, 512), False), ((768, 768), False), ((1000, 1000), False), ((3856, 2160), False), ((3840, 2176), False),
        ((1552, 512), False), ((2048, 320), False),
    ],
)  # fmt: skip
def test_free_sizes_have_least_and_most_pixels(size: tuple[int, int], fits: bool) -> None:
    ask = size_of("gpt-image-2", model_of("openai", "gpt-image-2"))
    if fits:
        assert ask(*size) == f"{size[0]}x{size[1]}"
        return
    with pytest.raises(ValueError, match=r"multiples of 16 between 1:3 and 3:1, with 655,360 to 8,294,400 pixels"):
        ask(*size)


def test_gemini_is_asked_by_ratio_and_class() -> None:
    flash = size_of("gemini-3.1-flash-image", model_of("google_genai", "gemini-3.1-flash-image"))
    assert flash(512, 512) == {"aspect_ratio": "1:1", "image_size": "512"}
    assert flash(1024, 4096) == {"aspect_ratio": "1:4", "image_size": "2K"}
    assert flash(5504, 3072) == {"aspect_ratio": "16:9", "image_size": "4K"}
    lite = size_of("gemini-3.1-flash-lite-image", model_of("google_genai", "gemini-3.1-flash-lite-image"))
    assert lite(1024, 1024) == {"aspect_ratio": "1:1"}
    with pytest.raises(ValueError, match="makes 1024x1024, 848x1264"):
        lite(2048, 2048)


def config(backend: str, model: str, *bases: str) -> T2IConfig:
    kinds = {"openai": "openai", "google_genai": "google_genai"}
    return T2IConfig(
        backend=BackendConfig(backend=kinds[backend], model_name=model),  # type: ignore[arg-type]  # one of the names
        remote=RemoteConfig(api_base=bases), prompt="a", output_dir=Path("nowhere"),
    )  # fmt: skip


def told(today: date, backend: str, model: str, *bases: str) -> str:
    profile = ApiProfile(today)
    job = config(backend, model, *bases)
    target = profile.resolve(job, Topology())
    profile.check(job, target, Topology(), [])
    return target.reasons.get("model", "")


@pytest.mark.parametrize("model", ["gpt-image-1.5", "gpt-image-1-mini", "chatgpt-image-latest"])
@pytest.mark.usefixtures("keys")
def test_a_model_that_ends_is_told_before_and_refused_after(model: str) -> None:
    assert told(BEFORE, "openai", model) == f"{model} ends on 01 December 2026; its successor is gpt-image-2.5-sunburst"
    with pytest.raises(UserError, match=r"has ended.*Its successor is --model_name gpt-image-2.5-sunburst"):
        told(AFTER, "openai", model)
    with pytest.raises(UserError, match="has ended"):
        told(AFTER, "openai", model, "https://us.api.openai.com/v1")
    assert told(AFTER, "openai", model, "http://localhost:8000/v1") == ""  # a gateway may have it yet


@pytest.mark.usefixtures("keys")
def test_imagen_has_ended_in_the_gemini_api_and_not_on_vertex_ai(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        UserError, match=r"no more since 17 August 2026. Its successor is --model_name gemini-3.1-flash"
    ):
        told(BEFORE, "google_genai", "imagen-4.0-generate-001")
    monkeypatch.delenv("GEMINI_API_KEY")
    job = config("google_genai", "imagen-4.0-generate-001")
    job.remote.api_project = "mine"
    ApiProfile(AFTER).check(job, ApiProfile(AFTER).resolve(job, Topology()), Topology(), [])


@pytest.mark.usefixtures("keys")
def test_a_model_that_the_table_does_not_know_is_let_through_with_one_line() -> None:
    said = told(AFTER, "openai", "gpt-image-9")
    assert said == f"gpt-image-9 is not in dglaunch's table of {models.AS_OF:%d %B %Y}: all is sent as it is given"
    assert told(AFTER, "openai", "gpt-image-9", "http://localhost/v1") == ""  # a model of the server's own


@pytest.mark.parametrize(
    ("backend", "host", "vendors"),
    [
        ("openai", "api.openai.com", True), ("openai", "eu.api.openai.com", True), ("openai", "notapi.openai.com.evil", False),
        ("openai", "localhost", False), ("google_genai", "us-central1-aiplatform.googleapis.com", True),
        ("google_genai", "generativelanguage.googleapis.com", True), ("google_genai", "api.openai.com", False),
    ],
)  # fmt: skip
def test_whose_address_it_is(backend: str, host: str, vendors: bool) -> None:
    assert models.is_vendors(backend, host) is vendors
