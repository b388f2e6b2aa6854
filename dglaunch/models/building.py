"""One part of a checkpoint as the real class of diffusers or transformers, from its configuration and without its weights.

    with torch.device("meta"):
        transformer = build(checkpoint.components["transformer"])        # its true size, no memory

On which device, and whether with values at all, is up to the context that is active.
"""

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from dglaunch import strict_json
from dglaunch.errors import UserError
from dglaunch.models.catalogue import first_version_with
from dglaunch.models.components import Component

if TYPE_CHECKING:
    import torch

Config = dict[str, Any]
TOLD = 300
"""Characters of a library's own message."""


def build(component: Component) -> "torch.nn.Module":
    """Build a component from its configuration.

    Raises:
        UserError: the installed libraries do not have its class, and which version does; or the configuration does not
            build, and which key.
    """
    make = _maker(component)
    try:
        return make(dict(component.config))
    except Exception as error:  # whatever the libraries raise for a configuration
        raise UserError(_explanation(component, make, error)) from None


def parameters_of(module: "torch.nn.Module") -> int:
    """Return the number of weights of a module; those that are tied count once."""
    return sum(parameter.numel() for parameter in module.parameters())


def _maker(component: Component) -> Callable[[Config], "torch.nn.Module"]:
    """What makes the component of a configuration.

    Raises:
        UserError: there is no such class, or it is no network.
    """
    import torch

    found = getattr(_library(component), component.class_name, None)
    if found is None:
        raise UserError(_missing(component))
    if not inspect.isclass(found) or not issubclass(found, torch.nn.Module):
        raise UserError(
            f"The {component.name} is a {component.class_name} of {component.library}, which is no network. Correct the "
            "checkpoint's model_index.json."
        )
    network: Any = found
    if component.library == "diffusers":
        return lambda config: network.from_config(config)
    return lambda config: network(network.config_class.from_dict(config))


def _library(component: Component) -> object:
    """The module that has the component's class: a library, or one of diffusers' pipelines with parts of its own.

    Raises:
        UserError: there is none.
    """
    name = component.library
    if name not in ("diffusers", "transformers"):
        name = f"diffusers.pipelines.{name}"
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(_missing(component)) from None


def _missing(component: Component) -> str:
    library = "transformers" if component.library == "transformers" else "diffusers"
    installed = importlib.import_module(library).__version__
    first = first_version_with(component.class_name) if library == "diffusers" else None
    since = f"; {first} is the first that has it" if first is not None else ""
    newer = f"{library}>={first}" if first is not None else library
    return (
        f"The {component.name} is a {component.class_name}, which {library} {installed} does not have{since}. Install a newer "
        f"one (pip install -U '{newer}'), or choose another model."
    )


def _explanation(component: Component, make: Callable[[Config], object], error: Exception) -> str:
    said = " ".join(f"{type(error).__name__}: {error}".split())[:TOLD]
    guilty = next((key for key, rest in _without_each_key(component.config) if _builds(make, rest)), None)
    key = (
        ""
        if guilty is None
        else f" {guilty} = {strict_json.dumps(_value(component.config, guilty))} is what it stumbles over."
    )
    return (
        f"The configuration of the {component.name} does not build a {component.class_name} ({said}).{key} Correct its "
        "config.json, or fetch the checkpoint again."
    )


def _without_each_key(config: Mapping[str, Any]) -> Iterator[tuple[str, Config]]:
    """Yield each key (`text_config.hidden_size` inside of another) with the configuration that lacks it."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            for inner, rest in _without_each_key(value):
                yield f"{key}.{inner}", {**config, key: rest}
        yield key, {name: other for name, other in config.items() if name != key}


def _builds(make: Callable[[Config], object], config: Config) -> bool:
    import torch

    try:
        with torch.device("meta"):
            make(config)
    except Exception:
        return False
    return True


def _value(config: Mapping[str, Any], key: str) -> object:
    value: Any = config
    for name in key.split("."):
        value = value[name]
    return value
