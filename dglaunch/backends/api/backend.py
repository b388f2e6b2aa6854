"""What the API backends share during a run: one request for the samples of one row, several at a time, polite retries.

A batch is one request. The run calls `generate` from as many threads as `Facts.workers` says; each thread sends what it
has paid for on its way before it asks for more, so that a killed run loses no more than what was under way.

A request takes its place among those at a time only while it is on the wire: the hooks of the SDK's HTTP client take it
just before the first byte goes out, and give it back when the last one has come in (of a refusal, and where costs are
counted, when it has been understood). What the SDK does before and after
(building, base64, JSON) is done by threads beyond that number, while others' requests are with the server.

An adapter (openai.py, google.py) says in a `profile.Api` what its API can do, makes the request with the official SDK, and
translates the SDK's errors into a `RequestError`.
"""

import threading
import time
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from typing import Protocol

from dglaunch.backends.api.answers import STOPS, Answer, RequestError, bounded, picture, redact
from dglaunch.backends.api.downloads import Origin, origin_of
from dglaunch.backends.api.limits import ConcurrencyLimiter, SpendLimit, delay, share, sleep
from dglaunch.backends.api.profile import Api, key_of, num_workers, rank_of_all
from dglaunch.backends.api.uploads import Upload, uploads
from dglaunch.backends.base import Context, Facts, ItemError, Slot
from dglaunch.data.images import BadImage
from dglaunch.data.task import Batch, Task
from dglaunch.environment import environment
from dglaunch.errors import Drained, MissingPackage, UserError

LONGEST_RETRY_AFTER_S = 900.0
"""A server that asks for a longer pause than this has a quota by the day: the run stops, and a later start goes on."""
PROBES = 3
SPARE_THREADS = 4
"""One thread more than requests at a time, and one more for each 4: while some work on answers, others ask."""


class Client(Protocol):
    """What is called on the client of any SDK."""

    def close(self) -> None: ...


class HttpUrl(Protocol):
    """What is read of the address of an SDK's request."""

    scheme: str
    host: str
    port: int | None


class HttpRequest(Protocol):
    """What is called on the request of an SDK's HTTP client."""

    url: HttpUrl
    headers: MutableMapping[str, str]

    def read(self) -> bytes: ...


class HttpResponse(Protocol):
    """What is called on its response."""

    iter_bytes: Callable[[], Iterator[bytes]]

    def read(self) -> bytes: ...

    @property
    def is_success(self) -> bool: ...


class _Turn(threading.local):
    """What a thread is doing."""

    asks = False
    """It asks for images, which is counted and limited; the probe at the start is not."""
    since: float | None = None
    """When the request that is on the wire took its place."""
    last: float = 0.0
    """When the one before did."""
    sent: float = 0.0
    """When the request went out, whatever it is for."""


class ApiBackend:
    """A backend that asks an API for images. An adapter gives `describe`, `connect`, `probe`, `request` and `explain`."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.model = context.config.backend.model_name
        self.settings = context.config.remote
        self.output_format = context.config.output_format
        self.api = self.describe(self.model)
        self.seconds = {"requests": 0.0}
        places = num_workers(context.config, context.topology)
        self.facts = Facts(workers=places + places // SPARE_THREADS + 1, ledger={"seed_sent": self.api.max_seed > 0})
        self.limiter = ConcurrencyLimiter(places, self.facts.events.append)
        part, parts = rank_of_all(context.topology)
        max_requests, max_cost = self.settings.max_requests, self.settings.max_cost
        self.spending = SpendLimit(
            None if max_requests is None else share(max_requests, part, parts),
            None if max_cost is None else max_cost / parts,
            self.facts.events.append,
        )
        self.client: Client | None = None
        self.hooks: dict[str, list[Callable[..., None]]] = {"request": [self._before], "response": [self._after]}
        """For the SDK's HTTP client (httpx)."""
        self.origin: Origin = ("", 0)
        """The API's own host and port: where the first request goes."""
        self._turn = _Turn()
        self._key = ""
        self._counting = threading.Lock()

    # What an adapter brings.

    @staticmethod
    def describe(model: str) -> Api:
        """Return what the API can do with a model."""
        raise NotImplementedError

    def connect(self, key: str) -> None:
        """Make the SDK's client, with `self.hooks` in its HTTP client and without the SDK's own retries."""
        raise NotImplementedError

    def probe(self) -> None:
        """Ask for something that costs nothing and needs the key."""
        raise NotImplementedError

    def request(self, tasks: Sequence[Task], images: Sequence[Upload]) -> Answer:
        """Make one request for all samples of one row; `images` are what an edit starts from."""
        raise NotImplementedError

    def explain(self, error: Exception) -> RequestError:
        """Return what an exception of the SDK means."""
        raise NotImplementedError

    # The contract of a backend.

    def load(self) -> Facts:
        """Connect, and see that the key is accepted before any image is asked for."""
        self._key = key_of(self.api, environment())
        self._connect()
        self._probe()
        return self.facts

    def _connect(self) -> None:
        try:
            self.connect(self._key)
        except ImportError:
            raise MissingPackage(self.api.package, self.api.name, "pip install 'dglaunch[api]'") from None

    def _probe(self) -> None:
        """Only a refused key or a server that cannot be reached stop the run here: compatible servers may have nothing
        but images, and a key may be allowed nothing but images."""
        for attempt in range(PROBES):
            try:
                return self.probe()
            except Exception as error:  # whatever an SDK raises; `explain` says what it means
                problem = self._explained(error)
            if problem.status == 401:
                raise self._final_error(problem)
            if problem.status is not None:
                return
            sleep(delay(attempt, self.settings.retry_delay, None), self.context.should_stop)
        where = f" at {self.settings.api_base}" if self.settings.api_base else ""
        raise UserError(f"{self.api.name} cannot be reached{where}: {problem}. Check the network and --api_base.")

    def generate(self, batch: Batch) -> Sequence[Slot]:
        """Return the images of one row. A slot is None where the run was stopped in between: that image stays pending."""
        slots: list[Slot] = [None] * len(batch)
        try:
            images = uploads(batch.tasks[0], self.api.image_formats, self.api.max_image_bytes)
        except BadImage as error:
            return [ItemError(str(error))] * len(batch)
        try:
            self._fill(slots, batch.tasks, images)
        except (Drained, UserError):
            if all(slot is None for slot in slots):
                raise
        return slots

    def close(self) -> None:
        if self.client is not None:
            self.client.close()

    def _fill(self, slots: list[Slot], tasks: Sequence[Task], images: Sequence[Upload]) -> None:
        """Ask until each slot has its image or its error; an image that came is not asked for again."""
        attempt = 0
        while left := [n for n, slot in enumerate(slots) if slot is None]:
            parts, problem = self._ask([tasks[n] for n in left], images)
            for n, part in zip(left, parts):
                slots[n] = part
            if problem is None:
                continue
            if problem.kind == "refused" or attempt >= self.settings.api_max_retries:
                tries = f" (tried {attempt + 1} times)" if attempt and problem.kind != "refused" else ""
                slots[:] = [ItemError(f"{problem}{tries}") if slot is None else slot for slot in slots]
                return
            self._count(retries=1)
            sleep(delay(attempt, self.settings.retry_delay, problem.retry_after), self.context.should_stop)
            attempt += 1

    def _ask(self, tasks: Sequence[Task], images: Sequence[Upload]) -> tuple[list[Slot], RequestError | None]:
        """One request: what came of each task, and why some have nothing yet."""
        self._turn.asks, self._turn.last = True, 0.0
        try:
            answer = self._send(tasks, images)
        except RequestError as problem:
            self._react(problem, self._turn.last)
            return [None] * len(tasks), problem
        finally:
            self._turn.asks = False
            self._leave()
        self.limiter.went_well()
        self._count(**{redact(name, self._key): number for name, number in answer.usage.items()})
        return self._unpack(answer, len(tasks))

    def _send(self, tasks: Sequence[Task], images: Sequence[Upload]) -> Answer:
        """One answer, its cost counted.

        Raises:
            RequestError: whatever the SDK raised.
            Drained, UserError: nothing was sent, and nothing will be.
        """
        try:
            answer = self.request(tasks, images)
        except Drained as stop:
            raise (stop.__cause__ if isinstance(stop.__cause__, UserError) else stop) from None
        except Exception as error:  # as above: around one request, which ends as its items' errors or is sent again
            raise self._explained(error) from None
        assert self._turn.last, "the SDK's HTTP client calls no hooks: nothing would limit the requests at a time"
        self.spending.paid(answer.usage.get("cost"))
        return answer

    def _before(self, request: HttpRequest) -> None:
        """The request is built and about to be sent, in the thread that asks."""
        self._stay(request.url)
        request.headers["accept-encoding"] = "gzip"  # of what else a client may take, a few bytes unpack to gigabytes
        self._turn.sent = time.monotonic()
        if not self._turn.asks:
            return
        request.read()  # a form is in many small parts, which would be sent one by one
        self._turn.since = self._turn.last = self.limiter.enter(self.context.should_stop)
        try:
            self.spending.take()
        except UserError as problem:  # the SDK would make an error of its own out of it
            raise Drained from problem
        self._count(requests=1)
        self._turn.sent = time.monotonic()

    def _stay(self, url: HttpUrl) -> None:
        """A server that sends a request on to another host does not get it there."""
        origin = origin_of(url.scheme, url.host, url.port)
        if not self.origin[0]:
            self.origin = origin
        elif origin[0] != self.origin[0]:
            raise RequestError(
                "refused",
                f"{self.origin[0]} sends the request on to {origin[0]}; if that is right, name that host in --api_base",
            )

    def _after(self, response: HttpResponse) -> None:
        """The head of the answer is here. Who waits may send, unless what this answer says may be against it."""
        pieces, timeout = response.iter_bytes, self.settings.timeout
        response.iter_bytes = lambda: bounded(pieces(), self._turn.sent + timeout, timeout)
        response.read()
        if response.is_success and self.spending.max_cost is None:
            self._leave()
            time.sleep(0)  # lets go of Python's lock: who got the place sends before this answer is taken apart

    def _leave(self) -> None:
        since, self._turn.since = self._turn.since, None
        if since is not None:
            self.limiter.leave()
            with self._counting:
                self.seconds["requests"] += time.monotonic() - since

    def _unpack(self, answer: Answer, wanted: int) -> tuple[list[Slot], RequestError | None]:
        slots: list[Slot] = []
        problem = None
        if len(answer.parts) < wanted:
            problem = RequestError("again", f"{len(answer.parts)} of {wanted} images came")
        for part in answer.parts[:wanted]:
            try:
                if isinstance(part, RequestError):
                    raise part
                slots.append(picture(part, self.output_format))
            except RequestError as error:
                said = self._explained(error)
                slots.append(ItemError(str(said)) if said.kind == "refused" else None)
                problem = problem if said.kind == "refused" else said
        return slots, problem

    def _react(self, problem: RequestError, started: float) -> None:
        """What an answer means for the requests to come."""
        if problem.kind == "stop":
            raise self.spending.fail(self._final_error(problem))
        if problem.retry_after is not None and problem.retry_after > LONGEST_RETRY_AFTER_S:
            wait = f"The server asks to wait {problem.retry_after:,.0f} s ({problem})"
            raise self.spending.fail(
                UserError(f"{wait}; what came is written. Start the same command again after that time.")
            )
        if problem.kind == "slow_down":
            self._count(slow_downs=1)
            self.limiter.slow_down(started, problem.retry_after)

    def _explained(self, error: Exception) -> RequestError:
        ours = _raised_by_a_hook(error)
        problem = ours if ours is not None else self.explain(error)
        problem.args = (redact(" ".join(str(problem).split()), self._key),)
        return problem

    def _final_error(self, problem: RequestError) -> UserError:
        """The end of the run, in one paragraph. What a server says of a key repeats parts of it, so it is left out."""
        said = "" if problem.status == 401 else f" It says: {problem}"
        what = STOPS.get(
            problem.status or 0, "cannot go on. See what it says, and start the same command again"
        ).format(keys=" or ".join(self.api.keys), model=self.model)
        return UserError(f"{self.api.name} {what}.{said}")

    def _count(self, **numbers: float) -> None:
        with self._counting:
            self.facts.usage.update(numbers)


def _raised_by_a_hook(error: BaseException | None) -> RequestError | None:
    """What our own code raised inside of an SDK, which may have made an error of its own out of it."""
    while error is not None and not isinstance(error, RequestError):
        error = error.__cause__ or error.__context__
    return error
