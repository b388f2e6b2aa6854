"""Answer one request about a model, both as JSON: for a run, whose own process computes something else.

python -m dglaunch.simulation < ASKED.json         # {"backend": {...}, "model_type": null, "edits": false, "request": {...}}
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from dglaunch.config import BackendConfig, EditingConfig, RunConfig, T2IConfig
from dglaunch.models.checkpoint import as_editor, resolve
from dglaunch.models.figures import Figures, Request
from dglaunch.models.shape import Shape


def answer(asked: dict[str, Any]) -> Figures:
    """Trace what is asked."""
    from dglaunch.simulation.trace import trace

    backend = BackendConfig(**asked["backend"] | {"cache_dir": Path(asked["backend"]["cache_dir"])})
    checkpoint = resolve(backend)
    control = "control" if backend.controlnet is not None else None
    config: RunConfig = T2IConfig(backend=backend, prompts_file=Path(os.devnull), control_column=control)
    if asked["edits"]:
        config = EditingConfig(backend=backend, input=Path(os.devnull))
        checkpoint = as_editor(checkpoint, asked["model_type"])
    given = asked["request"]
    shapes = {"shape": Shape(**given["shape"]), "input_shapes": tuple(Shape(**each) for each in given["input_shapes"])}
    lists = {name: tuple(given[name]) for name in ("flags", "roles")}
    return trace(checkpoint, config, Request(**given | shapes | lists))


if __name__ == "__main__":
    found = answer(json.load(sys.stdin))
    sys.stdout.write(json.dumps(found.as_json()))
