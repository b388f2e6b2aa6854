"""`dglaunch rehearse`: a job's own backend as every rank of a replica, on fake tensors."""

from pathlib import Path

from support.commands import dglaunch
from support.results import write_jsonl


def rehearse(folder: Path, *flags: str, rows: list[dict[str, object]] | None = None, **environment: str):
    table = write_jsonl(folder / "prompts.jsonl", rows or [{"prompt": "a red circle"}])
    return dglaunch("rehearse", "t2i", "--prompts_file", table, "--output_dir", folder / "out", *flags, **environment)


def test_a_job_that_runs_ends_with_what_each_stage_holds(tmp_path: Path) -> None:
    ended = rehearse(
        tmp_path, "--model_name", "tiny", "--backend", "xdit", "--world_size", "2", "--gpu", "80GiB",
        DG_XDIT_ULYSSES_DEGREE="2",
    )  # fmt: skip
    assert ended.code == 0, ended.output
    assert "fits" in ended.output and "MiB sent" in ended.output and "not seen: values" in ended.output
