"""Output folders from outside of a run: check one, look at one while it grows, join several. Needs no torch.

    dglaunch verify OUT [--repair]      dglaunch status OUT      dglaunch merge OUT0 OUT1 ... --output_dir OUT

Each function here is a command: its arguments are the flags, what it returns is the exit code.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from tyro.conf import Positional

from dglaunch.atomic import replacing
from dglaunch.errors import EXIT_BROKEN, EXIT_DONE, EXIT_DRAINED, EXIT_ITEMS_FAILED, OutputError, UserError
from dglaunch.output.ledger import TEMPORARY, count_newlines, id_of, is_held, read_lines, read_runs

SHOWN = 20
RECENT = 100
"""Images whose times give the present speed."""
STARTS_AGAIN = {"drained", "lost"}
"""Outcomes after which the same command goes on without anybody's help."""
OWN_NAME = re.compile(r"\d{6,}(_\d{2,})?\.(png|jpg|webp)")
"""A file that dglaunch named itself; without a ledger line it is the rest of a killed run, not a file of the user's."""
SUFFIXES = (".png", ".jpg", ".webp")


@dataclass(slots=True)
class Contents:
    """What a folder says of itself, and what is wrong with it."""

    lines: dict[tuple[int, int], dict[str, Any]] = field(default_factory=dict)
    """Good lines by (index, sample)."""
    texts: dict[Path, list[str]] = field(default_factory=dict)
    """The good lines of each ledger that also has wrong ones."""
    problems: list[str] = field(default_factory=list)
    wrong_files: set[str] = field(default_factory=set)
    """Files of ours that --repair removes."""


# -- verify -------------------------------------------------------------------------------------------------------


def verify(folder: Positional[Path], /, repair: bool = False) -> int:
    """Check a finished or stopped folder: ledger lines, files, sizes, sha256, pixels, and that none is missing.

    Exit code 0: all is right; 1: something is wrong or missing.

    Args:
        folder: what --output_dir was.
        repair: remove wrong lines and files, so that the next start of the job makes those images again.
    """
    console = Console(soft_wrap=True, highlight=False)
    need_results(folder)
    with _lock(folder):
        contents = inspect(folder)
        if repair and contents.problems:
            _remove(folder, contents)
    missing = missing_of(folder, contents.lines)
    _print_some(console, contents.problems)
    if missing:
        console.print(missing)
    if repair and contents.problems:
        console.print("Wrong lines and files are removed; start the job's command again to make those images.")
    elif contents.problems:
        console.print("dglaunch verify --repair removes what is wrong; the job's next start makes it again.")
    right = f"{len(contents.lines):,} images are right"
    console.print(f"{right}; {len(contents.problems):,} problems" if contents.problems else right)
    return EXIT_BROKEN if contents.problems or missing else EXIT_DONE


def inspect(folder: Path) -> Contents:
    """Compare every ledger line with its file, and every file with the lines."""
    contents = Contents()
    named: set[str] = set()
    checked: dict[str, str | None] = {}
    for path in sorted(folder.glob("metadata*.jsonl")):
        kept: list[str] = []
        seen: set[tuple[int, int]] = set()
        num_lines = 0
        for text, line in read_lines(path):
            num_lines += 1
            name = str(line.get("file_name", ""))
            named.add(name)
            if id_of(line) in seen:
                contents.problems.append(f"{path.name}: {name} has two lines")
                continue
            seen.add(id_of(line))
            if name not in checked:
                checked[name] = trouble = _trouble(folder, line)
                if trouble is not None:
                    contents.problems.append(trouble)
                    contents.wrong_files.add(name)
            if checked[name] is None:
                contents.lines[id_of(line)] = line
                kept.append(text)
        if torn := count_lines(path) - num_lines:
            contents.problems.append(f"{path.name}: {torn} lines cannot be read")
        if torn or len(kept) < num_lines:
            contents.texts[path] = kept
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.endswith(SUFFIXES) and entry.name not in named and not entry.name.startswith("."):
            ours = OWN_NAME.fullmatch(entry.name) is not None
            contents.problems.append(f"{entry.name} has no ledger line" + ("" if ours else " (left alone)"))
            if ours:
                contents.wrong_files.add(entry.name)
    return contents


def count_lines(path: Path) -> int:
    """Lines of a ledger, a torn last one too."""
    with path.open("rb") as data:
        size = data.seek(0, os.SEEK_END)
        if not size:
            return 0
        data.seek(-1, os.SEEK_END)
        return count_newlines(path) + (data.read(1) != b"\n")


def _trouble(folder: Path, line: dict[str, Any]) -> str | None:
    """What is wrong with the file of a ledger line."""
    name = str(line.get("file_name", ""))
    if not name or Path(name).name != name:
        return f"index {line['index']}: {name!r} is no file name"
    try:
        data = (folder / name).read_bytes()
    except FileNotFoundError:
        return f"{name} has a ledger line but no file"
    except OSError as error:
        return f"{name} cannot be read: {error.strerror or error}"
    if len(data) != line.get("bytes"):
        return f"{name} has {len(data):,} bytes, the ledger says {line.get('bytes')}"
    if hashlib.sha256(data).hexdigest() != line.get("sha256"):
        return f"{name} was changed: its sha256 is not the ledger's"
    return _undecodable(folder / name)


def _undecodable(path: Path) -> str | None:
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, ValueError, SyntaxError) as error:  # all of these are what Pillow says of a broken file
        return f"{path.name} does not decode: {error}"
    return None


def missing_of(folder: Path, lines: Collection[tuple[int, int]]) -> str | None:
    """A sentence about images that the job has and the folder does not."""
    total = max((run.get("num_tasks", 0) for run in runs(folder).values()), default=0)
    if len(lines) >= total:
        return None
    failed = {id_of(line) for path in folder.glob("failures*.jsonl") for _, line in read_lines(path)} - set(lines)
    text = f"{total - len(lines):,} of {total:,} images are missing"
    gaps = sorted(set(range(total)) - {index for index, _ in lines})
    if all(sample == 0 for _, sample in lines) and all(index < total for index, _ in lines):
        text += f" (index {', '.join(map(str, gaps[:SHOWN]))}{', ...' if len(gaps) > SHOWN else ''})"
    return text + (f"; {len(failed):,} of them failed, see failures.jsonl" if failed else "")


def _remove(folder: Path, contents: Contents) -> None:
    """Lines first: a line must never stand without its file."""
    for path, texts in contents.texts.items():
        _replace(path, texts)
    for name in contents.wrong_files:
        if Path(name).name == name and name:
            (folder / name).unlink(missing_ok=True)


def _print_some(console: Console, texts: Sequence[str]) -> None:
    for text in texts[:SHOWN]:
        console.print(text)
    if len(texts) > SHOWN:
        console.print(f"... and {len(texts) - SHOWN:,} more")


# -- status -------------------------------------------------------------------------------------------------------


def status(folder: Positional[Path], /, node_rank: int | None = None) -> int:
    """Tell how far a job is, from another shell while it runs or after it.

    Exit code 0: nothing is left to do; 3: only images that failed; 130: work is left and the same command goes on (a
    signal drained it, or a rank was lost); 1: it is running, or broke off in a way that needs someone.

    Args:
        folder: what --output_dir is.
        node_rank: with --num_nodes: answer for this node's share alone.
    """
    console = Console(soft_wrap=True, highlight=False)
    need_results(folder)
    done = {id_of(line): line["file_name"] for path in folder.glob("metadata*.jsonl") for _, line in read_lines(path)}
    failed = {id_of(line) for path in folder.glob("failures*.jsonl") for _, line in read_lines(path)} - done.keys()
    found = runs(folder, "run*" if node_rank is None else f"run-node{node_rank}of*")
    total = max((run.get("num_tasks", 0) for run in found.values()), default=len(done))
    left = max(total - len(done), 0)
    for name, run in found.items():
        part = name.removeprefix("run").removesuffix(".json")
        held = is_held(folder, f"{part}*" if part else "*")
        outcome = run.get("outcome", "unknown")
        if outcome == "running" and not held:
            run["outcome"] = "lost"
            outcome = "killed (it says running, but nothing holds the folder)"
        console.print(f"{name}: {outcome}, started {run.get('started')}" + (", running now" if held else ""))
    console.print(f"{len(done):,} of {total:,} images done, {len(failed):,} failed, {left - len(failed):,} to make")
    if speed := speed_of(folder, done.values()):
        console.print(f"{speed:.3g} images/s over the last {min(len(done), RECENT)} images")
    return _code({run.get("outcome") for run in found.values()}, left, len(failed), node_rank is not None)


def _code(outcomes: set[Any], left: int, failed: int, one_node: bool) -> int:
    """What is left of the whole job is not asked of one node."""
    if not left or (one_node and outcomes == {"done"}):
        return EXIT_DONE
    if outcomes & STARTS_AGAIN and outcomes <= STARTS_AGAIN | {"done", "failed"}:
        return EXIT_DRAINED
    if not outcomes or not outcomes <= {"done", "failed"}:
        return EXIT_BROKEN
    return EXIT_DRAINED if left > failed and not one_node else EXIT_ITEMS_FAILED


def runs(folder: Path, name: str = "run*") -> dict[str, dict[str, Any]]:
    """The run*.json of a folder by name: one, or one for each independent node; that of a rank where it is alone."""
    found = read_runs(folder, name)
    return {name: run for name, run in found.items() if _base_of(name) not in found.keys() - {name}}


def _base_of(name: str) -> str:
    """The run.json of rank 0, where the ranks beside it share its folder."""
    return re.sub(r"-rank\d+of\d+", "", name)


def input_table(folder: Path) -> Path | None:
    """Of an editing run: the table that its command named."""
    given = (run.get("config", {}).get("input", {}).get("value") for run in runs(folder).values())
    return next((Path(text) for text in given if isinstance(text, str)), None)


def speed_of(folder: Path, names: Iterable[str]) -> float | None:
    """Images a second, from the times of the latest files."""
    times: list[float] = []
    for name in names:
        with contextlib.suppress(OSError):
            times.append((folder / name).stat().st_mtime)
    latest = sorted(times)[-RECENT:]
    span = latest[-1] - latest[0] if latest else 0.0
    return (len(latest) - 1) / span if span > 0 else None


# -- merge --------------------------------------------------------------------------------------------------------


def merge(folders: Positional[tuple[Path, ...]], /, output_dir: Path) -> int:
    """Join the folders of nodes that share no file system into one, checking each image on the way.

    The images are linked where the folders are on one file system, else copied. Exit code 0: every image of the job is
    there; 1: some are missing.

    Args:
        folders: the --output_dir of each node.
        output_dir: a folder that does not exist yet, or an empty one.
    """
    console = Console(soft_wrap=True, highlight=False)
    if output_dir.exists() and any(output_dir.iterdir()):
        raise UserError(f"--output_dir {output_dir} is not empty; choose another folder.")
    if not folders:
        raise UserError("Name the folders to join: dglaunch merge OUT0 OUT1 --output_dir OUT.")
    _same_settings(folders)
    files: list[Path] = []
    joined: dict[tuple[int, int], str] = {}
    hashes: dict[tuple[int, int], str] = {}
    failures: dict[tuple[int, int], str] = {}
    with contextlib.ExitStack() as locks:
        for folder in dict.fromkeys(folders):  # all are looked at before the first file is linked
            locks.enter_context(_lock(folder))
            contents = inspect(folder)
            if contents.problems:
                listed = "\n".join(f"  {problem}" for problem in contents.problems[:SHOWN])
                raise UserError(f"{folder} is not right; dglaunch verify --repair {folder} first.\n{listed}")
            for task_id, line in contents.lines.items():
                if hashes.setdefault(task_id, line["sha256"]) != line["sha256"]:
                    raise UserError(f"{line['file_name']} is in two of the folders and differs; which is right?")
                if task_id not in joined:
                    files.append(folder / line["file_name"])
                joined[task_id] = json.dumps(line, ensure_ascii=False) + "\n"
            failures |= {id_of(line): t for path in folder.glob("failures*.jsonl") for t, line in read_lines(path)}
        output_dir.mkdir(parents=True, exist_ok=True)
        for file in files:
            _link(file, output_dir)
    failed = {task_id: text for task_id, text in failures.items() if task_id not in joined}
    _replace(output_dir / "metadata.jsonl", (joined[task_id] for task_id in sorted(joined)))
    if failed:
        _replace(output_dir / "failures.jsonl", (failed[task_id] for task_id in sorted(failed)))
    _write_merged_run(folders, output_dir, len(joined), len(failed))
    missing = missing_of(output_dir, joined)
    console.print(f"{len(joined):,} images of {len(folders)} folders are in {output_dir}")
    if missing:
        console.print(missing)
    return EXIT_BROKEN if missing else EXIT_DONE


def _same_settings(folders: Sequence[Path]) -> None:
    first: dict[str, Any] | None = None
    for folder in folders:
        need_results(folder)
        for run in runs(folder).values():
            told = run.get("settings")
            first = first if first is not None else told
            if told != first:
                raise UserError(f"{folder} holds another job than {folders[0]}: {told} and {first}.")


def _link(source: Path, output_dir: Path) -> None:
    target = output_dir / source.name
    try:
        os.link(source, target)
    except FileExistsError:
        raise UserError(f"{source.name} stands for different images in two of the folders.") from None
    except OSError:  # another file system, or one without links
        try:
            shutil.copy2(source, target)
        except OSError as error:
            raise OutputError(f"Copying {source} to {output_dir} failed: {error.strerror or error}.") from None


def _write_merged_run(folders: Sequence[Path], output_dir: Path, num_ok: int, num_failed: int) -> None:
    told = [run for folder in folders for run in runs(folder).values()]
    total = max((run.get("num_tasks", 0) for run in told), default=num_ok)
    outcome = "done" if num_ok >= total else "failed" if num_ok + num_failed >= total else "drained"
    merged = {
        **(told[0] if told else {}), "outcome": outcome, "num_ok": num_ok, "num_failed": num_failed, "num_skipped": 0,
        "num_total": total, "num_tasks": total, "merged_from": [str(folder) for folder in folders],
    }  # fmt: skip
    (output_dir / "run.json").write_text(json.dumps(merged, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


# -- files --------------------------------------------------------------------------------------------------------


def need_results(folder: Path) -> None:
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}; name what --output_dir was.")
    if not any(folder.glob("run*.json")) and not any(folder.glob("metadata*.jsonl")):
        raise UserError(f"{folder} holds no results of dglaunch (no run.json, no metadata.jsonl).")


def _replace(path: Path, lines: Iterable[str]) -> None:
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    try:
        with replacing(path, temporary), temporary.open("w", encoding="utf-8") as out:
            out.writelines(lines)
    except OSError as error:
        raise OutputError(f"Writing {path} failed: {error.strerror or error}. It is as it was.") from None


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold what a run would hold, so that none starts meanwhile.

    Raises:
        UserError: one is running.
    """
    with contextlib.ExitStack() as held:
        for path in folder.glob(f"{TEMPORARY[:-1]}*.lock"):
            stream = held.enter_context(path.open("r"))
            try:
                fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                raise UserError(
                    f"A dglaunch is writing to {folder}. Wait for it; dglaunch status shows how far it is."
                ) from None
        yield
