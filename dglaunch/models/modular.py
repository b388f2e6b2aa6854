"""Checkpoints of diffusers' ModularPipeline: refused, with where to have the same model as a pipeline.

A modular pipeline passes over arguments that it does not know without a word (a negative prompt, a scale, a size), and of the
families that were tried only Flux and FLUX.2 [klein] draw the images of their ordinary pipelines.
"""

from collections import Counter
from collections.abc import Mapping

from dglaunch.errors import UserError
from dglaunch.models.components import INDEX, CheckpointFiles

MODULAR_INDEX = "modular_model_index.json"


def refuse_modular(files: CheckpointFiles) -> None:
    """Refuse a checkpoint that is a modular one and nothing else.

    Raises:
        UserError: it is; the message says where the parts of it come from.
    """
    index = files.json(MODULAR_INDEX)
    if index is None:
        return
    kind = index.get("_class_name")
    raise UserError(
        f"{files.source} is a checkpoint for diffusers' modular pipelines ({MODULAR_INDEX}, {kind}) and has no {INDEX}. Those "
        "pass over arguments that they do not know without a word (a negative prompt, a guidance scale), and mostly draw other images "
        f"than the model's own pipeline, so that dglaunch runs none. Take the model as a pipeline{_from(files, index)}."
    )


def _from(files: CheckpointFiles, index: Mapping[str, object]) -> str:
    """The checkpoint that most of its parts come from, if that is another one."""
    specs = [value[2] for value in index.values() if isinstance(value, list) and len(value) == 3]
    sources = Counter(
        str(source)
        for spec in specs
        if isinstance(spec, Mapping)
        and (source := spec.get("pretrained_model_name_or_path")) not in (None, files.source)
    )
    return f", such as {sources.most_common(1)[0][0]}, where most of its parts come from" if sources else ""
