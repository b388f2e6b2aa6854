"""`python -m dglaunch COMMAND ...`, also as the script of torchrun's workers."""

import os
import sys

from dglaunch.search_path import without_current_folder


def console_script() -> None:
    """Entry point of the `dglaunch` command and of torchrun's workers."""
    sys.path[:] = without_current_folder(sys.path)
    from dglaunch.cli.main import main

    if "TORCHELASTIC_RUN_ID" not in os.environ:
        sys.exit(main())
    # Under torchrun, leave the root cause where its summary finds it.
    from torch.distributed.elastic.multiprocessing.errors import record

    from dglaunch.distributed.agent import end_restarts
    from dglaunch.distributed.channel import leave

    code = record(main)() or 0
    end_restarts(code, os.environ)
    leave()
    sys.exit(code)


if __name__ == "__main__":
    console_script()
