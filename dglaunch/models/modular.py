"""Checkpoints of diffusers' ModularPipeline: what their blocks take is read from the blocks that diffusers has for them.

    modular = read_modular(files, index, config)      # index: its modular_model_index.json
    row = modular.row()                               # as a pipeline's signature makes one (unlisted.py)
    blocks = modular.blocks()                         # new ones, of text to image alone, for the pipeline that a run loads

A modular pipeline passes over arguments that it does not know without a word, so that each name is looked up in what its blocks
declare. Guidance is no argument of its call but a part (the guider), which is set before each call.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from dglaunch.config import BackendConfig
from dglaunch.errors import UserError
from dglaunch.models.components import MODULAR_INDEX, CheckpointFiles, config_file
from dglaunch.models.families import FAMILIES, Family
from dglaunch.models.modular_files import ModularFiles, place_parts
from dglaunch.models.own_pipeline import TRUST
from dglaunch.models.unlisted import SWITCHES, Takes, Unsaid, unlisted
from dglaunch.system import need, need_version

SINCE = "0.42.0"
"""The first diffusers whose blocks can be cut down to text to image, and whose pipelines move to a device."""
CODE = "modular_config.json"
"""Names the Python file of blocks that come with a checkpoint."""
GUIDER = "guider"
"""The part that guides, and the name under which its scale is handed to the engine; no block has an input of this name."""
WORKFLOW = "text2image"
"""What diffusers' blocks call what they do with prompts alone."""
MODULAR, ORDINARY = "ModularPipeline", "Pipeline"
"""How the classes of modular pipelines end, and those of the pipelines with the same networks."""
ON_NETWORKS = frozenset(
    {"enable_vae_slicing", "enable_vae_tiling", "enable_channels_last", "enable_tf32", "attention_backend"}
)
"""Optimizations that act on the loaded networks alone, and so on those of a modular pipeline; the others were not tried there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Modular:
    """What is known of a modular checkpoint before a part of it is loaded."""

    class_name: str
    """Of the pipeline."""
    blocks: Callable[[], Any]
    """Makes its blocks, of text to image alone."""
    takes: Takes
    """What its blocks declare as inputs, with their defaults; and the guider's scale, where there is one that guides."""
    files: ModularFiles
    guided_above: float | None = None
    """Up to this scale its guider does not guide; None where it has none."""
    reasons: Mapping[str, str]
    """Why a flag has no effect, where that is not for want of an input of its name."""

    @property
    def ordinary_class(self) -> str:
        """The pipeline that has the same networks."""
        return self.class_name.removesuffix(MODULAR) + ORDINARY

    def row(self) -> Family:
        """Return its row of the table of families, by what its blocks take; of the ordinary pipeline's row only what is true of
        the networks themselves."""
        found = replace(unlisted(self.class_name, self.takes), takes=ON_NETWORKS, guided_above=self.guided_above)
        if GUIDER in self.takes:
            found = replace(found, guidance=GUIDER)
        base = FAMILIES.get(self.ordinary_class)
        if base is None:
            return found
        sided = isinstance(self.takes.get("height"), int)
        return replace(
            found,
            default_size=found.default_size if sided else base.default_size,
            sized_by_transformer=base.sized_by_transformer and not sided,
            guidance_switch=base.guidance_switch if found.guidance == base.guidance else None,
        )


def read_modular(files: CheckpointFiles, index: Mapping[str, object], config: BackendConfig) -> Modular:
    """Return what is known of a modular checkpoint.

    Args:
        index: its modular_model_index.json.

    Raises:
        UserError: it comes with code that nobody said may be run, diffusers does not have its blocks, or these draw no images of
            prompts.
    """
    need("diffusers", "A modular checkpoint", "pip install diffusers")
    need_version("diffusers", SINCE, f"A modular checkpoint ({MODULAR_INDEX})")
    class_name = index.get("_class_name")
    if not isinstance(class_name, str) or not class_name.endswith(MODULAR):
        raise UserError(
            f"The {MODULAR_INDEX} of {files.source} names no modular pipeline (_class_name); it cannot be loaded. Fetch the "
            "checkpoint again."
        )
    make = _maker(files, index, class_name, config)
    blocks = make()
    components = {spec.name: spec for spec in blocks.expected_components}
    placed = place_parts(files, index, components, config.revision)
    takes = {each.name: _default(each) for each in blocks.inputs if each.name is not None}
    guidance, reasons, guided_above = _guidance(class_name, components, placed, takes)
    return Modular(
        class_name=class_name,
        blocks=make,
        takes=guidance,
        files=placed,
        guided_above=guided_above,
        reasons=reasons,
    )


# -- blocks -------------------------------------------------------------------------------------------------------


def _maker(
    files: CheckpointFiles, index: Mapping[str, object], class_name: str, config: BackendConfig
) -> Callable[[], Any]:
    """What makes the blocks that a run calls.

    Raises:
        UserError: they come with the checkpoint and nobody said that they may be run, or diffusers does not have them.
    """
    code = _code(files)
    if code is None:
        blocks_class = _blocks_class(files, index, class_name)
        return lambda: _of_text(blocks_class(), files.source)
    if not config.trust_remote_code:
        raise UserError(f"{files.source} comes with Python code of its own ({code}), {TRUST}")

    def make() -> Any:
        from diffusers import ModularPipelineBlocks

        try:
            found = ModularPipelineBlocks.from_pretrained(
                files.source, trust_remote_code=True, revision=config.revision
            )
        except Exception as error:  # of code that may do anything
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(
                f"The blocks that come with {files.source} ({code}) cannot be made: {reason} Correct the file, or take another "
                "checkpoint."
            ) from None
        return _of_text(found, files.source)

    return make


def _code(files: CheckpointFiles) -> str | None:
    """The Python file of the blocks that come with a checkpoint."""
    named = (files.json(CODE) or {}).get("auto_map")
    if not isinstance(named, Mapping) or not named:
        return None
    return f"{str(next(iter(named.values()))).partition('.')[0]}.py"


def _blocks_class(files: CheckpointFiles, index: Mapping[str, object], class_name: str) -> Any:
    """diffusers' class of the blocks that an index names. Blocks that were put together by hand have none of their own: their
    pipeline's usual ones are taken, as diffusers does."""
    import diffusers

    usual = getattr(getattr(diffusers, class_name, None), "default_blocks_name", None)
    named = index.get("_blocks_class_name") or usual
    found = getattr(diffusers, str(named), None) if usual is not None else None
    steps = getattr(found, "block_classes", None)
    if steps is not None and not steps:
        found = getattr(diffusers, str(usual), None)
    if steps is None or found is None:
        raise UserError(
            f"The {MODULAR_INDEX} of {files.source} names the blocks {named} of a {class_name}, which diffusers "
            f"{diffusers.__version__} does not have. Update it (pip install -U diffusers)."
        )
    return found


def _of_text(blocks: Any, source: str) -> Any:
    """Blocks with what they do for prompts alone, and without what would change the prompts first.

    Raises:
        UserError: they make no images of prompts.
    """
    for name in [name for name, block in blocks.sub_blocks.items() if _rewrites(name, block)]:
        blocks.sub_blocks.pop(name)  # as diffusers says to, where prompts are to be encoded as they are
    try:
        workflows = blocks.available_workflows
    except NotImplementedError:  # there is one way alone
        workflows = [WORKFLOW]
    else:
        blocks = blocks.get_workflow(WORKFLOW) if WORKFLOW in workflows else blocks
    if WORKFLOW not in workflows or "images" not in {each.name for each in blocks.outputs}:
        ways = "" if WORKFLOW in workflows else f" (what they do: {', '.join(workflows)})"
        raise UserError(
            f"The blocks of {source}, {type(blocks).__name__}, draw no images of prompts{ways}. Choose a text-to-image checkpoint."
        )
    return blocks


def _rewrites(name: str, block: Any) -> bool:
    """Whether a step changes prompts first, and has no switch for it, which the row would set."""
    switches = [each for each in block.inputs if isinstance(each.default, bool) and SWITCHES.fullmatch(each.name or "")]
    return SWITCHES.fullmatch(name) is not None and not switches


def _default(given: Any) -> object:
    """The default of an input, as `takes_of` says that of a parameter."""
    return Unsaid.REQUIRED if given.required and given.default is None else given.default


# -- guidance -----------------------------------------------------------------------------------------------------


def _guidance(
    class_name: str, components: Mapping[str, Any], files: ModularFiles, takes: Takes
) -> tuple[Takes, Mapping[str, str], float | None]:
    """What a call takes, with the guider's scale or without what nothing would look at; why that is so; and up to where the scale
    means no guidance.

    Raises:
        UserError: the guider has no scale that could be set.
    """
    spec = components.get(GUIDER)
    if spec is None:
        none = f"{class_name} has no guider, and its blocks have no input for it"
        return takes, {} if "guidance_scale" in takes else {"guidance_scale": none}, None
    guider_class, settings = _guider(spec, files)
    known = inspect.signature(guider_class).parameters
    scale = settings.get("guidance_scale", known["guidance_scale"].default if "guidance_scale" in known else None)
    if not isinstance(scale, int | float):
        raise UserError(
            f"The guider of {files.source}, {guider_class.__name__}, has no guidance_scale, and dglaunch does not know what else it "
            "goes by. Save the checkpoint with another one, such as ClassifierFreeGuidance."
        )
    if settings.get("enabled", True) is False:
        off = f"the guider of this {class_name}, {guider_class.__name__}, is switched off (enabled: false)"
        return (
            {name: default for name, default in takes.items() if name != "negative_prompt"},
            {"guidance_scale": off, "negative_prompt": off},
            None,
        )
    return {**takes, GUIDER: float(scale)}, {}, 0.0 if settings.get("use_original_formulation") else 1.0


def _guider(spec: Any, files: ModularFiles) -> tuple[type, Mapping[str, object]]:
    """The guider's class and settings: those that the checkpoint was saved with, else those of the blocks.

    Raises:
        UserError: diffusers does not have its class.
    """
    import diffusers

    if GUIDER not in files.parts:
        return spec.type_hint, spec.config or {}
    _, name = files.parts[GUIDER]
    found = getattr(diffusers, name, None)
    if found is None:
        raise UserError(
            f"The guider of {files.source} is a {name}, which diffusers {diffusers.__version__} does not have. Update it (pip install "
            "-U diffusers)."
        )
    return found, files.json(config_file(GUIDER)) or {}
