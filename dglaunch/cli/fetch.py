"""`dglaunch fetch MODEL [--to FOLDER]`: a model's files from the hub to this machine, for nodes without a network. Needs no torch."""

import sys
from pathlib import Path

from dglaunch.errors import EXIT_DONE
from dglaunch.files import at_home
from dglaunch.models.fetching import Listed
from dglaunch.models.fetching import fetch as fetch_model
from dglaunch.terminal import Terminal

MEGABYTE = 1e6
SHOWN = 50 * MEGABYTE
"""Bytes from which on a file has a line of its own."""


def fetch(model: str, /, to: Path | None = None, revision: str | None = None) -> int:
    """Bring a model from the hub to this machine, where there is a network: the files that a run loads, each checked by its
    hash; what broke off goes on when the command is started again.

    Args:
        model: its hub id, such as black-forest-labs/FLUX.1-dev.
        to: a folder of its own, for --model_name. Default: the hub's cache, where runs find it by its id.
        revision: branch, tag or commit.
    """
    terminal = Terminal()

    def tell(item: Listed) -> None:
        if item.size >= SHOWN:
            terminal.print(f"{item.name}: {item.size / 1e9:.1f} GB")

    if not sys.stderr.isatty():
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()
    fetched = fetch_model(model, revision, None if to is None else at_home(to), tell)
    terminal.print(
        f"{fetched.num_files} files, {fetched.num_bytes / 1e9:.1f} GB, all right, in {fetched.folder} (commit {fetched.commit})"
    )
    name = fetched.folder if to is not None else model
    terminal.print(f"Use it with --model_name {name}; nodes without a network: HF_HUB_OFFLINE=1 saves looking for one.")
    return EXIT_DONE
