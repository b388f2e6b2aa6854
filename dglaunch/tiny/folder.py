"""The checkpoint that ships inside the package is found here: a very small FLUX, trained on drawn pictures.

    from dglaunch.tiny.folder import checkpoint
    FluxPipeline.from_pretrained(checkpoint())        # FluxKontextPipeline takes the same folder

Rebuild it with `python -m dglaunch.tiny.training.train`, measure it with `python -m dglaunch.tiny.training.evaluate`.
Importing this module costs nothing: torch is imported only where no shipped weights are found.
"""

from pathlib import Path

from dglaunch.files import at_home

WEIGHTS = Path(__file__).parent / "weights"
"""An ordinary diffusers folder, in safetensors, with the checkpoint's default arguments in `dglaunch.json`."""

COMPONENTS = ("scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "transformer", "vae")


def checkpoint(cache: Path | str = "~/.cache/dglaunch") -> Path:
    """Return the shipped diffusers folder; without one, an untrained model of the same shape, built once in `cache`."""
    if is_complete(WEIGHTS):
        return WEIGHTS
    from dglaunch.tiny import model

    return model.build_untrained(at_home(Path(cache)))


def is_complete(folder: Path) -> bool:
    """Return whether a folder holds every part that the pipelines load (`model_index.json` is written last)."""
    return (folder / "model_index.json").is_file() and all((folder / name).is_dir() for name in COMPONENTS)
