"""Jobs of five rows on the fake backend, and what `dglaunch redo` must leave of them."""

from pathlib import Path

from dglaunch.files import digest_of
from support.commands import Ended, dglaunch
from support.results import ledger, write_jsonl

NUM = 5


def words_of(out: Path, *words: str | Path) -> list[str | Path]:
    """The job's command; its table lies beside the folder."""
    table = out.parent / "p.jsonl"
    if not table.exists():
        write_jsonl(table, [{"prompt": f"prompt {n}", "style": "oil" if n % 2 else "ink"} for n in range(NUM)])
    prompts = [] if "--prompts_file" in words else ["--prompts_file", table]
    return ["t2i", "--backend", "fake", *prompts, "--output_dir", out, *words]


def t2i(out: Path, *words: str | Path) -> Ended:
    ended = dglaunch(*words_of(out, *words))
    assert ended.code == 0, ended.output
    return ended


def redo(out: Path, *words: str | Path) -> Ended:
    ended = dglaunch("redo", out, *words)
    assert ended.code == 0, ended.output
    return ended


def is_right(out: Path, count: int = NUM) -> bool:
    """One line for each image, in order, and all files as their lines say."""
    lines = ledger(out)
    in_order = [(line["index"], line["sample"]) for line in lines]
    return in_order == sorted(set(in_order)) and len(lines) == count and dglaunch("verify", out).code == 0


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: digest_of(path) for path in sorted(folder.glob("*.png"))}
