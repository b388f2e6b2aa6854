"""The process in which something is measured: `python -m kernels_bench.child module:function payload.json result.json`.

Started by `measure.in_process`, alone or under torchrun. The function is called with the payload; on rank 0 what it
returns is the result. An output that its check refused is a result too, so that the parent can say which.
"""

import importlib
import json
import os
import sys
from pathlib import Path

from kernels_bench.measure import WrongOutput


def main(target: str, payload: Path, result: Path) -> int:
    module, _, function = target.partition(":")
    try:
        told = {"ok": getattr(importlib.import_module(module), function)(json.loads(payload.read_text()))}
    except WrongOutput as wrong:
        told = {"wrong": str(wrong)}
    if os.environ.get("RANK", "0") == "0":
        temporary = result.with_suffix(".part")
        temporary.write_text(json.dumps(told))
        temporary.replace(result)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])))
