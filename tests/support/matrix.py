"""What tests measured of a family and a feature, kept for the matrix in docs/models.md.

    DG_TEST_MATRIX=1 pytest -m "slow or not slow" -k lora && python docs/generate.py

A test says what it saw: `measured("Flux", "LoRA", difference)` or `refused("PixArtSigma", "LoRA", "why")`. Without the
variable nothing is written, so that tests leave the tree as it is.
"""

import fcntl
import json
import os
from pathlib import Path

MATRIX = Path(__file__).resolve().parents[2] / "docs" / "matrix.json"
COLUMNS = (
    "LoRA", "mixed rows", "LoRA, xDiT", "single file", "GGUF", "scheduler", "img2img", "mask", "control",
    "tensor parallel", "FSDP", "context parallel",
)  # fmt: skip


def measured(family: str, column: str, difference: float) -> None:
    """The feature works; `difference` is the greatest one of a pixel, in [0, 1], from plain diffusers or peft."""
    _note(family, column, f"{difference:.1g}" if difference else "0")


def refused(family: str, column: str, why: str) -> None:
    """The command was refused, with this reason in a few words."""
    _note(family, column, f"no: {why}")


def _note(family: str, column: str, seen: str) -> None:
    assert column in COLUMNS, column
    if not os.environ.get("DG_TEST_MATRIX"):
        return
    with MATRIX.with_name(".matrix.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        families = json.loads(MATRIX.read_text())["families"]
        families.setdefault(family, {})[column] = seen
        kept = {"columns": COLUMNS, "families": families}
        MATRIX.write_text(json.dumps(kept, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
