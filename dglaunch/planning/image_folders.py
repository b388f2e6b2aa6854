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
from dglaunch.output.image_folders import IMAGE_FOLDERS, ImageFolders, recorded
from dglaunch.output.ledger import OutputFolder
from dglaunch.output.lines import is_our_ledger
from dglaunch.planning.pipe import on_all_ranks

_BEGUN = "begun"


def image_folders_of(config: RunConfig, topology: Topology, num_images: int) -> ImageFolders | None:
    """Return how the images of a job are shared out among folders; None: all lie in the output folder itself.

    Raises:
        UserError: the flag says otherwise than the job's first start.
        LostPeer: rank 0 has died.
    """

    if config.store != "files":
        return None

    def look() -> bytes:
        return strict_json.dumps(
            _said_by(OutputFolder(config.output_dir), config.overwrite and not topology.restarted)
        ).encode()

    said = strict_json.loads(on_all_ranks(topology, look))
    samples = config.num_images_per_prompt or 1
    if not isinstance(said, dict) or not said.get(_BEGUN):
        return ImageFolders.chosen(config.files_per_folder, num_images, samples)
    before = ImageFolders.read(said.get(IMAGE_FOLDERS))
    wanted = config.files_per_folder
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


def placed(tasks: Sequence[Task], folders: ImageFolders | None) -> Sequence[Task]:
    """Return tasks of which each has the folder that its image goes to, as the beginning of its name."""
    if folders is None:
        return tasks
    if isinstance(tasks, ManyTasks):
        return tasks.placed(folders.place)
    for task in tasks:
        task.stem = folders.place(task.index, task.stem)
    return tasks
