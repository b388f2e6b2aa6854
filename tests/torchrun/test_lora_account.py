"""Every tensor of a LoRA file is in its place in the loaded networks, or the command is refused with the keys.

Each of these was measured to be dropped, or applied in part, with no more than the log line "safe to ignore".
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dglaunch.backends.diffusers.loras import PipelineLoras
from dglaunch.errors import UserError
from dglaunch.models.families import FAMILIES
from dglaunch.models.lora import read_loras
from support.lora_files import fitting_lora
from support.selection import rarely
from support.tiny_models import build

Tensors = dict[str, torch.Tensor]
pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config`")


@pytest.fixture(scope="module")
def pipelines(families: Path) -> Callable[[str], Any]:
    """A pipeline of a tiny checkpoint whose networks nobody has changed."""
    loaded: dict[str, Any] = {}

    def pipeline(family: str) -> Any:
        from diffusers import DiffusionPipeline

        if family not in loaded:
            loaded[family] = DiffusionPipeline.from_pretrained(build(family, families / family))
        fresh = copy.copy(loaded[family])
        for name in ("transformer", "text_encoder"):
            setattr(fresh, name, copy.deepcopy(getattr(loaded[family], name)))
        return fresh

    return pipeline


def renamed(old: str, new: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key.replace(old, new, 1): value for key, value in tensors.items()}


def added(key: str, value: torch.Tensor) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, key: value}


def deeper(tensors: Tensors) -> Tensors:
    """Of a model with more blocks."""
    more = {key.replace(".0.", ".7.", 1): value for key, value in tensors.items() if ".0." in key}
    return {**tensors, **more}


def with_lora_alpha(tensors: Tensors) -> Tensors:
    layers = {key.partition(".lora_")[0] for key in tensors}
    return {**tensors, **{f"{layer}.lora_alpha": torch.tensor(2.0) for layer in layers}}


LOST: dict[tuple[str, str], tuple[Callable[[Tensors], Tensors], str]] = {
    ("flux", "no prefix"): (renamed("transformer.", ""), "80 of its 80 tensors are not for FluxPipeline"),
    ("flux", "unet."): (renamed("transformer.", "unet."), "80 of its 80 tensors are not for FluxPipeline"),
    ("flux", "another prefix"): (renamed("transformer.", "model.dit."), "80 of its 80 tensors are not for FluxPipeline"),
    ("flux", "diffusion_model."): (renamed("transformer.", "diffusion_model."), "are not for FluxPipeline"),
    ("flux", "deeper"): (deeper, "have no place in FluxTransformer2DModel: transformer."),
    ("flux", "a layer too many"): (
        lambda tensors: {
            **tensors,
            "transformer.proj_in.lora_A.weight": torch.ones(4, 8),
            "transformer.proj_in.lora_B.weight": torch.ones(8, 4),
        },
        "2 of its 82 tensors have no place in FluxTransformer2DModel: transformer.proj_in.lora_A.weight",
    ),
    ("flux", "shapes"): (
        lambda tensors: {key: torch.cat([value, value], 1) if "lora_A" in key else value for key, value in tensors.items()},
        "cannot be loaded: ",
    ),
    ("sd3", "diffusion_model."): (renamed("transformer.", "diffusion_model."), "are not for StableDiffusion3Pipeline"),
    ("sd3", "base_model.model."): (renamed("transformer.", "base_model.model."), "are not for StableDiffusion3Pipeline"),
    ("sd3", ".lora_alpha"): (with_lora_alpha, ".lora_alpha"),
    ("qwenimage", "base_model.model."): (renamed("transformer.", "base_model.model."), "are not for QwenImagePipeline"),
    ("zimage", "base_model.model."): (renamed("transformer.", "base_model.model."), "are not for ZImagePipeline"),
}  # fmt: skip
"""(family, what is wrong): how a good file is spoiled, and what is said."""
RIGHT: dict[tuple[str, str], tuple[Callable[[Tensors], Tensors], float]] = {
    ("flux", "as diffusers saves it"): (lambda tensors: tensors, 1.0),
    ("flux", "kohya's factors"): (
        lambda tensors: {key.replace("lora_A", "lora_down").replace("lora_B", "lora_up"): value for key, value in tensors.items()},
        1.0,
    ),
    ("qwenimage", "diffusion_model."): (renamed("transformer.", "diffusion_model."), 1.0),
    ("zimage", "diffusion_model."): (renamed("transformer.", "diffusion_model."), 1.0),
}  # fmt: skip
ALWAYS = {("flux", "no prefix"), ("flux", "deeper"), ("flux", "a layer too many"), ("flux", "kohya's factors")}
OTHER_MODELS = [("qwenimage", "flux"), ("flux2_klein", "flux"), ("flux", "sd3")]
"""A model, and one that a LoRA was made for."""


def file_of(families: Path, folder: Path, family: str, change: Callable[[Tensors], Tensors]) -> Path:
    build(family, families / family)
    file = fitting_lora(families / family, folder / "style.safetensors", seed=1)
    save_file({key: value.clone() for key, value in change(load_file(file)).items()}, file)
    return file


def attach(file: Path, pipeline: Any) -> PipelineLoras:
    loras = PipelineLoras(read_loras([str(file)]), FAMILIES[type(pipeline).__name__].lora)
    loras.attach(pipeline)
    return loras


@pytest.mark.parametrize(("family", "fault"), rarely(LOST, LOST.keys() - ALWAYS))
def test_a_tensor_without_a_place_is_told(
    pipelines: Callable[[str], Any], families: Path, tmp_path: Path, family: str, fault: str
) -> None:
    change, told = LOST[family, fault]
    with pytest.raises(UserError) as refused:
        attach(file_of(families, tmp_path, family, change), pipelines(family))
    assert told in str(refused.value)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "made_for"), OTHER_MODELS)
def test_a_lora_of_another_model_is_told(
    pipelines: Callable[[str], Any], families: Path, tmp_path: Path, family: str, made_for: str
) -> None:
    file = file_of(families, tmp_path, made_for, lambda tensors: tensors)
    with pytest.raises(UserError, match="It was made for another model"):
        attach(file, pipelines(family))


@pytest.mark.parametrize(("family", "form"), rarely(RIGHT, RIGHT.keys() - ALWAYS))
def test_what_is_right_is_let_through_whole(
    pipelines: Callable[[str], Any], families: Path, tmp_path: Path, family: str, form: str
) -> None:
    change, scale = RIGHT[family, form]
    pipeline = pipelines(family)
    good = fitting_lora(build(family, families / family), tmp_path / "good.safetensors", seed=1)
    loras = attach(file_of(families, tmp_path, family, change), pipeline)
    (told,) = loras.describe().values()
    assert f"{len(load_file(good)) // 2} layers of the transformer" in told
    for key, value in load_file(good).items():
        if "lora_B" in key:
            name = key.removeprefix("transformer.").removesuffix(".lora_B.weight")
            layer = pipeline.transformer.get_submodule(name)
            down, up = layer.lora_A["lora0"].weight, layer.lora_B["lora0"].weight
            want = value @ load_file(good)[key.replace("lora_B", "lora_A")]
            assert torch.allclose(up @ down * layer.scaling["lora0"], want * scale, atol=1e-5), key


def test_each_layers_alpha_counts(pipelines: Callable[[str], Any], families: Path, tmp_path: Path) -> None:
    file = fitting_lora(build("flux", families / "flux"), tmp_path / "x.safetensors", seed=1, rank=4, alpha=1.0)
    pipeline = pipelines("flux")
    attach(file, pipeline)
    scales = {float(module.scaling["lora0"]) for module in pipeline.transformer.modules() if hasattr(module, "scaling")}
    assert scales == {0.25}


def test_ranks_that_hold_another_lora_are_told(pipelines: Callable[[str], Any], families: Path, tmp_path: Path) -> None:
    from types import SimpleNamespace

    file = fitting_lora(build("flux", families / "flux"), tmp_path / "x.safetensors", seed=1)
    loras = attach(file, pipelines("flux"))
    channel: Any = SimpleNamespace(topology=SimpleNamespace(replica_size=2, replica_ranks=[0, 1]))
    channel.all_of_replica = lambda mine: [mine, mine]
    loras.agree(channel)
    channel.all_of_replica = lambda mine: [mine, "40 layers, 0123456789abcdef"]
    with pytest.raises(
        UserError, match=r"hold different LoRAs .rank 0: 40 layers, .*, rank 1: 40 layers, 0123456789abcdef"
    ):
        loras.agree(channel)


def test_a_layer_that_sees_other_rows_than_the_images_is_an_error(
    pipelines: Callable[[str], Any], families: Path, tmp_path: Path
) -> None:
    """Z-Image's embedders get the tokens of all rows as one sequence: there a mixture would be wrong."""
    from dglaunch.data.task import Task

    file = fitting_lora(build("flux", families / "flux"), tmp_path / "x.safetensors", seed=1)
    pipeline = pipelines("flux")
    loras = attach(file, pipeline)
    use = read_loras([str(file)]).all
    loras.use([Task(index=n, prompt="x", seed=n, stem=str(n), lora=use if n else ()) for n in range(2)])
    layer = pipeline.transformer.transformer_blocks[0].attn.to_q
    layer(torch.ones(2, 3, layer.in_features))
    layer(torch.ones(4, 3, layer.in_features))
    with pytest.raises(RuntimeError, match="gets 3 rows for 2 images"):
        layer(torch.ones(3, 3, layer.in_features))
