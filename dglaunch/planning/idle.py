"""What was given and does nothing is told: refused where it is a mistake, a line where the images are what was asked for.

found = [*idle_flags(config, origins, profile, tasks, num_points=1), *profile.idle_values(config, target, tasks)]
reasons = settle(found, excused=())
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from dglaunch.backends.profiles import Idle, Profile
from dglaunch.config import ROW, RunConfig, defaults, flags_that, settings
from dglaunch.data.many import kinds_of, sample_counts
from dglaunch.data.task import Task
from dglaunch.errors import UserError
from dglaunch.models.lora import Loras


def given_flags(config: RunConfig, origins: Mapping[str, str], names: Iterable[str]) -> list[str]:
    """Return which of these flags were given; one that was typed counts even with its default.

    Args:
        origins: for each flag where its value came from; {} of a configuration that a program made.
    """
    values, unset = settings(config), defaults(type(config))
    return [name for name in names if values[name] != unset[name] or origins.get(name, "default") != "default"]


def idle_flags(
    config: RunConfig, origins: Mapping[str, str], profile: Profile, tasks: Sequence[Task], num_points: int
) -> Iterator[Idle]:
    """Yield flags that every row overrules, and those that the backend does not look at.

    Args:
        num_points: how many images --grid makes of one; they have one seed.
    """
    for name in given_flags(config, origins, flags_that(ROW, type(config))):
        some = tasks if name == "seed" else kinds_of(tasks)
        if not any(_comes_from_flag(config, name, task, num_points) for task in some):
            yield Idle(name=name, reason="every row has its own")
    counts = sample_counts(tasks) if given_flags(config, origins, ["num_images_per_prompt"]) else None
    if counts is not None and config.num_images_per_prompt not in counts:
        yield Idle(name="num_images_per_prompt", reason="every row has its own")
    for name in given_flags(config, origins, flags_that(profile.unused, type(config))):
        yield Idle(name=name, reason=f"--backend {config.backend.backend} has no model")


def idle_loras(config: RunConfig, loras: Loras, tasks: Sequence[Task]) -> Iterator[Idle]:
    """Yield the LoRAs that no row uses; where some rows only are looked at, others may."""
    used = {use.name for task in kinds_of(tasks) for use in task.lora or ()}
    names = [file.name for file in loras.files if file.name not in used]
    if names and not config.is_partial:
        yield Idle(
            name="lora",
            where=f" ({', '.join(names)})",
            reason="every row says in its column lora which it uses, and none of them does",
            remedy="Drop it, or name it there.",
        )


def _comes_from_flag(config: RunConfig, name: str, task: Task, num_points: int) -> bool:
    """Whether a task has the value that it would have from a flag (or one of its row's that is no other)."""
    if name != "seed":
        return bool(getattr(task, name) == getattr(config, name))
    return task.seed == config.seed + task.index // num_points * (config.num_images_per_prompt or 1) + task.sample


def settle(found: Iterable[Idle], excused: Collection[str] | None) -> dict[str, str]:
    """Return what is to be told, by the names of the values.

    Args:
        excused: names of values that are no mistake, as what was made with them goes on or is made again; None: all.

    Raises:
        UserError: one is a mistake.
    """
    told: dict[str, str] = {}
    for idle in found:
        if idle.remedy and excused is not None and idle.name not in excused:
            raise UserError(idle.mistake)
        told[idle.name] = f"does nothing{idle.where}: {idle.reason}"
    return told
