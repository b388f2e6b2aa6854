"""A model of the hub: what is fetched of it, and what is said where the hub does not answer. The hub is a server on loopback."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

# What is timed is the network and not the first import of the library.
from huggingface_hub import get_hf_file_metadata, hf_hub_download  # noqa: F401

from dglaunch.config import BackendConfig
from dglaunch.errors import UserError
from dglaunch.models import catalogue
from dglaunch.models.checkpoint import Checkpoint, resolve
from support.checkpoint_folders import checkpoint_folder, write_safetensors
from support.commands import dglaunch, run_module
from support.hub_server import HubServer, use_endpoint

MODEL, KNOWN = "someone/some-model", "black-forest-labs/FLUX.1-dev"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer({MODEL: checkpoint_folder(tmp_path / "model")}) as server:
        server.in_use(monkeypatch, tmp_path / "cache")
        yield server


def resolved(name: str = MODEL) -> Checkpoint:
    return resolve(BackendConfig(model_name=name))


def test_only_json_files_are_fetched(hub: HubServer) -> None:
    found = resolved()
    assert found.heads == 24 and not found.local
    assert found.components["vae"].config["latent_channels"] == 16
    assert found.components["scheduler"].config["shift"] == 3.0
    assert all(name.endswith(".json") for name in hub.fetched)


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_weights_are_counted_from_the_sizes_that_the_hub_lists(hub: HubServer, dtype: str) -> None:
    counts = {"transformer/diffusion_pytorch_model": 5_000_000, "text_encoder/model": 300_000}
    counts["vae/diffusion_pytorch_model"] = 200_000
    for stem, count in counts.items():
        write_safetensors(hub.models[MODEL] / f"{stem}.safetensors", count, dtype)
        write_safetensors(hub.models[MODEL] / f"{stem}.fp16.safetensors", count, "F16")
    counted = resolved().parameters
    assert counted == {name.partition("/")[0]: pytest.approx(count, rel=1e-3) for name, count in counts.items()}
    heads = [size for name, size in hub.fetched.items() if name.endswith(".safetensors")]
    assert len(heads) == 3 and max(heads) <= 100_001  # of each part one header, and no weights


def test_what_is_in_the_cache_is_read_without_a_hub(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = resolved()
    assert before.components
    use_endpoint(monkeypatch, "http://127.0.0.1:9", tmp_path / "cache")
    after = resolved()
    assert after.not_here is None and after.components == before.components
    assert after.parameters == {}  # no weights there, and nobody to ask


def test_weights_in_the_cache_are_counted_exactly(hub: HubServer, tmp_path: Path) -> None:
    _ = resolved().components
    (snapshot,) = (tmp_path / "cache").glob("models--*/snapshots/*")
    for name in ("transformer", "vae"):
        write_safetensors(snapshot / name / "diffusion_pytorch_model.safetensors", 77)
    write_safetensors(snapshot / "text_encoder/model.safetensors", 99)
    requests = hub.num_requests
    assert resolved().parameters == {"text_encoder": 99, "transformer": 77, "vae": 77}
    assert not [name for name in hub.fetched if name.endswith(".safetensors")]
    assert hub.num_requests < requests + 10


# -- a hub that does not answer -----------------------------------------------------------------------------------

SILENT = {
    "a refused connection": "http://127.0.0.1:9",
    "a name that does not resolve": "http://no-such-host.invalid",
    "an address that swallows everything": "http://10.255.255.1",
}


@pytest.mark.parametrize("address", SILENT.values(), ids=SILENT.keys())
def test_the_hub_is_tried_once_and_for_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """huggingface_hub itself tries an address that does not answer for minutes."""
    from dglaunch.models import hub

    monkeypatch.setattr(hub, "REACH_S", 1.0)
    use_endpoint(monkeypatch, address, tmp_path)
    start = time.perf_counter()
    with pytest.raises(
        UserError, match=r"is not in this machine's hub cache and the hub cannot be reached. Download it"
    ):
        resolved()
    assert resolved(KNOWN).not_here is not None
    assert time.perf_counter() - start < 2.5


def test_a_hub_that_takes_the_call_and_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dglaunch.models import hub

    monkeypatch.setattr(hub, "REACH_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        use_endpoint(monkeypatch, f"http://127.0.0.1:{mute.getsockname()[1]}", tmp_path)
        start = time.perf_counter()
        assert resolved(KNOWN).not_here is not None and resolved("Qwen/Qwen-Image").not_here is not None
        assert time.perf_counter() - start < 1.0


def test_a_name_service_that_does_not_answer_is_left_behind() -> None:
    """No argument of the libraries limits how long looking up a name takes."""
    from dglaunch.models.hub import within

    start = time.perf_counter()
    with pytest.raises(TimeoutError):
        within(0.05, lambda: time.sleep(0.5))
    assert time.perf_counter() - start < 0.4
    with pytest.raises(ZeroDivisionError):
        within(1.0, lambda: 1 / 0)


def test_the_variables_of_the_hub_are_heeded(tmp_path: Path) -> None:
    silent = {"HF_ENDPOINT": SILENT["a refused connection"], "HF_HUB_OFFLINE": "0", "HF_HUB_CACHE": str(tmp_path)}
    ended = run_module("dglaunch", "t2i", "--model_name", MODEL, "--prompt", "x", **silent)
    assert ended.code == 2 and "is not in this machine's hub cache and the hub cannot be reached" in ended.output


def test_a_hub_that_is_down_counts_as_silent(hub: HubServer) -> None:
    hub.down = True
    hub.models[KNOWN] = hub.models[MODEL]
    assert resolved(KNOWN).not_here is not None
    assert hub.num_requests == 1


def test_a_known_model_is_planned_from_the_catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_endpoint(monkeypatch, SILENT["a refused connection"], tmp_path)
    found, entry = resolved(KNOWN), catalogue.known(KNOWN)
    assert entry is not None
    assert found.pipeline_class == "FluxPipeline" and found.heads == 24 and found.family.name == "Flux"
    assert found.parameters == entry.count() and found.components == entry.components


def test_known_weights_are_counted_where_only_the_configurations_are_in_the_cache(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.models[KNOWN] = hub.models[MODEL]
    assert resolved(KNOWN).components
    use_endpoint(monkeypatch, SILENT["a refused connection"], tmp_path / "cache")
    found, entry = resolved(KNOWN), catalogue.known(KNOWN)
    assert entry is not None
    assert found.not_here is None and found.parameters == entry.count()


def test_a_model_in_another_format_is_refused(hub: HubServer) -> None:
    (hub.models[MODEL] / "model_index.json").unlink()
    with pytest.raises(
        UserError, match=r"someone/some-model has no model_index\.json, so it is no diffusers checkpoint"
    ):
        resolved()


def test_a_misspelt_model_that_the_hub_does_not_have_is_answered_with_the_right_one(hub: HubServer) -> None:
    with pytest.raises(UserError, match=r"Is black-forest-labs/FLUX\.1-dev meant\?"):
        resolved("black-forest-lab/FLUX1-dev")


def test_a_gated_model_is_planned_from_the_catalog(hub: HubServer) -> None:
    hub.models[KNOWN] = hub.models[MODEL]
    hub.gated = {KNOWN, MODEL}
    found = resolved(KNOWN)
    assert found.not_here is not None and "accept its terms and log in (hf auth login)" in str(found.not_here)
    with pytest.raises(UserError, match=f"The hub does not give {MODEL}: .* accept its terms and log in"):
        resolved(MODEL)


def test_a_model_that_the_hub_does_not_have_is_refused(hub: HubServer) -> None:
    with pytest.raises(UserError, match=r"The hub does not give someone/typo: .* Check the name"):
        resolved("someone/typo")


def test_plan_says_where_its_numbers_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prompts: Path) -> None:
    use_endpoint(monkeypatch, SILENT["a refused connection"], tmp_path)
    words = ("--model_name", KNOWN, "--prompts_file", prompts, "--output_dir", tmp_path / "out")
    planned = dglaunch("plan", "t2i", *words, "--world_size", "8")
    assert planned.code == 0
    assert "checkpoint from the catalog of dglaunch, as the hub cannot be reached" in planned.output.splitlines()
    assert "weights" in planned.output
    run = dglaunch("t2i", *words)
    assert run.code == 2 and "is not in this machine's hub cache and the hub cannot be reached. Download" in run.output
    assert not (tmp_path / "out").exists()


def test_long_prompts_cannot_be_told_without_tokenizers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prompts: Path
) -> None:
    use_endpoint(monkeypatch, SILENT["a refused connection"], tmp_path)
    words = ("--model_name", KNOWN, "--prompts_file", prompts, "--on_long_prompt", "fail")
    planned = dglaunch("plan", "t2i", *words)
    assert planned.code == 2 and "needs the tokenizers of black-forest-labs/FLUX.1-dev, and the hub" in planned.output


@pytest.mark.parametrize("name", ["FLUX.1-dev", "flux.1-dev", "black-forest-labs/flux.1-Dev"])
def test_a_name_that_is_almost_right_is_answered_with_the_right_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    use_endpoint(monkeypatch, SILENT["a refused connection"], tmp_path)
    with pytest.raises(UserError, match=r"Is black-forest-labs/FLUX\.1-dev meant\?"):
        resolved(name)
