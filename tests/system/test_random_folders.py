"""Random folders of ours and of others, and commands on them: what is not ours stays, nothing crashes, nothing hangs.

DG_TEST_FOLDERS=10000 pytest tests/system/test_random_folders.py
"""

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dglaunch.files import is_regular
from support.commands import dglaunch
from support.results import write_jsonl

COUNT = int(os.environ.get("DG_TEST_FOLDERS", "100"))
PROMPTS = ".dglaunch.prompts"
"""What came out of a pipe has nothing that says whose it is: before it is written, what stands there is moved aside."""
NAMES = [
    "metadata.jsonl", "metadata_val.jsonl", "metadata-node0of2.jsonl", "metadata-rank1of2.jsonl", "failures.jsonl", "run.json",
    "run-node0of2.json", "run_config.json", "000001.png", "000003.png", "000099.png", "20250714_153012.jpg", "a.png", "..png",
    "gallery.html", ".dglaunch.lock", ".dglaunch-rank1of2.lock", ".dglaunch-aside", ".dglaunch-oom-64x64-4.json", "inputs",
    ".dglaunch-7-notes.tmp", "parquet", "inputs/1_1.png", "notes.txt", "prompts.jsonl",
    "webdataset", "webdataset/00000.tar", "webdataset/notes.txt", ".dglaunch-view-webdataset",
    PROMPTS, "plan.json", "certify.json", "certify.html", "logs/reference.txt", "cases",
]  # fmt: skip
CONTENTS = [
    b"mine", b"{", b"[]", b"null\n", b"\xff\xfe\x00", b"[" * 20_000, b'{"num_tasks": 1e10}', b'{"file_name": "a.png", "text": "x"}\n',
    b'{"index": 0, "sample": 0, "file_name": "../../etc/passwd", "bytes": 1, "key": "0", "sha256": "0"}\n',
    b'{"outcome": 3, "num_tasks": "many", "settings": []}', b"%!PS-Adobe-3.0 EPSF-3.0\n",
]  # fmt: skip
DAMAGES = [
    "no ledger",
    "empty ledger",
    "torn ledger",
    "torn run.json",
    "no dot-files",
    "no image",
    "changed image",
    "garbage line",
]
COMMANDS: list[list[str]] = [
    ["status", "OUT"], ["verify", "OUT"], ["verify", "OUT", "--repair"], ["gallery", "OUT"], ["gallery", "OUT", "--thumbnails", "16"],
    ["merge", "OUT", "--output_dir", "MERGED"], ["T2I"], ["T2I", "--overwrite"], ["T2I", "--layout", "webdataset"],
    ["T2I", "--writer", "rank"], ["T2I", "--node_rank", "0", "--num_nodes", "2"], ["replay", "OUT/000000.png"], ["PIPE"],
    ["plan", "T2I", "--json", "OUT/plan.json"], ["plan", "T2I", "--json", "OUT/metadata.jsonl"],
]  # fmt: skip
MADE = st.sampled_from(["file", "file", "file", "picture", "link", "dangling", "zero", "fifo", "folder"])
OTHERS = st.lists(st.tuples(st.sampled_from(NAMES), MADE, st.sampled_from(CONTENTS)), max_size=4)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    write_jsonl(folder / "prompts.jsonl", [{"prompt": f"prompt {n}"} for n in range(3)])
    few = write_jsonl(folder / "few.jsonl", [{"prompt": f"prompt {n}"} for n in range(2)])
    assert dglaunch("t2i", "--backend", "fake", "--prompts_file", few, "--output_dir", folder / "out").code == 0
    return folder


@contextmanager
def a_folder(finished: Path, started: bool) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="random-") as name:
        folder = Path(name)
        shutil.copytree(finished / "out", folder / "out") if started else (folder / "out").mkdir()
        (folder / "elsewhere").mkdir()
        (folder / "elsewhere" / "precious").write_bytes(b"precious")
        yield folder


def put(path: Path, made: str, content: bytes, elsewhere: Path) -> bool:
    """Something of the user's; whether there was room for it."""
    if path.exists() or path.is_symlink() or (os.path.lexists(path.parent) and not path.parent.is_dir()):
        return False
    path.parent.mkdir(exist_ok=True)
    if made == "file":
        path.write_bytes(content)
    elif made == "picture":
        Image.new("RGB", (8, 8), "teal").save(path, "PNG")
    elif made == "fifo":
        os.mkfifo(path)
    elif made == "folder":
        path.mkdir()
        (path / "inside").write_bytes(content)
    else:
        targets = {"link": elsewhere / "precious", "dangling": elsewhere / "nothing", "zero": Path("/dev/zero")}
        path.symlink_to(targets[made])
    return True


def damage(out: Path, kind: str) -> None:
    """What happens to a folder of ours."""
    ledger, run, image = out / "metadata.jsonl", out / "run.json", out / "000000.png"
    text = ledger.read_text() if ledger.is_file() else ""
    if kind == "changed image" and image.is_file():
        Image.new("RGB", (9, 9), "gold").save(image)
    elif kind == "no dot-files":
        for path in [path for path in out.glob(".*") if path.is_file()]:
            path.unlink()
    elif kind == "no image":
        image.unlink(missing_ok=True)
    elif kind == "torn run.json" and run.is_file():
        run.write_text(run.read_text()[:50])
    elif kind == "no ledger":
        ledger.unlink(missing_ok=True)
    elif text:
        ledger.write_text({"empty ledger": "", "torn ledger": text[:-30]}.get(kind, text + "garbage\n"))


def look(path: Path) -> object:
    """What there is, so that two looks can be compared."""
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return "link", os.readlink(path)
    if stat.S_ISDIR(mode):
        return {entry.name: look(entry) for entry in path.iterdir()}
    return path.read_bytes() if stat.S_ISREG(mode) else stat.S_IFMT(mode)


@contextmanager
def from_stdin(data: bytes) -> Iterator[None]:
    """What a pipe into this process would say."""
    before, (reading, writing) = os.dup(0), os.pipe()
    os.write(writing, data)
    os.close(writing)
    os.dup2(reading, 0)
    try:
        yield
    finally:
        os.dup2(before, 0)
        os.close(before)
        os.close(reading)


def run(folder: Path, finished: Path, words: list[str]) -> None:
    job = [
        "t2i",
        "--backend",
        "fake",
        "--prompts_file",
        str(finished / "prompts.jsonl"),
        "--output_dir",
        str(folder / "out"),
    ]
    piped = ["t2i", "--backend", "fake", "--prompts_file", "-", "--output_dir", str(folder / "out")]
    named = {"PIPE": piped, "OUT": [str(folder / "out")], "MERGED": [str(folder / "merged")], "T2I": job}
    command = [part.replace("OUT/", f"{folder}/out/") for word in words for part in named.get(word, [word])]
    with from_stdin(b"prompt 0\nprompt 1\n"):
        ended = dglaunch(*command, cwd=folder)
    assert ended.code in (0, 1, 2, 3, 130) and "Traceback" not in ended.output, (command, ended.output)


@pytest.mark.timeout(600 + COUNT)
@settings(max_examples=COUNT, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(
    started=st.booleans(),
    others=OTHERS,
    damages=st.lists(st.sampled_from(DAMAGES), max_size=2, unique=True),
    commands=st.lists(st.sampled_from(COMMANDS), min_size=1, max_size=3),
)
def test_what_is_not_ours_stays(
    finished: Path, started: bool, others: list[tuple[str, str, bytes]], damages: list[str], commands: list[list[str]]
) -> None:
    with a_folder(finished, started) as folder:
        out = folder / "out"
        for kind in damages:
            damage(out, kind)
        first = out / "000000.png"
        painted = {first.read_bytes()} if "changed image" in damages and first.is_file() else set()
        mine = [out / name for name, made, content in others if put(out / name, made, content, folder / "elsewhere")]
        before = {path: look(path) for path in mine if path.name not in (".dglaunch-aside", PROMPTS)}
        painted |= {path.read_bytes() for path in mine if path.name == PROMPTS and is_regular(path)}
        for words in commands:
            run(folder, finished, words)
        for path, seen in before.items():
            assert (path.exists() or path.is_symlink()) and look(path) == seen, path
        assert look(folder / "elsewhere") == {"precious": b"precious"}
        kept = {path.read_bytes() for path in out.rglob("*") if path.is_file() and not path.is_symlink()}
        assert painted <= kept, "what a person made of a result is kept"
