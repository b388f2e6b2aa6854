"""--transformer, --text_encoder and --vae: the keys of their files against the part that they are for, and loading them.

Before a model is loaded the conversion that diffusers would do is done on tensors that have shapes and no values: a file of
another model, with keys too many or too few, is refused with the keys. diffusers itself drops them in silence.
"""

import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dglaunch import strict_json
from dglaunch.config import OptimizationConfig
from dglaunch.errors import MissingPackage, UserError
from dglaunch.models.building import build
from dglaunch.models.checkpoint import Checkpoint
from dglaunch.models.components import Component
from dglaunch.models.weight_files import SCALES, WeightFile, is_scale

State = dict[str, torch.Tensor]
SHOWN_KEYS = 4
UNTOUCHED = ("quantization", "enable_layerwise_casting", "enable_fuse_qkv")
"""Optimizations that change the weights, which cannot be of those that are quantised already: casting would add to their error
in silence (0.12 with GGUF), fusing raises."""
PACKAGES = {
    "torchao": ("torchao", "pip install 'dglaunch[quant]'"),
    "bitsandbytes": ("bitsandbytes", "pip install 'dglaunch[quant]'"),
}
"""By what a folder may have been quantised -> the package that reads it."""
WEIGHT_TYPES = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
"""Of safetensors that are weights as they stand. Bytes and integers are packed by something that is not known here."""
UNPACKED = ("F32", "F16")
"""Of GGUF, the types that diffusers reads as weights that stand as they are; BF16 it unpacks with each use."""
DROPPED_BY_DESIGN = ("norm_final.weight",)
"""Weights in published files that the model itself does not use (Z-Image's), and diffusers' class does not have."""
IN_WHOLE_FILE = {"UNet2DConditionModel": "model.diffusion_model."}
"""Classes whose conversion knows its keys by this prefix alone."""
WHOLE_PREFIXES = ("model.diffusion_model.", "diffusion_model.")
"""What some programs put before every key of a transformer."""


# -- before anything is loaded ------------------------------------------------------------------------------------


def check_weight_files(checkpoint: Checkpoint, config: OptimizationConfig, device: str, here: bool = True) -> None:
    """Refuse weights that do not fit their part, that are quantised in a way that nothing here reads, or that another flag
    would have to change.

    Args:
        here: whether it is this machine that will run it, so that its packages count.

    Raises:
        UserError: with the keys, or the flag to drop.
    """
    denoiser = checkpoint.denoiser
    if denoiser is not None:
        _check_options(checkpoint, denoiser, config)
    for part in checkpoint.components:
        method = checkpoint.quantized_by(part)
        if method not in (None, "GGUF"):
            _check_method(part, method, device, here)
    for part, weights in checkpoint.weight_files.items():
        _check_keys(checkpoint.components[part], weights)


def _check_options(checkpoint: Checkpoint, denoiser: str, config: OptimizationConfig) -> None:
    method, weights = checkpoint.quantized_by(denoiser), checkpoint.weight_files.get(denoiser)
    given = next((flag for flag in UNTOUCHED if getattr(config, flag) not in (None, False)), None)
    if method is not None and given is not None:
        raise UserError(
            f"--{given} does not go with a {denoiser} that {method} has quantised already"
            f"{f' (--transformer {weights.path})' if weights else ''}. Drop it, or take weights that are not quantised."
        )
    if weights is not None and weights.kind == "safetensors" and config.quantization == "nf4":
        raise UserError(
            "--quantization nf4 is done while a folder is read, and would not be done to the weights of --transformer "
            f"{weights.path}. Take int8 or fp8, which are done afterwards, or a GGUF file."
        )


def _check_method(part: str, method: str, device: str, here: bool) -> None:
    package, install = next((PACKAGES[name] for name in PACKAGES if method.startswith(name)), ("", ""))
    if not package:
        raise UserError(
            f"The {part} was quantised by {method}, which dglaunch has not been tried with. Take one that torchao, bitsandbytes "
            "or GGUF has quantised, or none."
        )
    if package == "bitsandbytes" and device == "cpu":
        raise UserError(
            f"The {part} was quantised by bitsandbytes, whose weights diffusers loads where there is a GPU only. Take weights that "
            "torchao or GGUF has quantised, or none, or run it on a GPU."
        )
    if here:
        from importlib.util import find_spec

        if find_spec(package) is None:
            raise MissingPackage(package, f"The {part}, which {method} has quantised,", install)


def _check_keys(component: Component, weights: WeightFile) -> None:
    """Compare what the part has with what its file would give it."""
    described = f"--{weights.flag} {weights.path}"
    _check_class(component, weights, described)
    if weights.kind == "folder" and weights.quantized_by is not None:
        return  # its keys are the library's; what it loads is looked at
    _check_types(weights, described)
    with torch.device("meta"):
        model = build(component)
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    meta = {key: torch.empty(each.shape, device="meta") for key, each in weights.weights.items()}
    given, dropped = _as_the_part_has_them(model, component, meta, described)
    wrong = [key for key, value in given.items() if key in expected and expected[key] != tuple(value.shape)]
    missing = _without_tied(model, expected.keys() - given.keys())
    unexpected = [key for key in given if key not in expected] + dropped
    for keys, what in (
        (unexpected, "has weights that the part does not"), (missing, "lacks weights of the part"), (wrong, "has other sizes"),
    ):  # fmt: skip
        if keys:
            raise UserError(
                f"{described} is not the {weights.part} of this checkpoint ({component.class_name}): it {what}: "
                f"{_some(keys)}. Give the file of the same model, or the --model_name that the file belongs to."
            )
    if weights.kind == "GGUF":
        _check_packed(model, weights, given, described)


def _check_packed(model: torch.nn.Module, weights: WeightFile, given: State, described: str) -> None:
    """diffusers unpacks GGUF's weights in linear layers alone: all else would be computed with as packed bytes, and fails in
    the first step at best."""
    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    packed = {key for key, each in weights.weights.items() if each.dtype not in UNPACKED}
    wrong = [key for key, value in given.items() if key not in linear and packed & _origins(key, value)]
    if wrong:
        raise UserError(
            f"{described} has quantised {_some(wrong)}, and diffusers unpacks weights of linear layers alone. Take a file of the "
            "same model in which these are whole (F32 or F16), as the usual converters leave them."
        )


def _check_class(component: Component, weights: WeightFile, described: str) -> None:
    if weights.config is None:
        return
    named = weights.config.get("_class_name") or weights.config.get("architectures")
    classes = named if isinstance(named, list) else [named]
    if component.class_name not in classes:
        raise UserError(
            f"{described} holds a {classes[0]}, and the {weights.part} of this checkpoint is a {component.class_name}. Give "
            "weights of that class."
        )


def _check_types(weights: WeightFile, described: str) -> None:
    if weights.kind == "GGUF":
        from diffusers.quantizers.gguf.utils import SUPPORTED_GGUF_QUANT_TYPES

        readable = {kind.name for kind in SUPPORTED_GGUF_QUANT_TYPES} | set(UNPACKED)
    else:
        readable = set(WEIGHT_TYPES)
    packed = [key for key, each in weights.weights.items() if each.dtype not in readable]
    if packed:
        raise UserError(
            f"{described} has weights stored as {weights.weights[packed[0]].dtype}, which cannot be read here: {_some(packed)}. "
            "Take the same model in another type (bf16, fp8, or a GGUF of Q8_0)."
        )
    for key in weights.tensors:
        if key.endswith(SCALES):
            scaled = _scaled_key(key)
            size = math.prod(weights.tensors[key].shape)
            if scaled not in weights.tensors or size not in (1, weights.tensors[scaled].shape[0]):
                raise UserError(
                    f"{described} is scaled in a way that is not known here ({key} has {size} values). Take the same model "
                    "in bf16 or as GGUF."
                )


def _as_the_part_has_them(
    model: torch.nn.Module, component: Component, state: State, described: str
) -> tuple[State, list[str]]:
    """The weights as they come to the part, and the keys that would be dropped on the way."""
    if component.library != "diffusers":
        renamed = _as_encoder(model, _traced(state))
        used = {key for name, value in renamed.items() for key in _origins(name, value)}
        return renamed, [key for key in state if key not in used]
    from diffusers.loaders import single_file_model as loading

    name = loading._get_single_file_loadable_mapping_class(type(model))
    if name is None:
        raise UserError(
            f"{described}: diffusers cannot load a {component.class_name} from a single file. Give a folder as save_pretrained "
            "writes it, or drop the flag."
        )
    state, own = _unprefixed(_traced(state)), model.state_dict()
    if state.keys() == own.keys():
        return state, []
    convert = loading.SINGLE_FILE_LOADABLE_CLASSES[name]["checkpoint_mapping_fn"]
    try:
        converted: State = convert(config=dict(component.config), checkpoint=_prefixed(name, state))
    except Exception as error:  # the conversions take keys for granted
        if 2 * len(state.keys() & own.keys()) > len(state):
            return state, []
        raise UserError(
            f"{described} has other keys or sizes than a {component.class_name} ({type(error).__name__}: {error}): "
            f"{_some(state)}. Give the file of the same model."
        ) from None
    if len(state.keys() ^ own.keys()) < len(converted.keys() ^ own.keys()):
        return state, []
    used = {origin for key, value in converted.items() for origin in _origins(key, value)}
    dropped = [key for key, value in state.items() if not used & _origins(key, value) and key not in DROPPED_BY_DESIGN]
    return converted, dropped


class _Traced(torch.Tensor):
    """A tensor that knows which keys of a file its values come from, through whatever is done to it."""

    origins: frozenset[str] = frozenset()

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = super().__torch_function__(function, types, args, kwargs or {})  # type: ignore[no-untyped-call]
        origins = frozenset().union(*(each.origins for each in _traced_in([args, kwargs])))
        for each in _traced_in(result):
            each.origins = origins
        return result


def _origins(key: str, value: torch.Tensor) -> frozenset[str]:
    """The keys of a file that a weight comes from."""
    return value.origins if isinstance(value, _Traced) else frozenset([key])


def _traced(state: State) -> State:
    found: State = {}
    for key, value in state.items():
        traced = value.as_subclass(_Traced)
        traced.origins = frozenset([key])
        found[key] = traced
    return found


def _traced_in(value: Any) -> Iterator["_Traced"]:
    if isinstance(value, _Traced):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _traced_in(each)
    elif isinstance(value, dict):
        yield from _traced_in(list(value.values()))


def _without_tied(model: torch.nn.Module, missing: Iterable[str]) -> list[str]:
    """Those of the missing keys that are no second name of another weight."""
    tied = getattr(model, "all_tied_weights_keys", None) or getattr(model, "_tied_weights_keys", None) or ()
    return sorted(key for key in missing if key not in tied)


def _some(keys: Iterable[str]) -> str:
    listed = list(keys)
    more = f" and {len(listed) - SHOWN_KEYS:,} more" if len(listed) > SHOWN_KEYS else ""
    return ", ".join(listed[:SHOWN_KEYS]) + more


# -- loading ------------------------------------------------------------------------------------------------------


def load_part(component: Component, weights: WeightFile, dtype: torch.dtype, part_class: Any = None) -> tuple[Any, str]:
    """Load a part from its own file or folder, and say what was found on the loaded modules.

    Args:
        part_class: instead of the checkpoint's own.

    Raises:
        UserError: it cannot be read, or something of the part is still without values.
    """
    import diffusers
    import transformers

    library: Any = diffusers if component.library == "diffusers" else transformers
    cls = part_class or getattr(library, component.class_name)
    if weights.kind == "folder":
        model = cls.from_pretrained(str(weights.path), torch_dtype=dtype, use_safetensors=True)
    elif library is diffusers:
        model = _from_file(cls, component, weights, dtype)
    else:
        model = _encoder(cls, component, weights, dtype)
    empty = [name for name, value in [*model.named_parameters(), *model.named_buffers()] if value.is_meta]
    if empty:
        raise UserError(
            f"--{weights.flag} {weights.path} leaves weights without values: {_some(empty)}. Give another file."
        )
    model.eval()
    return model, f"{type(model).__name__} from {weights.described}{_counted(model, weights)}"


def _counted(model: torch.nn.Module, weights: WeightFile) -> str:
    """How many linear layers are quantised, of weights that are said to be."""
    return f": {count_quantized(model, f'--{weights.flag} {weights.path}')}" if weights.quantized_by is not None else ""


def count_quantized(model: torch.nn.Module, described: str) -> str:
    """Return how many linear layers of a loaded network are quantised, whose weights are said to be.

    Raises:
        UserError: none is.
    """
    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    kinds = ("torchao", "bitsandbytes", "diffusers.quantizers.gguf")
    quantized = sum(type(module.weight).__module__.startswith(kinds) for module in linear)
    if not quantized:
        raise UserError(f"{described} is quantised, but no linear layer is once it is loaded. Update diffusers.")
    return f"{quantized} of {len(linear)} linear layers quantised"


def _from_file(cls: Any, component: Component, weights: WeightFile, dtype: torch.dtype) -> Any:
    given: dict[str, Any] = {"torch_dtype": dtype}
    if weights.kind == "GGUF":
        from diffusers import GGUFQuantizationConfig
        from diffusers.models.model_loading_utils import load_gguf_checkpoint

        state = load_gguf_checkpoint(str(weights.path))
        given["quantization_config"] = GGUFQuantizationConfig(compute_dtype=dtype)
    else:
        state = _read(weights, dtype)
    with tempfile.TemporaryDirectory(prefix="dglaunch-config-") as folder:
        Path(folder, "config.json").write_text(strict_json.dumps(dict(component.config)), encoding="utf-8")
        state = _unprefixed(state)
        if state.keys() != _keys_of(component):
            state = _prefixed(component.class_name, state)
        return cls.from_single_file(state, config=folder, local_files_only=True, **given)


def _encoder(cls: Any, component: Component, weights: WeightFile, dtype: torch.dtype) -> Any:
    config = cls.config_class.from_dict(dict(component.config))
    with torch.device("meta"):
        keys = cls(config)
    state = _as_encoder(keys, _read(weights, dtype))
    return cls.from_pretrained(None, config=config, state_dict=state, dtype=dtype)


def _read(weights: WeightFile, dtype: torch.dtype) -> State:
    """The weights of a safetensors file; scaled ones as what they stand for."""
    from safetensors import safe_open

    with safe_open(weights.path, framework="pt") as file:
        stored = {key: file.get_tensor(weights.prefix + key) for key in weights.tensors}
    found: State = {key: value for key, value in stored.items() if not is_scale(key)}
    for key, scale in stored.items():
        if key.endswith(SCALES):
            weight = found[_scaled_key(key)].to(torch.float32)
            rows = (
                scale.to(torch.float32).reshape(-1, *[1] * (weight.dim() - 1)) if scale.numel() > 1 else scale.float()
            )
            found[_scaled_key(key)] = (weight * rows).to(dtype)
    return found


def _scaled_key(key: str) -> str:
    """The weight that a scale is of."""
    for ending in SCALES:
        key = key.removesuffix(ending)
    return f"{key}.weight"


def _unprefixed(state: State) -> State:
    for prefix in WHOLE_PREFIXES:
        if all(key.startswith(prefix) for key in state):
            return {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _prefixed(class_name: str, state: State) -> State:
    """The keys as the conversion of this class looks for them."""
    prefix = IN_WHOLE_FILE.get(class_name, "")
    return {prefix + key: value for key, value in state.items()}


def _keys_of(component: Component) -> set[str]:
    with torch.device("meta"):
        return set(build(component).state_dict())


def _as_encoder(model: torch.nn.Module, state: State) -> State:
    """The weights of a text encoder by the names of its class, from transformers' own, or from OpenCLIP's, which has query, key
    and value in one."""
    if any(key.startswith("transformer.resblocks.") for key in state):
        from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint

        state = convert_open_clip_checkpoint(model, state, prefix="")
    return _renamed(model, state)


def _renamed(model: torch.nn.Module, state: State) -> State:
    """The weights of a text encoder by the names that its class has in this version: what all keys of a file, or of the class,
    begin with (`text_model.`) may be there or not; what is there twice under tied names comes once."""
    own = model.state_dict().keys()
    for prefix in ("text_model.", "model.", "transformer."):
        if not any(key in own for key in state):
            added = {prefix + key: value for key, value in state.items()}
            cut = {key.removeprefix(prefix): value for key, value in state.items()}
            state = next((each for each in (added, cut) if any(key in own for key in each)), state)
    return state
