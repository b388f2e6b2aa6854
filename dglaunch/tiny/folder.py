"""The embedded checkpoint: a FLUX small enough to ship inside the package, trained on pictures drawn by this package.

    from dglaunch.tiny import checkpoint
    FluxPipeline.from_pretrained(checkpoint())        # FluxKontextPipeline takes the same folder

Rebuild it with `python -m dglaunch.tiny.training.train`, measure it with `python -m dglaunch.tiny.training.evaluate`.
Importing this module costs nothing: torch is imported only where no shipped weights are found.
"""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
"""An ordinary diffusers folder, in safetensors, with the checkpoint's own defaults in `dglaunch.json`."""

COMPONENTS = ("scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "transformer", "vae")


def is_complete(folder: Path) -> bool:
    """Whether a folder holds every part that the pipelines load (`model_index.json` is written last)."""
    return (folder / "model_index.json").is_file() and all((folder / name).is_dir() for name in COMPONENTS)


def checkpoint(cache: Path | str = "~/.cache/dglaunch") -> Path:
    """The shipped folder; without one, the untrained model of the same shape, built once into `cache`."""
    if is_complete(WEIGHTS):
        return WEIGHTS
    from dglaunch.tiny import model

    return model.build_untrained(Path(cache).expanduser())
