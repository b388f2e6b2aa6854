"""`dglaunch status OUT --watch`: what is read of run.json, how it is shown, and when the watching ends."""

import io
import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from dglaunch.cli import watch as watching
from dglaunch.output import watching as states
from dglaunch.output.ledger import OutputFolder
from dglaunch.terminal import Terminal
from support.commands import dglaunch
from support.pulses import beat_after_each_result
from support.results import run_json, write_jsonl


def run(outcome: str = "running", ago_s: float = 0.0, **told: Any) -> dict[str, Any]:
    """A run.json, as rank 0 writes it every half minute."""
    ended = (datetime.now(UTC) - timedelta(seconds=ago_s)).isoformat(timespec="seconds")
    replicas = [
        {"rank": rank, "node": f"gpu{rank // 2}", "images_per_s": speed, "quiet_s": quiet}
        for rank, speed, quiet in ((0, 0.5, 3), (1, 0.5, 9), (2, 0.4, 2), (3, 0.0, 400))
    ]
    base = {
        "num_tasks": 1000, "outcome": outcome, "num_ok": 100, "num_failed": 7, "num_skipped": 50, "num_total": 1000,
        "images_per_s": 1.4, "seconds_left": 600, "bytes": 150_000_000, "replicas": replicas,
        "failures_by_kind": {"the server said N": 5, "no memory": 2}, "ended": ended,
    }  # fmt: skip
    return base | told


def folder(path: Path, **runs: dict[str, Any]) -> OutputFolder:
    path.mkdir(exist_ok=True)
    for name, said in runs.items():
        (path / f"{name.replace('_', '-')}.json").write_text(json.dumps(said))
    return OutputFolder(path)


def shown(state: states.Watched, out: OutputFolder) -> str:
    said = io.StringIO()
    Terminal(file=said, width=200).print(watching.screen(out, state))
    return said.getvalue()


def test_nodes_replicas_failures_time_and_storage_are_shown(tmp_path: Path) -> None:
    out = folder(tmp_path, run=run())
    text = shown(states.watched(out), out)
    assert "150 of 1,000 images, 7 failed, 1.4 images/s, 4 replicas on 2 nodes, about 10 min left" in text
    assert text.index("gpu1: 0.4 images/s, 2 replicas") < text.index("gpu0: 1 images/s, 2 replicas")
    assert text.index("rank 3 on gpu1: 0 images/s, its last one 7 min ago") < text.index("rank 2 on gpu1")
    assert text.index("5 x the server said N") < text.index("2 x no memory")
    assert "0.15 GB written since the start, about 1.26 GB to come" in text and " free" in text


def test_a_disk_that_will_be_full_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states, "_free", lambda folder: 1_000_000_000)
    out = folder(tmp_path, run=run())
    assert "1 GB free: NOT ENOUGH" in shown(states.watched(out), out)


def test_independent_nodes_are_added_up(tmp_path: Path) -> None:
    out = folder(tmp_path, run_node0of2=run(), run_node1of2=run(seconds_left=900), run_node2of3={"outcome": 3})
    state = states.watched(out)
    assert (state.total, state.done, state.images_per_s, state.seconds_left) == (2000, 300, 2.8, 900)
    assert state.failures["no memory"] == 4 and len(state.replicas) == 8


def test_what_strangers_wrote_ends_nothing(tmp_path: Path) -> None:
    odd = {"images_per_s": "fast", "replicas": [3, {"rank": "x"}], "failures_by_kind": [1], "bytes": -4, "ended": 7}
    out = folder(tmp_path, run=run(**odd))
    assert "images" in shown(states.watched(out), out)


@pytest.mark.parametrize(
    ("outcome", "ago_s", "is_over"),
    [("running", 1e6, False), ("done", 0, True), ("failed", 0, True), ("drained", 5, False), ("lost", 5, False),
     ("drained", 500, True), ("broken", 500, True)],
)  # fmt: skip
def test_when_it_ends(outcome: str, ago_s: float, is_over: bool, tmp_path: Path) -> None:
    """A run that was stopped may be torchrun's or Slurm's to start again; one that runs may be silent for long."""
    state = states.watched(folder(tmp_path, run=run(outcome, ago_s)))
    assert state.is_over == is_over
    assert ("no word for" in watching.in_a_line(state)) == (outcome == "running")


def test_lines_without_a_terminal_then_the_end_as_status_tells_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job says something new twice, and between two words nothing is printed."""
    words = ["t2i", "--backend", "fake", "--prompt", "a", "--num_images_per_prompt", "2", "--output_dir", tmp_path]
    assert dglaunch(*words).code == 0
    ended = run_json(tmp_path)
    steps = [run(), run(), run(num_ok=200), run(num_ok=200), ended]

    def sleep(seconds: float) -> None:
        folder(tmp_path, run=steps.pop(0))

    monkeypatch.setattr(time, "sleep", sleep)
    folder(tmp_path, run=steps.pop(0))
    told = dglaunch("status", tmp_path, "--watch", "--interval", "0.000001")
    lines = told.output.splitlines()
    assert told.code == 0 and lines[0].startswith("150 of 1,000 images") and lines[1].startswith("250 of 1,000")
    assert lines[2] == "2 of 2 images, 0 failed, done" and lines[3].startswith("run.json: done")


def test_ctrl_c_leaves_cleanly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", stopped)
    folder(tmp_path, run=run())
    told = dglaunch("status", tmp_path, "--watch")
    assert told.code == 130 and told.output.count("\n") == 1 and told.output.startswith("150 of 1,000 images")


def test_a_job_says_what_is_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the run itself to the screen."""
    seen: list[states.Watched] = []
    beat_after_each_result(monkeypatch, lambda: seen.append(states.watched(OutputFolder(tmp_path / "out"))))
    table = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "a"}, {"prompt": "b [item error]"}, {"prompt": "c"}])
    words = ["t2i", "--backend", "fake", "--batch_size", "1", "--prompts_file", table, "--output_dir", tmp_path / "out"]
    assert dglaunch(*words).code == 3
    last = seen[-1]
    assert (last.done, last.failed, last.total) == (2, 1, 3) and last.is_running
    assert [replica.rank for replica in last.replicas] == [0] and last.replicas[0].node
    sizes = [path.stat().st_size for path in (tmp_path / "out").glob("*.png")]
    assert last.num_bytes == sum(sizes) and sum(last.failures.values()) == 1
