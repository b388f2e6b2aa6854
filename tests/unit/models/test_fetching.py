"""`dglaunch fetch`: only what a run loads comes, whole and right, and goes on where it broke off. The hub is a server on loopback."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from dglaunch.config import BackendConfig
from dglaunch.errors import UserError
from dglaunch.models.checkpoint import resolve
from dglaunch.models.components import INDEX, MODULAR_INDEX
from dglaunch.models.hub import Hub
from dglaunch.models.modular_files import place_parts
from support.checkpoint_folders import WEIGHTS, checkpoint_folder, modular_index, write_json, write_safetensors
from support.commands import dglaunch
from support.hub_server import HubServer

MODEL = "someone/some-model"
TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    folder = checkpoint_folder(tmp_path / "model")
    write_json(folder / "tokenizer" / "tokenizer.json", {"words": []})
    with HubServer({MODEL: folder}) as server:
        server.in_use(monkeypatch, tmp_path / "cache")
        yield server


def files_in(folder: Path) -> set[str]:
    found = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    return {name for name in found if not name.startswith(".")}


def test_only_what_a_run_loads_comes_to_the_cache_and_is_found_without_the_hub(hub: HubServer) -> None:
    folder = hub.models[MODEL]
    for other in ("transformer/diffusion_pytorch_model.fp16.safetensors", "flux.safetensors", "onnx/model.safetensors"):
        write_safetensors(folder / other, 10)
    for other in ("transformer/diffusion_pytorch_model.bin", "transformer/code.py", "sample.png"):
        (folder / other).write_bytes(b"other")
    result = dglaunch("fetch", MODEL)
    assert result.code == 0 and f"Use it with --model_name {MODEL}" in result.output
    assert set(hub.fetched) == {
        "model_index.json", "tokenizer/tokenizer.json", "scheduler/scheduler_config.json", "text_encoder/config.json",
        "transformer/config.json", "vae/config.json", *WEIGHTS,
    }  # fmt: skip
    hub.down = True
    assert resolve(BackendConfig(model_name=MODEL)).parameters["transformer"] == 5000


def test_a_modular_checkpoint_comes_by_its_own_index_and_is_found_without_the_hub(hub: HubServer) -> None:
    folder, index = hub.models[MODEL], modular_index(MODEL)
    (folder / INDEX).unlink()
    write_json(folder / MODULAR_INDEX, index)
    result = dglaunch("fetch", MODEL)
    assert result.code == 0 and {MODULAR_INDEX, "tokenizer/tokenizer.json", *WEIGHTS} <= set(hub.fetched)
    hub.down = True
    files = Hub(MODEL)
    assert files.json(INDEX) is None and files.json("modular_config.json") is None
    assert files.json(MODULAR_INDEX) == index
    assert place_parts(files, index, index.keys(), None).count()["transformer"] == 5000


def test_parts_of_a_modular_checkpoint_in_other_models_are_named(hub: HubServer) -> None:
    folder = hub.models[MODEL]
    (folder / INDEX).unlink()
    write_json(folder / MODULAR_INDEX, modular_index(MODEL, vae={"pretrained_model_name_or_path": "other/model"}))
    result = dglaunch("fetch", MODEL, COLUMNS="2000")
    assert (
        result.code == 2
        and f"hf download {MODEL}, hf download other/model" in result.output
        and not hub.fetched.keys() & WEIGHTS
    )


def test_a_folder_of_its_own_holds_the_model_and_a_second_start_brings_nothing_again(
    hub: HubServer, tmp_path: Path
) -> None:
    to = tmp_path / "models" / "it"
    assert dglaunch("fetch", MODEL, "--to", str(to)).code == 0
    assert (to / TRANSFORMER).read_bytes() == (hub.models[MODEL] / TRANSFORMER).read_bytes()
    assert files_in(to) == set(hub.fetched)
    hub.fetched.clear()
    assert dglaunch("fetch", MODEL, "--to", str(to)).code == 0
    assert not any(name in hub.fetched for name in WEIGHTS)
    assert resolve(BackendConfig(model_name=str(to))).parameters["transformer"] == 5000


def test_what_broke_off_is_noticed_by_a_run_and_goes_on(hub: HubServer, tmp_path: Path) -> None:
    to = tmp_path / "it"
    hub.damage[TRANSFORMER] = lambda whole: whole[:100]
    broken = dglaunch("fetch", MODEL, "--to", str(to))
    assert broken.code == 2 and TRANSFORMER in broken.output and "Start the same command again" in broken.output
    with pytest.raises(UserError, match=f"Go on with: dglaunch fetch {MODEL} --to {to}"):
        resolve(BackendConfig(model_name=str(to)))
    hub.damage.clear()
    assert dglaunch("fetch", MODEL, "--to", str(to)).code == 0
    assert resolve(BackendConfig(model_name=str(to))).heads == 24


def test_a_file_that_is_cut_off_later_is_noticed(hub: HubServer, tmp_path: Path) -> None:
    to = tmp_path / "it"
    assert dglaunch("fetch", MODEL, "--to", str(to)).code == 0
    (to / TRANSFORMER).write_bytes((to / TRANSFORMER).read_bytes()[:-1])
    with pytest.raises(UserError, match=f"{TRANSFORMER} is not there or not whole"):
        resolve(BackendConfig(model_name=str(to)))


def test_other_bytes_of_the_same_length_are_not_taken_and_not_left_behind(hub: HubServer, tmp_path: Path) -> None:
    hub.damage[TRANSFORMER] = lambda whole: whole[:-1] + b"x"
    result = dglaunch("fetch", MODEL)
    assert result.code == 2 and "other bytes than the hub says" in result.output
    assert not list((tmp_path / "cache").rglob("diffusion_pytorch_model.safetensors"))[1:]
    hub.damage.clear()
    assert dglaunch("fetch", MODEL).code == 0


def test_a_small_file_is_checked_by_the_hash_of_git(hub: HubServer) -> None:
    hub.damage["tokenizer/tokenizer.json"] = lambda whole: whole.replace(b"words", b"sword")
    result = dglaunch("fetch", MODEL)
    assert result.code == 2 and "tokenizer/tokenizer.json" in result.output


def test_a_folder_of_the_users_own_is_left_alone(hub: HubServer, tmp_path: Path) -> None:
    to = tmp_path / "mine"
    to.mkdir()
    (to / "model_index.json").write_text("mine")
    result = dglaunch("fetch", MODEL, "--to", str(to))
    assert result.code == 2 and "Give --to a new folder" in result.output
    assert (to / "model_index.json").read_text() == "mine" and len(list(to.iterdir())) == 1


def test_a_folder_of_another_model_is_left_alone(hub: HubServer, tmp_path: Path) -> None:
    to = tmp_path / "it"
    hub.models["someone/another"] = hub.models[MODEL]
    assert dglaunch("fetch", MODEL, "--to", str(to)).code == 0
    result = dglaunch("fetch", "someone/another", "--to", str(to))
    assert result.code == 2 and f"{to} holds {MODEL}" in result.output


def test_a_part_with_pickles_alone_is_refused_before_anything_heavy_comes(hub: HubServer) -> None:
    weights = hub.models[MODEL] / TRANSFORMER
    weights.rename(weights.with_suffix(".bin"))
    result = dglaunch("fetch", MODEL)
    assert result.code == 2 and "no safetensors for its transformer" in result.output
    assert not any(name in hub.fetched for name in WEIGHTS)


def test_without_a_network_it_says_where_to_do_it(hub: HubServer) -> None:
    hub.down = True
    result = dglaunch("fetch", MODEL)
    assert result.code == 2 and "on a machine with a network" in result.output
