"""dglaunch: a torchrun-native launcher for offline batch inference with diffusion transformers.

    from pathlib import Path
    from dglaunch import BackendConfig, T2IConfig, t2i

    t2i(T2IConfig(backend=BackendConfig(model_name="tiny"), prompts_file=Path("prompts.jsonl"), output_dir=Path("out")))

`edit(EditingConfig(...))` edits the images of a table. The same script runs on one rank or under torchrun.
"""

from dglaunch.config import BackendConfig, EditingConfig, OptimizationConfig, ParallelConfig, RunConfig, T2IConfig

__all__ = ["BackendConfig", "EditingConfig", "OptimizationConfig", "ParallelConfig", "T2IConfig", "edit", "t2i"]


def t2i(config: T2IConfig) -> int:
    """Make the images of a text-to-image job; returns the exit code of `python -m dglaunch t2i`.

    Raises:
        DglaunchError: see dglaunch.errors; a UserError carries its remedy.
    """
    return _execute(config)


def edit(config: EditingConfig) -> int:
    """Edit the images of a table; returns the exit code of `python -m dglaunch edit`.

    Raises:
        DglaunchError: as for t2i.
    """
    return _execute(config)


def _execute(config: RunConfig) -> int:
    from dglaunch.environment import environment
    from dglaunch.run import runner

    return runner.execute(config, {}, environment())
