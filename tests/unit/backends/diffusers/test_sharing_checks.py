"""Which families --parallel and --shard are refused for, by name; what they do is in torchrun/test_sharing.py."""

from dataclasses import replace
from pathlib import Path

import pytest

from dglaunch.backends.diffusers.sharing_checks import check_sharing
from dglaunch.config import BackendConfig, OptimizationConfig, ParallelConfig, T2IConfig
from dglaunch.distributed.topology import Topology
from dglaunch.errors import UserError
from dglaunch.models.checkpoint import Checkpoint, resolve
from dglaunch.models.families import FAMILIES, OTHER
from dglaunch.models.optimizations import OPTIMIZATIONS
from dglaunch.models.weight_files import WeightFile
from support.checkpoint_folders import checkpoint_folder, write_json
from support.matrix import refused

WAYS = {"context": ("parallel", "context parallel"), "tensor": ("shard", "tensor parallel"), "fsdp": ("shard", "FSDP")}
"""The flag of each, and its column of the matrix."""
TOPOLOGY = Topology(world_size=2, parallel=ParallelConfig(context_degree=2, shard_degree=2))


def checkpoint(pipeline_class: str) -> Checkpoint:
    family = FAMILIES.get(pipeline_class, OTHER)
    return Checkpoint(
        source="x", pipeline_class=pipeline_class, family=family, defaults={}, transformer={}, local=False
    )


@pytest.mark.parametrize("pipeline_class", [*FAMILIES, "StableDiffusionXLPipeline"])
@pytest.mark.parametrize("way", WAYS)
def test_a_family_that_cannot_be_shared_so_is_refused_by_name(pipeline_class: str, way: str) -> None:
    model, (flag, column) = checkpoint(pipeline_class), WAYS[way]
    config = T2IConfig(prompt="x", backend=BackendConfig(**{flag: way}))  # type: ignore[arg-type]  # of either flag
    if way in model.family.shares:
        check_sharing(model, config, TOPOLOGY, [])
        return
    with pytest.raises(UserError, match=f"--{flag} {way} does not go with .*It goes with Flux, .*Drop it") as caught:
        check_sharing(model, config, TOPOLOGY, [])
    assert (model.family.name if model.family.shares else pipeline_class) in str(caught.value)
    if model.family is not OTHER:
        refused(model.family.name, column, "not measured" if way == "fsdp" else "diffusers has no plan")


def test_what_was_not_measured_beside_it_is_refused() -> None:
    """All that there is but a few that touch nothing of what is shared."""
    model = checkpoint("FluxPipeline")
    for row in OPTIMIZATIONS:
        wanted = OptimizationConfig(**{row.flag: row.value or ("native" if row.flag == "attention_backend" else True)})
        for flag, way in (("shard", "fsdp"), ("parallel", "context")):
            backend = BackendConfig(**{flag: way})  # type: ignore[arg-type]  # of either flag
            config = T2IConfig(prompt="x", backend=backend, optimization=wanted)
            if row.flag in ("enable_vae_slicing", "enable_vae_tiling", "enable_channels_last", "enable_tf32"):
                check_sharing(model, config, TOPOLOGY, [])
                continue
            with pytest.raises(UserError, match=f"--{row.name} does not go with --{flag} {way}: "):
                check_sharing(model, config, TOPOLOGY, [])


def test_weights_that_no_rank_could_read_in_parts_are_refused(tmp_path: Path) -> None:
    """A transformer of its own file would be passed over in silence; packed weights cannot be cut."""
    config = T2IConfig(prompt="x", backend=BackendConfig(shard="fsdp"))
    file = WeightFile(
        flag="transformer", part="transformer", path=tmp_path / "x.safetensors", kind="safetensors", tensors={}, config=None,
        sha256="",
    )  # fmt: skip
    given = replace(checkpoint("FluxPipeline"), weight_files={"transformer": file})
    with pytest.raises(
        UserError, match=r"--transformer .*x\.safetensors does not go with --shard fsdp: .*save_pretrained"
    ):
        check_sharing(given, config, TOPOLOGY, [])
    folder = checkpoint_folder(tmp_path / "model")
    write_json(folder / "transformer/config.json", {"quantization_config": {"quant_method": "bitsandbytes"}})
    with pytest.raises(UserError, match=r"a transformer that bitsandbytes has quantised: .*cannot be cut"):
        check_sharing(resolve(BackendConfig(model_name=str(folder))), config, TOPOLOGY, [])
