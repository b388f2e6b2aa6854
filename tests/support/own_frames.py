"""The stack as a reader of dglaunch meets it: the functions of its own files that are being run."""

import sys
from pathlib import Path
from types import FrameType

import dglaunch

PACKAGE = Path(dglaunch.__file__).parent


def own_frames() -> list[str]:
    """The qualified names, outermost first."""
    names: list[str] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if Path(frame.f_code.co_filename).is_relative_to(PACKAGE):
            names.append(frame.f_code.co_qualname)
        frame = frame.f_back
    return names[::-1]
