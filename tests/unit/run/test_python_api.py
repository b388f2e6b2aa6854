"""A job from Python: what it returns and raises, its images as they are finished, and worlds that the caller has made."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist
from PIL import Image

from dglaunch import BackendConfig, EditingConfig, T2IConfig, images, t2i
from dglaunch.backends import registry
from dglaunch.backends.base import Context, Facts
from dglaunch.backends.fake import draw
from dglaunch.data.task import Batch, Task
from dglaunch.errors import OutputError, UserError
from dglaunch.output.writer import Writer
from support.results import ledger, run_json, write_jsonl


def config(folder: Path, *prompts: str, **more: object) -> T2IConfig:
    table = write_jsonl(folder / "prompts.jsonl", [{"prompt": prompt} for prompt in prompts])
    return T2IConfig(
        backend=BackendConfig(backend="fake"), prompts_file=table, output_dir=folder / "out", batch_size=1, **more,  # type: ignore[arg-type]
    )  # fmt: skip


def test_a_result_says_what_a_run_came_to(tmp_path: Path) -> None:
    result = t2i(config(tmp_path, "a", "b [item error]", "c"))
    assert (result.outcome, result.exit_code, result.output_dir) == ("failed", 3, tmp_path / "out")
    counts = result.counts
    assert (counts.num_ok, counts.num_failed, counts.num_skipped, counts.num_total) == (2, 1, 0, 3)
    assert [row["prompt"] for row in result.rows] == ["a", "c"]
    assert [(row["index"], row["error"]) for row in result.failures] == [(1, "refused, as asked")]
    again = t2i(config(tmp_path, "a", "b [item error]", "c"))
    assert (again.counts.num_ok, again.counts.num_skipped) == (0, 2)
    assert len(again.rows) == 2


def test_a_result_of_several_ledgers_has_each_row_once(tmp_path: Path) -> None:
    prompts = [str(n) for n in range(5)]
    for node in (0, 1):
        result = t2i(config(tmp_path, *prompts, node_rank=node, num_nodes=2))
    assert len(list((tmp_path / "out").glob("metadata*.jsonl"))) == 3
    assert [row["index"] for row in result.rows] == list(range(5))


def test_a_mistake_raises_and_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="There is no file"):
        t2i(T2IConfig(backend=BackendConfig(backend="fake"), prompts_file=tmp_path / "none.jsonl"))
    assert capfd.readouterr() == ("", "")


def test_a_run_that_breaks_off_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*_: object) -> None:
        raise OutputError("No space left on device")

    monkeypatch.setattr(Writer, "write", no_space)
    with pytest.raises(OutputError, match="No space left"):
        t2i(config(tmp_path, "a"))
    assert run_json(tmp_path / "out")["outcome"] == "broken"


class Grey:
    """A backend of the caller's own."""

    def __init__(self, context: Context) -> None:
        self.seconds: dict[str, float] = {}

    def load(self) -> Facts:
        return Facts(defaults={"height": 8, "width": 8})

    def generate(self, batch: Batch) -> list[Image.Image]:
        return [Image.new("RGB", (8, 8), (len(task.prompt),) * 3) for task in batch.tasks]

    def close(self) -> None:
        pass


def test_a_backend_of_the_callers_own_is_known_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.BACKENDS, "grey", registry.BACKENDS["fake"])  # forgotten after the test
    registry.register("grey", f"{__name__}:Grey")
    wanted = config(tmp_path, "a", "four")
    wanted.backend.backend = "grey"  # type: ignore[assignment]
    shades = {finished.row["prompt"]: finished.image.getpixel((0, 0)) for finished in images(wanted)}
    assert shades == {"a": (1, 1, 1), "four": (4, 4, 4)}


# -- images as they are finished ----------------------------------------------------------------------------------


def test_images_come_with_their_rows_while_they_are_written(tmp_path: Path) -> None:
    stream = images(config(tmp_path, *[f"p{n}" for n in range(20)], "bad [item error]"))
    seen = {}
    for finished in stream:
        assert (tmp_path / "out").exists() and stream.result is None
        seen[finished.row["file_name"]] = finished
    assert stream.result is not None and stream.result.counts.num_ok == 20
    rows = {row["file_name"]: row for row in ledger(tmp_path / "out")}
    assert {name: finished.row for name, finished in seen.items()} == rows
    for finished in seen.values():
        row = finished.row
        task = Task(index=int(str(row["index"])), prompt=str(row["prompt"]), seed=int(str(row["seed"])), stem="")
        assert finished.image.tobytes() == draw(task).tobytes()


def test_a_slow_caller_makes_the_run_wait_and_is_no_stall(tmp_path: Path) -> None:
    stream = images(config(tmp_path, *[f"p{n}" for n in range(60)], stall_timeout=2.0))
    for n, _ in enumerate(stream):
        if n == 0:
            time.sleep(3)
            assert len(ledger(tmp_path / "out")) < 40, "it ran ahead of its caller"
    assert n == 59


def test_a_caller_that_leaves_stops_the_run_in_order(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    for _ in images(config(tmp_path, *[f"p{n} [sleep 0.05]" for n in range(100)])):
        break
    assert run_json(tmp_path / "out")["outcome"] == "drained"
    assert 0 < len(ledger(tmp_path / "out")) < 100
    assert signal.getsignal(signal.SIGTERM) is before
    assert not [thread for thread in threading.enumerate() if thread.name == "run"]


def test_a_signal_ends_the_iteration(tmp_path: Path) -> None:
    stream = images(config(tmp_path, *[f"p{n} [sleep 0.05]" for n in range(100)]))
    for n, _ in enumerate(stream):
        if n == 2:
            os.kill(os.getpid(), signal.SIGTERM)
    assert stream.result is not None and stream.result.outcome == "drained" and stream.result.exit_code == 130


def test_the_iteration_raises_what_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*_: object) -> None:
        raise OutputError("No space left on device")

    monkeypatch.setattr(Writer, "write", no_space)
    with pytest.raises(OutputError, match="No space left"):
        list(images(config(tmp_path, "a", "b")))


# -- a world of the caller's --------------------------------------------------------------------------------------


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process alone has initialized torch.distributed, without torchrun's variables."""
    monkeypatch.delenv("RANK", raising=False)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_world_that_the_process_has_made_is_used_and_left(tmp_path: Path, world: None) -> None:
    result = t2i(config(tmp_path, "a", "b"))
    assert result.outcome == "done"
    assert dist.is_initialized()
    dist.barrier()


def test_names_of_the_package_are_loaded_when_they_are_asked_for() -> None:
    import dglaunch

    assert set(dglaunch.__all__) <= set(dir(dglaunch))
    assert dglaunch.EditingConfig is EditingConfig
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        dglaunch.nothing  # noqa: B018
