"""dglaunch twice in one process, which must keep as many threads and open files: python -m support.twice FOLDER t2i ..."""

import os
import sys
import threading
from pathlib import Path

from dglaunch.cli.main import main


def facts() -> tuple[int, int]:
    return len(os.listdir("/proc/self/fd")), threading.active_count()


if __name__ == "__main__":
    folder, *arguments = sys.argv[1:]
    seen = []
    for n in range(2):
        assert main([*arguments, "--output_dir", str(Path(folder) / f"out{n}")]) == 0
        seen.append(facts())  # the first run opens what stays open: imports, the process group
    print("FILES AND THREADS", seen)
    sys.exit(seen[0] != seen[1])
