"""dglaunch, and then the most memory that this process had, in KiB: python -m support.with_memory plan t2i ...

Read from /proc, not by getrusage: what that says of a new process begins with the memory of the one that started it, here
a worker of pytest that has imported everything.
"""

import re
import sys
from pathlib import Path

from dglaunch.cli.main import main

if __name__ == "__main__":
    code = main(sys.argv[1:])
    peak = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert peak is not None
    print("MEMORY", peak[1])
    sys.exit(code)
