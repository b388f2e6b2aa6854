"""Libraries tell of errors only: eight ranks would print each notice and bar eight times. --debug leaves them as they are."""

import logging
import os
import warnings


def quiet_libraries() -> None:
    """Let the libraries of models tell of errors only."""
    quiet_imports()
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


def quiet_imports() -> None:
    """Let them do so from when they are imported, which is left to others: a plan may not need them."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings(
        "ignore", message="The `local_dir_use_symlinks`"
    )  # of huggingface_hub, for diffusers' own call
    for name in ("torchao", "torch.utils._pytree"):  # diffusers imports torchao where it is installed
        logging.getLogger(name).setLevel(logging.ERROR)
    # It prints the whole traceback of what it raises, also where that is an answer of the self-test.
    logging.getLogger("diffusers.modular_pipelines").setLevel(logging.CRITICAL)
