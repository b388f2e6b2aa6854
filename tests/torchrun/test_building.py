"""Networks from configurations alone, on the meta device: those of the catalog must have the weights that it says.

Quickest first. Importing the libraries is most of the time of one test; the whole catalog is built by `make soak`.
"""

import json
from dataclasses import replace
from functools import cache

import pytest

from dglaunch.errors import UserError
from dglaunch.models import catalogue
from dglaunch.models.building import build, parameters_of
from dglaunch.models.components import Component
from support.selection import rarely

QUICK = {
    "black-forest-labs/FLUX.1-dev",
    "black-forest-labs/FLUX.2-klein-4B",
    "Qwen/Qwen-Image",
    "Tongyi-MAI/Z-Image",
    "stabilityai/stable-diffusion-xl-base-1.0",
    "meituan-longcat/LongCat-Image",
    "zai-org/GLM-Image",
    "baidu/ERNIE-Image",
}
NAMES = catalogue.names()
OTHER_DEFAULTS = ("meituan-longcat/LongCat-Image", "zai-org/GLM-Image", "baidu/ERNIE-Image")
"""Models that are not what their class builds when nothing is said."""


def entry_of(name: str) -> catalogue.Entry:
    found = catalogue.known(name)
    assert found is not None
    return found


@cache
def weights_of(library: str, class_name: str, config: str) -> int:
    """Of a configuration as JSON, which several models share."""
    import torch

    component = Component(name="part", library=library, class_name=class_name, config=json.loads(config))
    with torch.device("meta"):
        return parameters_of(build(component))


def skip_if_too_new(entry: catalogue.Entry) -> None:
    import diffusers

    installed = tuple(int(part) for part in diffusers.__version__.split(".")[:3] if part.isdecimal())
    if installed < tuple(map(int, entry.diffusers.split("."))):
        pytest.skip(f"{entry.name} needs diffusers {entry.diffusers}, here is {diffusers.__version__}")


@pytest.mark.parametrize("name", rarely(NAMES, set(NAMES) - QUICK))
def test_what_the_catalog_says_is_what_the_classes_build(name: str) -> None:
    entry = entry_of(name)
    skip_if_too_new(entry)
    built = {
        part: weights_of(component.library, component.class_name, json.dumps(component.config))
        for part, component in entry.components.items()
        if part in entry.parameters
    }
    assert built == entry.parameters


@pytest.mark.parametrize("name", OTHER_DEFAULTS)
def test_the_catalog_holds_what_differs_from_the_defaults_of_the_class(name: str) -> None:
    transformer = entry_of(name).components["transformer"]
    by_default = weights_of(transformer.library, transformer.class_name, "{}")
    assert by_default != entry_of(name).parameters["transformer"]


# -- what does not build ------------------------------------------------------------------------------------------

FLUX = "black-forest-labs/FLUX.1-dev"


def changed(part: str, **config: object) -> Component:
    component = entry_of(FLUX).components[part]
    return replace(component, config={**component.config, **config})


@pytest.mark.parametrize(
    "component, key",
    [
        (changed("transformer", num_layers="19"), r'num_layers = "19"'),
        (changed("vae", down_block_types=["Unknown"]), r'down_block_types = \["Unknown"\]'),
        (changed("text_encoder", hidden_act="gelu_of_nobody"), r'hidden_act = "gelu_of_nobody"'),
    ],
)
def test_a_configuration_that_does_not_build_says_which_key(component: Component, key: str) -> None:
    with pytest.raises(UserError, match=rf"The configuration of the {component.name} does not build .*{key}"):
        build(component)


def test_a_key_inside_of_another_is_named_in_full() -> None:
    encoder = entry_of("Qwen/Qwen-Image").components["text_encoder"]
    text = {**encoder.config["text_config"], "num_hidden_layers": "28"}  # type: ignore[dict-item]
    with pytest.raises(UserError, match=r'text_config\.num_hidden_layers = "28"'):
        build(replace(encoder, config={**encoder.config, "text_config": text}))


def test_a_class_that_diffusers_does_not_have_yet_says_which_version_does(monkeypatch: pytest.MonkeyPatch) -> None:
    import diffusers

    transformer = entry_of("krea/Krea-2-Raw").components["transformer"]
    monkeypatch.setattr(diffusers, "__version__", "0.38.0")
    monkeypatch.setattr(diffusers, "Krea2Transformer2DModel", None)
    with pytest.raises(
        UserError, match=r"diffusers 0\.38\.0 does not have; 0\.39\.0 is the first .*'diffusers>=0\.39\.0'"
    ):
        build(transformer)


@pytest.mark.parametrize(
    "class_name, library", [("Unheard2DModel", "diffusers"), ("UnheardModel", "transformers"), ("Own", "my_module")]
)
def test_a_class_that_nobody_knows_is_refused(class_name: str, library: str) -> None:
    with pytest.raises(UserError, match=f"{class_name}, which .* does not have. Install a newer one"):
        build(Component(name="transformer", library=library, class_name=class_name, config={}))


@pytest.mark.parametrize("class_name", ["FlowMatchEulerDiscreteScheduler", "utils"])
def test_what_is_no_network_is_not_built(class_name: str) -> None:
    with pytest.raises(UserError, match="is no network"):
        build(Component(name="vae", library="diffusers", class_name=class_name, config={}))
