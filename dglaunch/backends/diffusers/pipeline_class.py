"""The class of a checkpoint's pipeline, diffusers' or the user's own, and whether it can be told what to draw. No model is loaded
for it."""

from dglaunch.backends.diffusers import arguments
from dglaunch.backends.diffusers.protocols import Pipeline
from dglaunch.backends.registry import imported
from dglaunch.config import BackendConfig, RunConfig
from dglaunch.errors import UserError
from dglaunch.models.checkpoint import Checkpoint
from dglaunch.models.own_pipeline import OwnPipeline


def check_call(pipeline_class: type[Pipeline], checkpoint: Checkpoint, config: RunConfig) -> None:
    """Refuse flags that a pipeline's call would not look at, and a pipeline of the user's own that cannot be told what to draw.

    Raises:
        UserError: with what to do instead.
    """
    from diffusers import DiffusionPipeline

    if pipeline_class is DiffusionPipeline:
        return
    takes = arguments.call_parameters(pipeline_class)
    if checkpoint.own is not None:
        arguments.check_own(checkpoint.own, takes)
    arguments.check_flags(config, checkpoint.family, pipeline_class.__name__, takes)


def class_of(checkpoint: Checkpoint, config: BackendConfig) -> type[Pipeline]:
    """Return the class of a checkpoint's pipeline; DiffusionPipeline where it comes with the checkpoint and is not named there.

    Raises:
        UserError: diffusers does not have it, or what is named is no pipeline.
    """
    import diffusers

    if checkpoint.own is not None:
        return _own_class(checkpoint.own, checkpoint, config)
    name = checkpoint.pipeline_class
    found: type[Pipeline] | None = getattr(diffusers, name, None)
    if found is None and not config.trust_remote_code:
        raise UserError(
            f"The checkpoint names the pipeline {name}, which diffusers {diffusers.__version__} does not have. Update "
            "diffusers, or, if you trust the code that comes with the checkpoint, add --trust_remote_code."
        )
    default: type[Pipeline] = diffusers.DiffusionPipeline
    return found if found is not None else default


def _own_class(own: OwnPipeline, checkpoint: Checkpoint, config: BackendConfig) -> type[Pipeline]:
    """A pipeline class that is none of diffusers', imported.

    Raises:
        UserError: there is none of that name, or it is another than its source said.
    """
    import diffusers

    try:
        found = _from_checkpoint(own, checkpoint, config) if own.in_checkpoint else imported(own.name)
    except OSError:  # no network
        raise
    except Exception as error:  # the module is the user's, and may do anything while it is imported
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"The pipeline {own.name} cannot be imported ({reason}). Correct the module, or its name."
        ) from None
    needed = getattr(diffusers, own.base or "DiffusionPipeline")
    if not isinstance(found, type) or not issubclass(found, needed):
        raise UserError(f"{own.name} is no class that derives from diffusers' {needed.__name__}; let it be one.")
    own_pipeline: type[Pipeline] = found
    return own_pipeline


def _from_checkpoint(own: OwnPipeline, checkpoint: Checkpoint, config: BackendConfig) -> object:
    from diffusers.utils.dynamic_modules_utils import get_class_from_dynamic_module

    found: object = get_class_from_dynamic_module(
        checkpoint.source,
        module_file=f"{own.module}.py",
        class_name=own.class_name,
        revision=config.revision,
        trust_remote_code=config.trust_remote_code,
    )
    return found
