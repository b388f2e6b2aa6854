"""A process that has imported everything and becomes ranks: each is a fork of it, ready in 0.1 s instead of 8.

`support.ranks` starts it and writes a line of JSON to its input for each world; it answers with the process ids. A rank
is a process as any other: an environment, an exit code, signals and a death of its own. What it does is `support.rank`.
The server computes nothing itself and has one thread, so that a fork copies no lock that somebody holds.
"""

import contextlib
import gc
import importlib
import json
import os
import pkgutil
import select
import signal
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

LIBRARIES = (
    "torch.distributed", "torch.distributed._functional_collectives", "torch.distributed.elastic.multiprocessing.errors",
    "torch.distributed.device_mesh", "torch.distributed.tensor", "torch._dynamo", "torchao.quantization", "accelerate",
    "diffusers.hooks", "diffusers.guiders", "transformers.integrations", "numpy.ma", "tomllib",
    "rich.console", "rich.table", "rich.progress", "jinja2",
)  # fmt: skip
PIPELINES = (
    "FluxPipeline", "FluxKontextPipeline", "Flux2Pipeline", "Flux2KleinPipeline", "QwenImagePipeline",
    "QwenImageEditPipeline", "QwenImageEditPlusPipeline", "ZImagePipeline", "StableDiffusion3Pipeline",
    "PixArtSigmaPipeline", "LongCatImageEditPipeline", "GlmImagePipeline", "Lumina2Pipeline", "AutoencoderKL", "FluxTransformer2DModel",
)  # fmt: skip
ENCODERS = (
    "T5EncoderModel", "CLIPTextModel", "CLIPTextModelWithProjection", "Qwen3ForCausalLM", "Qwen2_5_VLForConditionalGeneration",
    "Mistral3ForConditionalGeneration", "PreTrainedTokenizerFast", "T5TokenizerFast", "CLIPTokenizer", "AutoTokenizer", "Gemma2Model",
)  # fmt: skip

NOT_OF_A_RANK = ("dglaunch.simulation", "dglaunch.tiny.training", "dglaunch.cli.probes")


def prepare() -> None:
    """Import what the ranks will need; what is not installed, they do without."""
    warnings.simplefilter("ignore")  # a rank gets the interpreter's own filters back
    gc.disable()
    from support import rank

    rank.count_collectives()
    for name in LIBRARIES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    for package, names in (("diffusers", PIPELINES), ("transformers", ENCODERS)):
        module = importlib.import_module(package)
        for name in names:
            with contextlib.suppress(ImportError, AttributeError, RuntimeError):
                getattr(module, name)
    from dglaunch.backends.xdit.cpu import import_xfuser
    from dglaunch.distributed import topology  # noqa: F401

    with contextlib.suppress(ImportError):
        import_xfuser()
    _import_dglaunch()
    gc.enable()
    gc.freeze()  # else a rank's collections would go through it all, and copy the memory that it shares with this process


def _import_dglaunch() -> None:
    """Half a second of each rank, for the fake backend most of it; and what Pillow imports with the first image. Not what
    needs Arrow, whose library starts a thread."""
    import dglaunch

    sys.modules["pyarrow"] = None  # type: ignore[assignment]
    for module in pkgutil.walk_packages(dglaunch.__path__, "dglaunch.", onerror=lambda _: None):
        if not module.name.startswith(NOT_OF_A_RANK) and not module.name.endswith("__main__"):
            with contextlib.suppress(ImportError):
                importlib.import_module(module.name)
    del sys.modules["pyarrow"]
    from PIL import Image

    Image.init()


def serve() -> None:
    """Read worlds until the tests are done, and note how each rank ended."""
    worlds: dict[int, tuple[Path, int]] = {}
    """By process: the folder and the number of the rank."""
    while True:
        if select.select([sys.stdin], [], [], 0.02)[0]:
            line = sys.stdin.readline()
            if not line:
                break
            wanted = json.loads(line)
            pids = [_fork(wanted, number) for number in range(len(wanted["environments"]))]
            worlds |= {pid: (Path(wanted["folder"]), number) for number, pid in enumerate(pids)}
            print(json.dumps(pids), flush=True)
        while worlds:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            folder, number = worlds.pop(pid)
            _write(folder / f"ended{number}", str(os.waitstatus_to_exitcode(status)))
    for pid in worlds:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    with contextlib.suppress(OSError):  # the test has gone, and its folder with it
        path.with_suffix(".new").write_text(text)
        os.replace(path.with_suffix(".new"), path)


def _fork(wanted: dict[str, Any], number: int) -> int:
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    code = 1
    try:
        os.setsid()
        warnings.resetwarnings()
        os.chdir(wanted["cwd"])
        os.environ.clear()
        os.environ.update(wanted["environments"][number])
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        from support import rank

        code = rank.main(Path(wanted["folder"]), number)
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    prepare()
    threads = len(list(Path("/proc/self/task").iterdir()))
    print(json.dumps({"threads": threads}), flush=True)
    serve()
