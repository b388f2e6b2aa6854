"""Batch mode (--api_batch): a run's requests as jobs that the API works off within a day, at half the price.

    order the jobs that are missing -> look at those under way -> one has ended: its answers come one by one -> ...

`arrivals` takes the batches of the run and yields batches as their answers are there; `slots` then has what came for one. So the
loop of the run, its ledger and its failures are the same as ever. What has no answer is ordered again in a further job.

No image is ordered twice, whenever this process dies (output/batch_jobs.py has the record):

1. the record of a job is written, with a random token; then its file is uploaded, and the file's name noted in the record;
2. the job is created with the token, and its name noted.

A record without a file: no job was created. With a file and no name of a job: its order may have arrived. Then the account's list
is searched for the token; if it is not there, again and again for a minute, as a list may show a new job late. Only then
is the file deleted, so that an order that is still on its way finds nothing to do, and the list searched once more;
what is not there by now is ordered anew.
"""

import contextlib
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar

from dglaunch import strict_json
from dglaunch.atomic import temporary_path
from dglaunch.backends.api.answers import MOST_BYTES, STOPS, Answer, RequestError
from dglaunch.backends.api.batch_api import MOST_IMAGES, BatchApi, BatchLimits, SeenJob
from dglaunch.backends.api.limits import delay, doubled, sleep
from dglaunch.backends.api.uploads import Upload
from dglaunch.backends.base import Context, Facts, ItemError, Slot
from dglaunch.config import IDENTITY, IMAGE, settings_that
from dglaunch.data.images import BadImage
from dglaunch.data.task import Batch, Record, Task
from dglaunch.errors import Drained, OutputError, UserError
from dglaunch.output.batch_jobs import API_JOB, BatchJob, Item, forget_settled, open_jobs
from dglaunch.output.ledger import OutputFolder
from dglaunch.output.lines import TaskId
from dglaunch.streams import say

LOOKS = 7
"""Times that the account's list is searched for a job whose order was not answered: within a minute, --retry_delay being 1."""
TELL_EVERY_S = 60.0
LONGEST_LIST = 20_000
"""Jobs of an account's list that are looked through."""
UNSURE = (408, 409, 425)
"""Refusals that do not say that nothing was created."""
Found = TypeVar("Found")


class Asker(Protocol):
    """What batch mode needs of an API's backend."""

    context: Context
    facts: Facts

    def ask(self, question: Callable[[], Found]) -> Found:
        """Ask the server for something that is no image; a RequestError says what the SDK's exception means."""
        ...

    def spool(self, out: BinaryIO, question: Callable[[], None], most: int) -> None:
        """Ask for a file, whose bytes go to `out`."""
        ...

    def inputs_of(self, task: Task) -> tuple[list[Upload], Upload | None]:
        """Return a task's input images and mask; a BadImage says that they are gone."""
        ...

    def take(self, answer: Answer, tasks: Sequence[Task]) -> tuple[list[Slot], RequestError | None]:
        """Count an answer and unpack it: what came of each task, and why some have nothing."""
        ...

    def cleaned(self, text: str) -> str:
        """Return a server's text as one line, without the key."""
        ...

    def count(self, **numbers: float) -> None:
        """Add to the usage of the run."""
        ...

    def may_ask(self) -> None:
        """Count one request; Drained and UserError say that no more may be made."""
        ...

    def final(self, problem: RequestError) -> UserError:
        """Return the end of the run that an answer means."""
        ...


class BatchMode:
    """The jobs of one run. Only one process of a job orders any (batch_checks.py)."""

    def __init__(self, asker: Asker, api: BatchApi, limits: BatchLimits, server: str) -> None:
        self._asker = asker
        self._api = api
        self._limits = limits
        self._server = server
        config = asker.context.config
        self._config = config
        self._settings = config.remote
        self._should_stop = asker.context.should_stop
        self._folder = OutputFolder(config.output_dir)
        self._todo: deque[Batch] = deque()
        """What is to be ordered."""
        self._jobs: list[BatchJob] = []
        """Those under way."""
        self._wanted: dict[str, dict[TaskId, Task]] = {}
        """By token: what this run takes of a job."""
        self._arrived: Mapping[TaskId, Slot] = {}
        """What came for the batch that was yielded last."""
        self._tries: Counter[TaskId] = Counter()
        self._num_failed = 0
        """Jobs that failed as a whole, in a row."""
        self._room = limits.jobs
        """Jobs that may be under way at a time; fewer once the API has refused one."""
        self._orders_no_more = self._settings.api_batch_cancel
        self._final: UserError | None = None
        """What ends the run, once all that there is has been taken."""
        self._told, self._told_at = "", 0.0
        self._num_done: dict[str, int] = {}

    # -- for the backend ------------------------------------------------------------------------------------------

    def arrivals(self, batches: Sequence[Batch]) -> Iterator[Batch]:
        """Yield batches whose answers are there, until each image has come or failed.

        Raises:
            Drained: the run was stopped, or may order no more; the jobs go on.
            UserError: the API said something that no further request can change, or cannot be reached.
            OutputError: a record cannot be written.
        """
        try:
            for batch in self._work(batches):
                if self._should_stop():
                    raise Drained
                yield batch
        except RequestError as problem:
            raise self._lost(problem) from None
        except OSError as error:
            raise OutputError(
                f"{error.filename or self._folder.path} cannot be written: {error.strerror or error}. The batch jobs go on; make "
                "room or restore the folder and start the same command again."
            ) from None
        finally:
            self._tell_of_left()
        if self._final is not None:
            raise self._final
        if self._todo:
            raise Drained

    def _work(self, batches: Sequence[Batch]) -> Iterator[Batch]:
        self._todo.extend(self._take_up(batches))
        if self._settings.api_batch_cancel:
            self._cancel()
        while True:
            yield from self._order()
            if not self._jobs:
                return
            yield from self._collect(*self._wait())

    def slots(self, batch: Batch) -> list[Slot]:
        """Return what came for a batch that `arrivals` has yielded."""
        return [self._arrived[task.id] for task in batch.tasks]

    def close(self) -> None:
        """Once all that came is written: records of jobs that owe nothing go."""
        forget_settled(self._folder)

    # -- what earlier starts have ordered -------------------------------------------------------------------------

    def _take_up(self, batches: Sequence[Batch]) -> list[Batch]:
        """Wait for the jobs of earlier starts; returns what is in none of them."""
        pending = {Item.of(task): task for batch in batches for task in batch.tasks}
        ordered: set[TaskId] = set()
        for job, items in open_jobs(self._folder):
            wanted = {item.id: pending[item] for item in items if item in pending}
            if not wanted and not self._settings.api_batch_cancel:
                self._note(
                    f"Job {job.id or job.token} was ordered for other rows than those of this start; it is left alone"
                )
                continue
            self._refuse_other(job)
            confirmed = job if job.id else self._found_again(job)
            if confirmed is None:
                job.forget(self._folder)
                self._note("A job that an earlier start ordered is not in the account's list; it is ordered anew")
                continue
            ordered |= wanted.keys()
            self._jobs.append(job)
            self._wanted[job.token] = wanted
        rest = [tuple(task for task in batch.tasks if task.id not in ordered) for batch in batches]
        return [Batch(tasks) for tasks in rest if tasks]

    def _is_partial(self, pending: Mapping[Item, Task]) -> bool:
        """Whether the job has images that are not asked for now: rows are filtered, or some are made anew."""
        return self._config.is_partial or any(item.redo for item in pending)

    def _refuse_other(self, job: BatchJob) -> None:
        """A job that was ordered elsewhere, or with other settings, is none of this run's."""
        here = {"backend": self._config.backend.backend, "--api_base": self._server} | self._identity
        there = {"backend": job.backend, "--api_base": job.server} | job.settings
        changed = [
            f"{name}: {there.get(name)!r} -> {here.get(name)!r}"
            for name in sorted(here.keys() | there.keys())
            if here.get(name) != there.get(name)
        ]
        if changed:
            raise UserError(
                f"{self._folder.path} waits for the batch job {job.id or job.token}, which was ordered with other flags "
                f"({'; '.join(changed)}). Start with those, to take what it makes; or with those and --api_batch_cancel, to "
                "give it up."
            )

    @property
    def _identity(self) -> Record:
        return dict(settings_that(IDENTITY | IMAGE, self._config))

    def _found_again(self, job: BatchJob) -> BatchJob | None:
        """A job whose order was not answered, if the API has it: see the module's docstring."""
        for look in range(LOOKS):
            if look:
                sleep(doubled(self._settings.retry_delay, look - 1), self._should_stop)
            if self._adopt(job):
                return job
        with contextlib.suppress(RequestError):  # it may be gone already
            self._asker.ask(lambda: self._api.delete(job.file))
        return job if self._adopt(job) else None

    def _adopt(self, job: BatchJob) -> bool:
        def search() -> SeenJob | None:
            listed = zip(self._api.jobs(), range(LONGEST_LIST))
            return next((seen for seen, _ in listed if seen.token == job.token), None)

        seen = self._patiently(search)
        if seen is not None:
            self._note(f"Job {seen.id} had been ordered although no answer came: it was found in the account's list")
            self._saw(job, seen)
        return seen is not None

    # -- ordering -------------------------------------------------------------------------------------------------

    def _order(self) -> Iterator[Batch]:
        """Order as many jobs as may be under way; yields what cannot be ordered."""
        while self._todo and len(self._jobs) < self._room and self._final is None and not self._orders_no_more:
            with self._temporary() as path:
                job, batches, bad = self._written(path)
                for batch, error in bad:
                    yield self._failed(batch.tasks, str(error))
                if batches:
                    self._send(job, batches, path)

    def _written(self, path: Path) -> tuple[BatchJob, list[Batch], list[tuple[Batch, BadImage]]]:
        """Write the file of the next job, as large as the API takes it."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        job = BatchJob.begun(self._config.backend.backend, self._server, self._identity, now)
        batches: list[Batch] = []
        bad: list[tuple[Batch, BadImage]] = []
        with path.open("wb") as out:
            while self._todo and self._has_room(batches, self._todo[0]):
                batch = self._todo[0]
                try:
                    line = self._line(batch, f"{job.token}-{len(batches)}")
                except BadImage as error:
                    bad.append((self._todo.popleft(), error))
                    continue
                if out.tell() + len(line) > self._limits.num_bytes or not self._may_ask():
                    break
                out.write(line)
                batches.append(self._todo.popleft())
        job.requests = [[Item.of(task) for task in batch.tasks] for batch in batches]
        return job, batches, bad

    def _line(self, batch: Batch, name: str) -> bytes:
        """The line of a job's file that asks for a batch.

        Raises:
            BadImage: an input image is gone, or the line is longer than a file may be.
        """
        images, mask = self._asker.inputs_of(batch.tasks[0])
        line = strict_json.dumps(self._api.line(batch.tasks, images, mask, name), compact=True).encode() + b"\n"
        if len(line) > self._limits.num_bytes:
            raise BadImage(f"its request is {len(line):,} bytes; a batch file holds {self._limits.num_bytes:,}")
        return line

    def _has_room(self, batches: Sequence[Batch], more: Batch) -> bool:
        images = sum(map(len, batches)) + len(more)
        return len(batches) < self._limits.requests and (images <= MOST_IMAGES or not batches)

    def _may_ask(self) -> bool:
        try:
            self._asker.may_ask()
        except Drained:
            self._orders_no_more = True
        except UserError as error:
            self._final = self._final or error
            return False
        return not self._orders_no_more

    def _send(self, job: BatchJob, batches: Sequence[Batch], path: Path) -> None:
        """Upload a job's file and order it."""
        job.write(self._folder)
        job.file = self._patiently(lambda: self._api.upload(path, job.token))
        job.write(self._folder)
        self._wanted[job.token] = {task.id: task for batch in batches for task in batch.tasks}
        if self._created(job):
            self._jobs.append(job)
            self._say(f"ordered batch job {job.id}: {_number(len(batches), 'request')}")
            return
        job.forget(self._folder)
        self._todo.extendleft(reversed(batches))

    def _created(self, job: BatchJob) -> bool:
        """Whether a job could be ordered. If it is not known, the account's list says it."""
        try:
            self._saw(job, self._asker.ask(lambda: _named(self._api.create(job.file, job.token))))
            return True
        except RequestError as problem:
            status = problem.status or 0
            if not 400 <= status < 500 or status in UNSURE:
                if self._found_again(job) is not None:
                    return True
                self._note(
                    f"A job could not be ordered ({problem}), and the account's list does not have it; ordered anew"
                )
            self._refused(problem)
            return False

    def _refused(self, problem: RequestError) -> None:
        """No job was created: fewer at a time, a pause, or the end."""
        if problem.kind in ("stop", "refused"):
            self._final = self._final or self._asker.final(problem)
            return
        if self._jobs and problem.kind == "slow_down":
            self._room = len(self._jobs)  # until one of them ends
            return
        self._pause_after_failure(problem)

    def _pause_after_failure(self, problem: RequestError) -> None:
        """With no job under way of which the end could be waited for."""
        self._num_failed += 1
        if self._num_failed > self._settings.api_max_retries:
            self._final = self._final or self._asker.final(problem)
            return
        pause = delay(self._num_failed - 1, self._settings.retry_delay, problem.retry_after)
        sleep(pause, self._should_stop)

    # -- looking --------------------------------------------------------------------------------------------------

    def _wait(self) -> tuple[BatchJob, SeenJob]:
        """Look at the jobs, ever more seldom, until one has ended."""
        looks = 0
        while True:
            for job in self._jobs:
                seen = self._patiently(lambda job=job: self._api.look(job.id), job)  # type: ignore[misc]  # bound as it is
                self._saw(job, seen)
                if seen.has_ended:
                    return job, seen
            self._tell()
            sleep(doubled(self._settings.retry_delay, looks), self._should_stop)
            looks += 1

    def _saw(self, job: BatchJob, seen: SeenJob) -> None:
        """Note what the API says of a job, where it is something new."""
        self._num_done[job.token] = seen.num_done
        if (job.id, job.state) != (seen.id, seen.state):
            job.id, job.state = seen.id, seen.state
            job.write(self._folder)

    def _cancel(self) -> None:
        """Ask for the end of all jobs; those that have ended in the meantime stay as they are."""
        for job in self._jobs:
            with contextlib.suppress(RequestError):  # it has ended
                self._asker.ask(lambda job=job: self._api.cancel(job.id))  # type: ignore[misc]  # bound as it is
        count = len(self._jobs)
        self._note(
            f"{_number(count, 'batch job')} cancelled; what they had made is taken"
            if count
            else "No batch job was under way"
        )

    # -- collecting -----------------------------------------------------------------------------------------------

    def _collect(self, job: BatchJob, seen: SeenJob) -> Iterator[Batch]:
        """Yield what a job that has ended made and refused; the rest is to be ordered again."""
        wanted = self._wanted[job.token]
        left = dict(wanted)
        why = seen.problem or RequestError("again", f"the batch job ended ({seen.state}) without its answer")
        why.args = (self._asker.cleaned(str(why)),)
        problems: dict[TaskId, RequestError] = {}
        for name in seen.files:
            yield from self._in_file(job, name, left, problems)
        for number, said in seen.problems.items():
            if 0 <= number < len(job.requests) and (
                tasks := [left.pop(i.id) for i in job.requests[number] if i.id in left]
            ):
                yield self._failed(tasks, self._asker.cleaned(said), job)
        again: list[Task] = []
        for task in left.values():
            problem = problems.get(task.id, why)
            if self._is_given_up(task, problem):
                yield self._failed([task], f"{problem} (tried {self._tries[task.id]} times)", job)
            else:
                again.append(task)
        self._end(job, seen, again, is_empty=len(left) == len(wanted))

    def _in_file(
        self, job: BatchJob, name: str, left: dict[TaskId, Task], problems: dict[TaskId, RequestError]
    ) -> Iterator[Batch]:
        """Yield what a file of answers has for the tasks that are left, which are fewer then; the others' problems are noted."""
        with self._temporary() as path:
            if not self._download(job, name, path):
                return
            for tasks, slots, problem in self._answers(job, path, left):
                came = {task.id: slot for task, slot in zip(tasks, slots) if slot is not None}
                if problem is not None:
                    problems |= {task.id: problem for task in tasks if task.id not in came}
                for task_id in came:
                    self._of_job(job, left.pop(task_id))
                if came:
                    self._arrived = came
                    yield Batch(tuple(task for task in tasks if task.id in came))

    def _end(self, job: BatchJob, seen: SeenJob, again: Sequence[Task], is_empty: bool) -> None:
        """A job has given all that it has."""
        owed = {item.id for item in job.items} - self._wanted[job.token].keys()
        strangers = [] if self._is_partial({Item.of(task): task for task in self._wanted[job.token].values()}) else owed
        job.released = sorted({*(task.id for task in again), *strangers})
        job.write(self._folder)
        self._jobs.remove(job)
        self._todo.extend(_as_ordered(job, again))
        self._room = self._limits.jobs
        if not is_empty:
            self._num_failed = 0
        elif again and seen.problem is not None:
            if seen.problem.kind == "stop":
                self._final = self._final or self._asker.final(seen.problem)
            elif self._jobs:
                self._room = len(self._jobs)  # the account's queue may be full: one of them ends first
            else:
                self._pause_after_failure(seen.problem)
        if again and not self._orders_no_more:
            self._say(f"batch job {seen.id} {seen.state}: {_number(len(again), 'image')} asked for again")

    def _is_given_up(self, task: Task, problem: RequestError) -> bool:
        """Whether an image was tried often enough. What ends the run, or was cancelled, is no try."""
        if problem.kind == "stop":
            self._final = self._final or self._asker.final(problem)
            return False
        if self._orders_no_more:
            return False
        self._tries[task.id] += 1
        self._asker.count(retries=1)
        return self._tries[task.id] > self._settings.api_max_retries

    def _answers(
        self, job: BatchJob, path: Path, left: Mapping[TaskId, Task]
    ) -> Iterator[tuple[list[Task], list[Slot], RequestError | None]]:
        """Of each line of a file of answers: the tasks that it is about and this run still wants, what came of them, and why
        some have nothing."""
        names = {f"{job.token}-{number}": request for number, request in enumerate(job.requests)}
        for line in _lines_of(path):
            request = names.get(str(self._api.name_in(line)), [])
            positions = [n for n, item in enumerate(request) if item.id in left]
            tasks = [left[request[n].id] for n in positions]
            if not tasks:
                continue
            try:
                answer = self._asker.ask(lambda line=line, task=tasks[0]: self._api.answer(line, task))  # type: ignore[misc]
                more = answer.parts[len(request) :]
                answer.parts = [answer.parts[n] for n in positions if n < len(answer.parts)] + more
                slots, problem = self._asker.take(answer, tasks)
            except RequestError as refused:
                slots = [ItemError(str(refused)) if refused.kind == "refused" else None] * len(tasks)
                problem = refused
            except UserError as final:  # an image's part said that the run must end
                self._final = self._final or final
                slots, problem = [None] * len(tasks), RequestError("stop", str(final))
            yield tasks, slots + [None] * (len(tasks) - len(slots)), problem

    def _download(self, job: BatchJob, name: str, path: Path) -> bool:
        """Fetch a file of answers; False: the API has it no more."""
        most = sum(map(len, job.requests)) * MOST_BYTES

        def fetch() -> None:
            with path.open("wb") as out:
                self._asker.spool(out, lambda: self._api.download(name), most)

        try:
            self._patiently(fetch)
        except RequestError as problem:
            if problem.status not in (404, 410):
                raise
            self._note(f"The answers of {job.id} are gone ({problem}); what is not here is asked for again")
            return False
        return True

    def _failed(self, tasks: Sequence[Task], said: str, job: BatchJob | None = None) -> Batch:
        self._arrived = {task.id: ItemError(said) for task in tasks}
        if job is not None:
            for task in tasks:
                self._of_job(job, task)
        return Batch(tuple(tasks))

    def _of_job(self, job: BatchJob, task: Task) -> None:
        self._asker.facts.of_task.setdefault(task.id, {})[API_JOB] = job.id

    # -- asking, and telling --------------------------------------------------------------------------------------

    def _patiently(self, question: Callable[[], Found], job: BatchJob | None = None) -> Found:
        """Ask again after trouble, as often as for an image.

        Raises:
            RequestError: in vain.
            UserError: the API does not know the job.
        """
        attempt = 0
        while True:
            try:
                return self._asker.ask(question)
            except RequestError as problem:
                if job is not None and problem.status == 404:
                    raise self._unknown(job, problem) from None
                if problem.kind in ("stop", "refused") or attempt >= self._settings.api_max_retries:
                    raise
                sleep(delay(attempt, self._settings.retry_delay, problem.retry_after), self._should_stop)
            attempt += 1

    def _unknown(self, job: BatchJob, problem: RequestError) -> UserError:
        return UserError(
            f"The API does not know the batch job {job.id}, which {self._folder.path} waits for ({problem}). Was it ordered with "
            f"the key of another account? Set that key and start the same command again. To order its images anew, and pay for "
            f"them again, remove .dglaunch-job-{job.token}.json there."
        )

    def _lost(self, problem: RequestError) -> UserError:
        """A question had no answer, however often it was asked."""
        if problem.kind == "stop" or problem.status in STOPS:
            return self._asker.final(problem)
        return UserError(
            f"The API cannot be asked about its batch jobs: {problem}. Start the same command again later."
        )

    @contextlib.contextmanager
    def _temporary(self) -> Iterator[Path]:
        """A file in the output folder; the next start removes it if this one is killed."""
        path = temporary_path(self._folder.path)
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def _note(self, text: str) -> None:
        self._asker.facts.events.append(text)

    def _tell(self) -> None:
        """A line on how far the jobs are, where that has changed."""
        total = sum(len(job.requests) for job in self._jobs)
        done = sum(self._num_done.get(job.token, 0) for job in self._jobs)
        states = Counter(job.state for job in self._jobs)
        how = ", ".join(f"{count} {state}" for state, count in states.items())
        text = f"{_number(len(self._jobs), 'batch job')} under way ({how}): {done:,} of {total:,} requests answered"
        if text != self._told and time.monotonic() - self._told_at >= (TELL_EVERY_S if self._told else 0.0):
            self._told, self._told_at = text, time.monotonic()
            self._say(text)

    def _tell_of_left(self) -> None:
        if self._jobs:
            self._note(
                f"{_number(len(self._jobs), 'batch job')} under way when this run ended ({', '.join(job.id for job in self._jobs[:5])}); "
                "they go on and are paid for. The same command later takes what they make, on another machine too; with "
                "--api_batch_cancel it cancels them"
            )

    def _say(self, text: str) -> None:
        say(f"{datetime.now():%H:%M:%S} {text}", error=True)


def _named(seen: SeenJob) -> SeenJob:
    """An answer that names no job says nothing of whether there is one."""
    if not seen.id:
        raise RequestError("again", "the answer to the order names no job")
    return seen


def _as_ordered(job: BatchJob, tasks: Sequence[Task]) -> list[Batch]:
    """The samples of one row go together again."""
    left = {task.id: task for task in tasks}
    parts = [tuple(left[item.id] for item in request if item.id in left) for request in job.requests]
    return [Batch(part) for part in parts if part]


def _lines_of(path: Path) -> Iterator[Record]:
    """The lines of a file of answers that are JSON objects; what a server wrote may be anything."""
    with path.open("rb") as data:
        while raw := data.readline(MOST_BYTES):
            try:
                line = strict_json.loads(raw)
            except ValueError:
                continue
            if isinstance(line, dict):
                yield line


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
