"""Commands that dglaunch starts itself: their exit code, what they said, and that a kill leaves nothing behind."""

import os
import time
from pathlib import Path

from dglaunch.cli.children import Process, descendants, last_words, start


def ended(process: Process, seconds: float = 60) -> int:
    limit = time.monotonic() + seconds
    while (code := process.poll()) is None:
        assert time.monotonic() < limit
        time.sleep(0.01)
    return code


def test_a_command_on_one_rank_is_none_of_torchruns(tmp_path: Path) -> None:
    child = start(1, ["status", "nowhere"], dict(os.environ) | {"RANK": "1", "WORLD_SIZE": "2"}, tmp_path / "log")
    assert ended(child) == 2
    assert last_words(tmp_path / "log") == "dglaunch: There is no folder nowhere; name what --output_dir was."


def test_a_kill_reaches_what_it_has_started_in_other_sessions(tmp_path: Path) -> None:
    child = Process(
        ["sh", "-c", "setsid sleep 300 & setsid sh -c 'sleep 300; true' & wait"], os.environ, tmp_path / "log"
    )
    limit = time.monotonic() + 30
    while len(pids := descendants(child._process.pid)) < 3:
        assert time.monotonic() < limit
        time.sleep(0.01)
    child.kill()
    assert child.poll() == -9
    while any(Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids):
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_the_last_error_is_found_before_torchruns_own(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert last_words(log) == ""
    log.write_text(
        "a line\nValueError: this\nmore\ntorch.distributed.elastic.multiprocessing.errors.ChildFailedError: \n"
    )
    assert last_words(log) == "ValueError: this"
