"""What each backend says about a job without torch being loaded."""

from collections.abc import Callable

from dglaunch.data.task import Bucket, Task
from dglaunch.models.checkpoint import Checkpoint
from dglaunch.models.editing import STRATEGIES
from dglaunch.planning.batches import default_bucket


def bucket_of(checkpoint: Checkpoint) -> Callable[[Task], Bucket]:
    """What must be equal for a batch that the family computes right: default_bucket's, then the sizes of the inputs,
    then, where a call has one set of images, that set."""
    row = STRATEGIES[checkpoint.pipeline_class]

    def bucket(task: Task) -> Bucket:
        one_set = row.shared_image_batch and not row.equal_size_batch
        same_set = tuple(image.sha256 for image in task.images) if one_set else ()
        return (*default_bucket(task), row.input_sizes(task, checkpoint.defaults), same_set)

    return bucket
