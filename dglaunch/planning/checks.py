"""What must hold for a job whatever its backend, checked before anything is read or loaded."""

from collections.abc import Mapping

from dglaunch.backends.profiles import Profile
from dglaunch.config import BackendConfig, RunConfig, flags_that
from dglaunch.data.rewriting import Rewriting
from dglaunch.distributed.topology import Topology
from dglaunch.errors import UserError
from dglaunch.output.shards import SHARDS
from dglaunch.planning.idle import given_flags
from dglaunch.system import Machine


def check_flags_of_backend(config: RunConfig, profile: Profile, origins: Mapping[str, str]) -> None:
    """Refuse flags that the chosen backend would not look at.

    Args:
        origins: for each flag where its value came from; a flag that was typed counts even with its default.

    Raises:
        UserError: with the flags.
    """
    name = config.backend.backend
    idle = given_flags(config, origins, flags_that(profile.idle, type(config)))
    if idle:
        flags = ", ".join(f"--{flag}" for flag in idle)
        raise UserError(
            f"With --backend {name} {profile.why_idle}, so {flags} would do nothing. "
            f"Drop {'it' if len(idle) == 1 else 'them'}."
        )
    if profile.needs_model_name and config.backend.model_name == BackendConfig().model_name:
        raise UserError(
            f"--backend {name} needs --model_name: the name of one of the API's models, such as gpt-image-2."
        )


def check_debug(config: RunConfig, topology: Topology, planned: bool) -> None:
    """Refuse --debug on several ranks.

    Raises:
        UserError: with how to start it.
    """
    if config.debug and topology.world_size > 1 and not planned:
        raise UserError(
            "--debug runs in one process; start it without torchrun: python -m dglaunch COMMAND --debug ..."
        )


def check_elsewhere(config: RunConfig, profile: Profile, elsewhere: Machine | None) -> None:
    """Refuse a plan for a GPU of a job that would not run on one.

    Raises:
        UserError: with what to drop.
    """
    if elsewhere is None:
        return
    if not profile.has_estimates:
        raise UserError(
            f"--gpu would do nothing with --backend {config.backend.backend}, which needs no GPU here. Drop it."
        )
    if config.backend.device == "cpu":
        raise UserError(f"--device cpu and --gpu ({elsewhere.name}) exclude each other. Drop one of them.")


def check_store(config: RunConfig, origins: Mapping[str, str]) -> None:
    """Refuse what would do nothing with a store.

    Raises:
        UserError: with what to drop.
    """
    if config.store == "files":
        if given_flags(config, origins, ("shard_size",)):
            raise UserError(
                "--shard_size would do nothing with --store files, which has no shards. Add --store webdataset or --store "
                "parquet, or drop it."
            )
        return
    if given_flags(config, origins, ("files_per_folder",)):
        raise UserError(
            f"--files_per_folder would do nothing with --store {config.store}, which has few files. Drop it; --shard_size says "
            "how large they are."
        )
    if config.store == config.layout:
        raise UserError(
            f"--store {config.store} keeps the images in such shards already ({config.output_dir / SHARDS}), so --layout "
            f"{config.layout} would hold each of them twice. Drop --layout."
        )


def check_rewriting(rewriting: Rewriting, topology: Topology) -> None:
    """Refuse to rewrite prompts on nodes that do not talk to each other: they would share out different prompts.

    Raises:
        UserError: with what to do instead.
    """
    if rewriting.model is not None and topology.num_nodes > 1:
        raise UserError(
            "--rewrite_prompts with --num_nodes: nodes without a rendezvous would each rewrite all prompts, perhaps otherwise. "
            "Start them as one torchrun (--nnodes), or give them the rewritten.jsonl of another job with --rewritten_prompts "
            "alone."
        )
