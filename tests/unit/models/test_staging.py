"""--stage_to: a node's own copy of a checkpoint is whole, right and dglaunch's own, or it is made anew or refused."""

import threading
from pathlib import Path

import pytest

from dglaunch.errors import UserError
from dglaunch.models import staging
from dglaunch.models.staging import NOTE, Staging
from support.checkpoint_folders import WEIGHTS, checkpoint_folder, write_safetensors

TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = checkpoint_folder(tmp_path / "shared" / "flux")
    write_safetensors(folder / "transformer/diffusion_pytorch_model.fp16.safetensors", 10)
    return folder


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    return tmp_path / "scratch"


def test_what_a_run_loads_is_copied_once(source: Path, scratch: Path) -> None:
    first = Staging(source, scratch)
    made = first.make()
    assert not made.was_there and made.num_bytes == sum((source / name).stat().st_size for name in first.sizes)
    assert {name for name in first.sizes if name.endswith(".safetensors")} == set(WEIGHTS)
    assert (first.folder / TRANSFORMER).read_bytes() == (source / TRANSFORMER).read_bytes()
    assert Staging(source, scratch).make().was_there


@pytest.mark.parametrize("damage", [lambda whole: whole[:-1], lambda whole: whole[:-1] + b"x", lambda _: None])
def test_a_damaged_copy_is_made_anew(source: Path, scratch: Path, damage: object) -> None:
    copy = Staging(source, scratch)
    copy.make()
    file = copy.folder / TRANSFORMER
    content = damage(file.read_bytes())  # type: ignore[operator]
    file.unlink() if content is None else file.write_bytes(content)
    assert not Staging(source, scratch).make().was_there
    assert file.read_bytes() == (source / TRANSFORMER).read_bytes()


def test_a_copy_that_broke_off_is_no_copy(source: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(_source: Path, _target: Path) -> str:
        raise KeyboardInterrupt

    copy_file = staging._copy_file
    monkeypatch.setattr(staging, "_copy_file", dies)
    with pytest.raises(KeyboardInterrupt):
        Staging(source, scratch).make()
    monkeypatch.setattr(staging, "_copy_file", copy_file)
    copy = Staging(source, scratch)
    assert not copy.folder.exists()
    copy.make()
    assert [entry.name for entry in scratch.iterdir() if not entry.name.endswith(".lock")] == [copy.folder.name]


def test_another_state_of_the_source_is_another_copy(source: Path, scratch: Path) -> None:
    before = Staging(source, scratch)
    before.make()
    write_safetensors(source / TRANSFORMER, 6000)
    after = Staging(source, scratch)
    after.make()
    assert after.folder != before.folder and (before.folder / TRANSFORMER).exists()


def test_a_folder_that_is_not_a_copy_is_left_alone(source: Path, scratch: Path) -> None:
    mine = Staging(source, scratch).folder
    mine.mkdir(parents=True)
    (mine / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match=r"is no copy of dglaunch's"):
        Staging(source, scratch).make()
    assert (mine / "mine.txt").read_text() == "mine"


def test_two_jobs_of_one_node_copy_once(source: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[str] = []
    copy_file = staging._copy_file

    def counted(file: Path, target: Path) -> str:
        copied.append(file.name)
        return copy_file(file, target)

    monkeypatch.setattr(staging, "_copy_file", counted)
    jobs = [threading.Thread(target=Staging(source, scratch).make) for _ in range(3)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert len(copied) == len(Staging(source, scratch).sizes)


def test_too_little_room_is_told_before_anything_is_copied(
    source: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch.mkdir()
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(UserError, match="GB free"):
        Staging(source, scratch).make()
    assert not list(scratch.rglob(NOTE))
