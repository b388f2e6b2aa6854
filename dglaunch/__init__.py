"""dglaunch: a torchrun-native launcher for offline batch inference with diffusion transformers.

    from pathlib import Path
    from dglaunch import BackendConfig, T2IConfig, t2i

    t2i(T2IConfig(backend=BackendConfig(model_name="tiny"), prompts_file=Path("prompts.jsonl"), output_dir=Path("out")))

The same script runs on one rank or under torchrun.
"""

from dglaunch.config import BackendConfig, OptimizationConfig, ParallelConfig, T2IConfig

__all__ = ["BackendConfig", "OptimizationConfig", "ParallelConfig", "T2IConfig", "t2i"]


def t2i(config: T2IConfig) -> int:
    """Make the images of a text-to-image job; returns the exit code of `python -m dglaunch t2i`.

    Raises:
        DglaunchError: see dglaunch.errors; a UserError carries its remedy.
    """
    from dglaunch import job
    from dglaunch.config import environment

    return job.execute(config, {}, environment())
