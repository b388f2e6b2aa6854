"""Which folder each image of a job goes to: as its first start has fixed it, or as --files_per_folder says now.

Rank 0 looks into the output folder, and the others have it from there: it may be on its machine only.
"""

from collections.abc import Sequence

from dglaunch import strict_json
from dglaunch.config import RunConfig
from dglaunch.data.many import ManyTasks
from dglaunch.data.task import Record, Task
from dglaunch.distributed.topology import Topology
from dglaunch.errors import UserError
from dglaunch.output.image_folders import DEFAULT, IMAGE_FOLDERS, ImageFolders, Told, recorded
from dglaunch.output.ledger import OutputFolder
from dglaunch.output.lines import is_our_ledger
from dglaunch.planning.pipe import on_all_ranks

_BEGUN = "begun"


def image_folders_of(config: RunConfig, topology: Topology, num_images: int) -> ImageFolders | None:
    """Return how the images of a job are shared out among folders; None: all lie in the output folder itself. Where run.json is
    lost, the names in the ledgers tell it.

    Raises:
        UserError: the flag says otherwise than the job's first start.
        LostPeer: rank 0 has died.
    """

    if config.store != "files":
        return None

    samples, wanted = config.num_images_per_prompt or 1, config.files_per_folder

    def look() -> bytes:
        folder, anew = OutputFolder(config.output_dir), config.overwrite and not topology.restarted
        said = _said_by(folder, anew)
        if said[_BEGUN] and not folder.all_runs():
            ways = [ImageFolders.chosen(files, num_images, samples) for files in (wanted, DEFAULT) if files]
            told = Told.of(folder.records(), [*filter(None, ways)])
            said |= {IMAGE_FOLDERS: None if told is None else _of_told(told, config, num_images, samples).record}
        return strict_json.dumps(said).encode()

    said = strict_json.loads(on_all_ranks(topology, look))
    if not isinstance(said, dict) or not said.get(_BEGUN):
        return ImageFolders.chosen(config.files_per_folder, num_images, samples)
    before = ImageFolders.read(said.get(IMAGE_FOLDERS))
    if wanted is not None and wanted != (0 if before is None else before.files):
        how = "in one folder" if before is None else f"in folders of {before.files:,}"
        flag = 0 if before is None else before.files
        raise UserError(
            f"{config.output_dir} keeps its images {how} since the job's first start, and --files_per_folder {wanted} is another "
            f"way. Drop the flag (or say {flag}), or choose another --output_dir."
        )
    return before


def _said_by(folder: OutputFolder, anew: bool) -> Record:
    """Whether the job of a folder has begun, and what its run.json says of its folders of images."""
    begun = not anew and any(path.stat().st_size and is_our_ledger(path) for path, _ in folder.ledgers())
    found = recorded(folder) if begun else None
    return {_BEGUN: begun, IMAGE_FOLDERS: None if found is None else found.record}


def _of_told(told: Told, config: RunConfig, num_images: int, samples: int) -> ImageFolders:
    """Of a job without its run.json: the way in which all of its images lie.

    Raises:
        UserError: it is not the one that the flag says, or there are several.
    """
    if told.fitting:
        return told.fitting[0]
    if told.least == told.most and (only := ImageFolders.chosen(told.least * samples, num_images, samples)) is not None:
        return only
    fits = f"{told.least * samples:,} to {told.most * samples:,}" if told.least <= told.most else "what it was"
    raise UserError(
        f"{config.output_dir} has lost its run.json, which said how many images there are in each of its folders, and the names in "
        f"its ledgers leave that open. Say --files_per_folder as at the job's first start (by these names {fits})."
    )


def placed(tasks: Sequence[Task], folders: ImageFolders | None) -> Sequence[Task]:
    """Return tasks of which each has the folder that its image goes to, as the beginning of its name."""
    if folders is None:
        return tasks
    if isinstance(tasks, ManyTasks):
        return tasks.placed(folders.place)
    for task in tasks:
        task.stem = folders.place(task.index, task.stem)
    return tasks
