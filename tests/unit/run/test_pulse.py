"""What a run says of itself while it goes on: run.json, a file of metrics, and a log that does not grow with the job."""

import io
import json
import time
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from dglaunch.data.task import Result
from dglaunch.errors import OutputError
from dglaunch.output.writer import Writer
from dglaunch.run import pulse, report
from dglaunch.run.journal import Journal
from dglaunch.run.report import LeaderReport, Report
from dglaunch.terminal import Terminal
from support.commands import dglaunch
from support.pulses import beat_after_each_result
from support.results import ledger, run_json, write_jsonl


def result(index: int, error: str | None = None, rank: int = 0) -> Result:
    record: dict[str, object] = {"index": index, "rank": rank} | ({} if error is None else {"error": error})
    return Result(task_id=(index, 0), file_name=f"{index}.png", record=record, data=None if error else b"x")


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


def test_a_log_of_a_month_has_under_200_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    said, clock = io.StringIO(), Clock(monkeypatch)
    shown = Report(total=200_000, skipped=0, terminal=Terminal(file=said, width=200))
    shown.begin()
    for index in range(200_000):
        clock.now += 13.0
        shown.update(result(index, "no memory for 3 bytes" if index % 50 == 0 else None))
    lines = said.getvalue().splitlines()
    assert len(lines) < 200 and "of 200,000 images" in lines[-1]
    assert sum("failed on rank" in line for line in lines) == report.FAILURES_TOLD


def test_failures_are_counted_by_their_kind() -> None:
    shown = Report(total=9, skipped=0, terminal=Terminal(file=io.StringIO()))
    shown.begin()
    for index in range(3):
        shown.update(result(index, f"row {index}: the server said 500"))
    shown.update(result(3, "refused"))
    shown.update(result(4, rank=2))
    said = shown.progress()
    assert said["failures_by_kind"] == {"row N: the server said N": 3, "refused": 1}
    assert said["images_by_rank"] == {"0": 4, "2": 1}


def metrics_of(file: Path) -> dict[str, float]:
    families = text_string_to_metric_families(file.read_text())
    return {sample.name: sample.value for family in families for sample in family.samples}


def test_a_job_without_a_new_image_says_that_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts are encoded ahead, a model is compiled, an image takes a minute: run.json and the metrics go on all the while."""
    monkeypatch.setattr(pulse, "EVERY_S", 0.02)
    table, file, out = tmp_path / "prompts.jsonl", tmp_path / "job.prom", tmp_path / "out"
    write_jsonl(table, [{"prompt": "a [sleep 0.5]"}])
    said: set[tuple[object, int, float]] = set()
    refresh = Journal.refresh

    def watched(self: Journal, measured: dict[str, object]) -> None:
        refresh(self, measured)
        said.add(
            (run_json(out)["outcome"], run_json(out)["num_ok"], metrics_of(file)["dglaunch_updated_timestamp_seconds"])
        )

    monkeypatch.setattr(Journal, "refresh", watched)
    words = ["--prompts_file", table, "--output_dir", out, "--metrics_file", file]
    assert dglaunch("t2i", "--backend", "fake", *words).code == 0
    assert len({when for outcome, images, when in said if outcome == "running" and images == 0}) > 1
    assert run_json(out)["outcome"] == "done" and metrics_of(file)["dglaunch_running"] == 0


def test_nothing_is_refreshed_after_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refresh that is under way as the run ends comes before the last run.json, and later ones not at all."""
    monkeypatch.setattr(pulse, "EVERY_S", 0.0005)
    said: list[object] = []
    write_run = Writer.write_run

    def watched(self: Writer, run: dict[str, object]) -> None:
        write_run(self, run)
        said.append(run["outcome"])

    monkeypatch.setattr(Writer, "write_run", watched)
    table = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": f"{n} [item error]"} for n in range(30)])
    words = ["--batch_size", "1", "--prompts_file", table, "--output_dir", tmp_path / "out"]
    assert dglaunch("t2i", "--backend", "fake", *words).code == 3
    assert said[-1] == "failed" and said.count("failed") == 1
    assert run_json(tmp_path / "out")["outcome"] == "failed"


def test_a_disk_that_is_full_is_the_images_to_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be refreshed waits for the next time."""
    monkeypatch.setattr(pulse, "EVERY_S", 0.0005)
    write_run = Writer.write_run

    def full(self: Writer, run: dict[str, object]) -> None:
        if "replicas" in run:
            raise OutputError("no room")
        write_run(self, run)

    monkeypatch.setattr(Writer, "write_run", full)
    words = ["--prompt", "a [sleep 0.1]", "--output_dir", tmp_path / "out"]
    ended = dglaunch("t2i", "--backend", "fake", *words)
    assert ended.code == 0 and "no room" not in ended.output


def test_run_json_and_the_metrics_follow_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, object]] = []
    beat_after_each_result(monkeypatch, lambda: seen.append(run_json(tmp_path / "out") | {"metrics": metrics_of(file)}))
    table, file = tmp_path / "prompts.jsonl", tmp_path / "job.prom"
    write_jsonl(table, [{"prompt": f"prompt {n}"} for n in range(4)])
    ended = dglaunch(
        "t2i", "--backend", "fake", "--prompts_file", table, "--output_dir", tmp_path / "out", "--metrics_file", file
    )
    assert ended.code == 0 and len(ledger(tmp_path / "out")) == 4
    assert [(one["outcome"], one["num_ok"]) for one in seen] == [("running", n) for n in (1, 2, 3, 4)]
    assert seen[1]["images_by_rank"] == {"0": 2} and isinstance(seen[1]["images_per_s"], float)
    assert seen[1]["metrics"]["dglaunch_images_made_total"] == 2 and seen[1]["metrics"]["dglaunch_running"] == 1
    last = metrics_of(file)
    assert last["dglaunch_images_made_total"] == last["dglaunch_images_wanted"] == 4 and last["dglaunch_running"] == 0
    assert run_json(tmp_path / "out")["outcome"] == "done"


def test_names_with_quotes_stay_one_label(tmp_path: Path) -> None:
    shown = Report(total=1, skipped=0, terminal=Terminal(file=io.StringIO()))
    name = 'a "b"\\\nc'
    text = "".join(pulse._lines(shown, {"output_dir": name}, is_running=True))
    (family, *_) = text_string_to_metric_families(text)
    assert family.samples[0].labels == {"output_dir": name}


@pytest.mark.parametrize("content", ["# mine\n", json.dumps({}), ""])
def test_a_file_of_the_users_own_is_left_alone(tmp_path: Path, content: str) -> None:
    file, table = tmp_path / "job.prom", tmp_path / "prompts.jsonl"
    file.write_text(content)
    write_jsonl(table, [{"prompt": "one"}])
    ended = dglaunch(
        "t2i", "--backend", "fake", "--prompts_file", table, "--output_dir", tmp_path / "out", "--metrics_file", file
    )
    assert ended.code == 2 and "no file of dglaunch's metrics" in ended.output
    assert file.read_text() == content and not (tmp_path / "out").exists()


def test_a_missing_folder_for_the_metrics_is_told_before_anything_is_made(tmp_path: Path) -> None:
    table = tmp_path / "prompts.jsonl"
    write_jsonl(table, [{"prompt": "one"}])
    ended = dglaunch(
        "t2i", "--backend", "fake", "--prompts_file", table, "--output_dir", tmp_path / "out", "--metrics_file",
        tmp_path / "no" / "job.prom",
    )  # fmt: skip
    assert ended.code == 2 and "there is no folder" in ended.output and not (tmp_path / "out").exists()


def test_a_log_of_many_ranks_with_trouble_has_under_200_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """512 replicas for a year, of which each has run out of memory and tried batches one by one; errors of many lines."""
    said, clock = io.StringIO(), Clock(monkeypatch)
    shown = Report(total=20_480, skipped=0, terminal=Terminal(file=said, width=80))
    shown.begin()
    for index in range(20_480):
        clock.now += 1540.0
        error = f"no kernel for {index}\n" + "  in a layer\n" * 40 if index % 3 == 0 else None
        shown.update(result(index, error, rank=index % 512))
    events = [
        "2 images of 64x64 ran out of memory; at most 1 from then on",
        "a batch of 2 failed and was run one by one",
    ]
    leaders = {rank: LeaderReport(0.0, 1.0, events=events * 3) for rank in range(512)}
    summary = shown.summary(leaders, 0.0, "failed", 100_000)
    shown.end(summary, "out")
    lines = said.getvalue().splitlines()
    assert len(lines) < 200, "\n".join(lines)
    text = said.getvalue()
    assert "failed on rank 0: no kernel for 0 in a layer" in text
    assert "rank 0: 2 images of 64x64 ran out of memory" in text
    assert "3,062 more events of this kind stand in run.json" in text and len(summary.events) == 3072
    assert "40 to 40 a rank, on 512 ranks" in text
