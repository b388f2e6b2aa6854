"""The functions of `from dglaunch import ...`: a job from a script or a notebook instead of the command line.

They raise what the command would print: see dglaunch.errors. Under torchrun, or in a process that has initialized
torch.distributed, all ranks must call them.
"""

import threading
from collections.abc import Iterator, Mapping

from dglaunch.config import EditingConfig, RunConfig, T2IConfig
from dglaunch.distributed.channel import variables_of_world
from dglaunch.environment import environment
from dglaunch.planning.job import Job, prepare
from dglaunch.run import runner
from dglaunch.run.images import FinishedImage, ImageQueue
from dglaunch.run.result import RunResult
from dglaunch.run.signals import stopping


def t2i(config: T2IConfig) -> RunResult:
    """Make the images of a text-to-image job, or what is missing of them.

    Raises:
        UserError: a mistake in the configuration or its files, with the remedy; no model was loaded.
        DglaunchError: the run broke off; what was written is whole, and the same call goes on.
    """
    return runner.run(_job(config))


def edit(config: EditingConfig) -> RunResult:
    """Edit the images of a table, or those that are missing.

    Raises:
        UserError, DglaunchError: as for t2i.
    """
    return runner.run(_job(config))


def images(config: T2IConfig | EditingConfig) -> "ImageStream":
    """Run a job and iterate over the finished images of this rank's replica while they are written to the folder as usual.

    Raises:
        UserError: a mistake in the configuration or its files; what happens later is raised by the iteration.
    """
    return ImageStream(_job(config))


class ImageStream:
    """An ImageStream runs a job while it is iterated over, once, and has the `result` afterwards.

    It gives each image that this start makes, in the order in which they are finished; not those that failed, or that an
    earlier start has made (`result.rows` has them all). Where several ranks share an image, one of them gets it, and the
    iteration of the others only ends with the run. Leaving the loop early stops the run as a signal does: what is under
    way is finished, and the same call goes on later.
    """

    def __init__(self, job: Job) -> None:
        self.result: RunResult | None = None
        """How the run ended; None while it goes on, and when it raised."""
        self._job = job
        self._stop = threading.Event()
        self._queue = ImageQueue(self._stop)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="run", daemon=True)

    def __iter__(self) -> Iterator[FinishedImage]:
        with stopping(self._stop):
            self._thread.start()
            try:
                yield from self._queue
            finally:
                self._stop.set()  # of use where the caller left the loop
                self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self.result = runner.run(self._job, finished=self._queue, stop=self._stop)
        except BaseException as error:  # handed on to the caller's thread, which raises it
            self._error = error
        finally:
            self._queue.end()


def _job(config: RunConfig) -> Job:
    return prepare(config, {}, _environment())


def _environment() -> Mapping[str, str]:
    """The process's variables; without torchrun's, but in a world that the process has made by itself, those of it."""
    variables = environment()
    return variables if "RANK" in variables else {**variables_of_world(), **variables}
