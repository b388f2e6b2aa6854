"""What the API backends share during a run: one request for the samples of one row, several at a time, polite retries.

A batch is one request. The run calls `generate` from as many threads as `Facts.workers` says; each thread sends what it
has paid for on its way before it asks for more, so that a killed run loses no more than what was under way.

A request takes its place among those at a time only while it is on the wire: the hooks of the SDK's HTTP client take it
just before the first byte goes out, and give it back when the last one has come in (of a refusal, and where costs are
counted, when it has been understood). What the SDK does before and after
(building, base64, JSON) is done by threads beyond that number, while others' requests are with the server.

An adapter (openai.py, google.py) says in a `description.Api` what its API can do, makes the request with the official SDK, and
translates the SDK's errors into a `RequestError`.
"""

import threading
import time
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from typing import TYPE_CHECKING, BinaryIO, Protocol, TypeVar

if TYPE_CHECKING:
    from PIL.Image import Image

    from dglaunch.output.whole_file import WholeFile

from dglaunch import strict_json
from dglaunch.backends.api.answers import STOPS, Answer, Part, RequestError, TooFew, bounded, picture, redact, spool_to
from dglaunch.backends.api.batch_api import LIMITS, BatchApi
from dglaunch.backends.api.batch_mode import BatchMode
from dglaunch.backends.api.costs import Costs
from dglaunch.backends.api.description import Api, addresses_of, api_of, key_of
from dglaunch.backends.api.limits import SpendLimit, delay, share, sleep
from dglaunch.backends.api.profile import num_workers, rank_of_all
from dglaunch.backends.api.servers import Pool, Server
from dglaunch.backends.api.uploads import Upload, mask_of, uploads
from dglaunch.backends.base import Context, Facts, ItemError, Slot
from dglaunch.config import RemoteConfig
from dglaunch.data.images import BadImage
from dglaunch.data.task import Batch, Record, Task
from dglaunch.environment import environment
from dglaunch.errors import Drained, MissingPackage, UserError
from dglaunch.storage.public_web import origin_of

LONGEST_RETRY_AFTER_S = 900.0
"""A server that asks for a longer pause than this has a quota by the day: the run stops, and a later start goes on."""
PROBES = 3
SHOWN_MODELS = 20
KEY_HEADERS = ("authorization", "x-goog-api-key")
Result = TypeVar("Result")
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
    netloc: bytes

    def __init__(self, address: str) -> None: ...


class HttpRequest(Protocol):
    """What is called on the request of an SDK's HTTP client."""

    url: "HttpUrl"
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
    server: Server | None = None
    """The one that this request goes to, once it is chosen; before that, one that must be asked."""
    under_way: bool = False
    """The request was sent to it: what comes now is where it was sent on to."""
    answer: bytes = b""
    """The body of the answer that came last."""
    since: float | None = None
    """When the request that is on the wire took its place."""
    last: float = 0.0
    """When the one before did."""
    sent: float = 0.0
    """When the request went out, whatever it is for."""
    may_cost: float | None = None
    """What the request may cost at the most; None: nobody knows."""
    set_aside: float | None = None
    """What was set aside of --max_cost for the request that is under way; None: none is."""
    spool: tuple[BinaryIO, int] | None = None
    """Where the body of the next answer goes instead of into memory, and how many bytes it may have."""


class ApiBackend:
    """A backend that asks an API for images. An adapter gives `describe`, `connect`, `probe`, `models`, `request`, `explain`."""

    base_variable = ""
    """In which the SDK looks for the address of a compatible server."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.model = context.config.backend.model_name
        self.settings = context.config.remote
        self.output_format = context.config.output_format
        self.api = api_of(context.config)
        self.addresses = addresses_of(context.config)
        self.seconds = {"requests": 0.0}
        places = num_workers(context.config, context.topology)
        at_once = places * max(len(self.addresses), 1)
        self.facts = Facts(workers=at_once + at_once // SPARE_THREADS + 1, ledger={"seed_sent": self.api.max_seed > 0})
        self.pool = Pool(self.addresses, places, self.settings.retry_delay, self.facts.events.append)
        self.costs = Costs(self.api, context.config)
        part, parts = rank_of_all(context.topology)
        max_requests, max_cost = self.settings.max_requests, self.settings.max_cost
        self.spending = SpendLimit(
            None if max_requests is None else share(max_requests, part, parts),
            None if max_cost is None else max_cost / parts,
            self.facts.events.append,
        )
        self.batch_mode: BatchMode | None = None
        """With --api_batch."""
        self.client: Client | None = None
        self.hooks: dict[str, list[Callable[..., None]]] = {"request": [self._before], "response": [self._after]}
        """For the SDK's HTTP client (httpx)."""
        self._noted: set[str] = set()
        self._turn = _Turn()
        self._key = ""
        self._counting = threading.Lock()

    # What an adapter brings.

    @staticmethod
    def describe(model: str, servers: tuple[str, ...] = ()) -> Api:
        """Return what the API can do with a model; `servers` are those that are not the vendor's own."""
        raise NotImplementedError

    @staticmethod
    def takes_credentials(remote: RemoteConfig) -> bool:
        """Return whether it is asked with a project's credentials in place of a key.

        Raises:
            UserError: a project is named, and the API has none.
        """
        if remote.api_project or remote.api_location:
            raise UserError("--api_project and --api_location are Vertex AI's, with --backend google_genai. Drop them.")
        return False

    def connect(self, key: str) -> None:
        """Make the SDK's client, with `self.hooks` in its HTTP client and without the SDK's own retries."""
        raise NotImplementedError

    def probe(self) -> None:
        """Ask for something that costs nothing and needs the key."""
        raise NotImplementedError

    def models(self) -> list[str]:
        """Ask for the names of the models that there are."""
        raise NotImplementedError

    def request(self, tasks: Sequence[Task], images: Sequence[Upload], mask: Upload | None) -> Answer:
        """Make one request for all samples of one row; `images` are what an edit starts from."""
        raise NotImplementedError

    def explain(self, error: Exception) -> RequestError:
        """Return what an exception of the SDK means."""
        raise NotImplementedError

    def batches(self) -> BatchApi:
        """Return its batch API, once it is connected."""
        raise NotImplementedError

    # The contract of a backend.

    def load(self) -> Facts:
        """Connect, and see that the key is accepted before any image is asked for."""
        self._key = key_of(self.api, environment())
        self._connect()
        self._probe()
        if self.settings.api_batch:
            limits = LIMITS[self.context.config.backend.backend]
            self.batch_mode = BatchMode(self, self.batches(), limits, self.pool.first.base)
            self.facts.order, self.facts.workers = self.batch_mode.arrivals, 1
        return self.facts

    def _connect(self) -> None:
        try:
            self.connect(self._key)
        except ImportError:
            raise MissingPackage(self.api.package, self.api.name, "pip install 'dglaunch[api]'") from None

    @property
    def first_base(self) -> str | None:
        """The address that the SDK's client is made with; None for its own."""
        return self.pool.first.base or None

    @property
    def server(self) -> Server:
        """The one that this thread's request went to."""
        assert self._turn.server is not None, "no request was made"
        return self._turn.server

    def as_it_came(self) -> object:
        """The JSON of the answer to this thread's request: an SDK leaves out what it does not know, such as why there is no
        image. None if it is no JSON."""
        try:
            return strict_json.loads(self._turn.answer)
        except ValueError:
            return None

    def _probe(self) -> None:
        """Ask each server once; those that cannot be reached are set aside while there is another."""
        lost = [problem for server in self.pool.servers if (problem := self._probe_one(server)) is not None]
        if len(lost) == len(self.pool.servers):
            where = f" at {', '.join(self.addresses)}" if self.addresses else ""
            raise UserError(f"{self.api.name} cannot be reached{where}: {lost[0]}. Check the network and --api_base.")

    def _probe_one(self, server: Server) -> RequestError | None:
        """Only a refused key or a server that cannot be reached stop the run here: compatible servers may have nothing
        but images, and a key may be allowed nothing but images. Returns why it cannot be reached."""
        for attempt in range(PROBES):
            try:
                self._aside(server, self.probe)
                return None
            except Exception as error:  # whatever an SDK raises; `explain` says what it means
                problem = self._explained(error)
            if problem.status == 401 or (problem.kind == "stop" and problem.status is None):
                raise self._final_error(problem)
            if problem.status is not None:
                return None
            sleep(delay(attempt, self.settings.retry_delay, None), self.context.should_stop)
        self.pool.fails(server, time.monotonic(), str(problem))
        return problem

    def _aside(self, server: Server, ask: Callable[[], Result]) -> Result:
        """Ask one server for something that is no image, and is not counted."""
        self._turn.server, self._turn.under_way = server, False
        return ask()

    def generate(self, batch: Batch) -> Sequence[Slot]:
        """Return the images of one row. A slot is None where the run was stopped in between: that image stays pending."""
        if self.batch_mode is not None:
            return self.batch_mode.slots(batch)
        slots: list[Slot] = [None] * len(batch)
        try:
            images, mask = self.inputs_of(batch.tasks[0])
        except BadImage as error:
            return [ItemError(str(error))] * len(batch)
        try:
            self._fill(slots, batch.tasks, images, mask)
        except (Drained, UserError):
            if all(slot is None for slot in slots):
                raise
        return slots

    def close(self) -> None:
        if self.batch_mode is not None:
            self.batch_mode.close()
        if self.client is not None:
            self.client.close()

    # What batch mode asks of it (batch_mode.Asker).

    def ask(self, question: Callable[[], Result]) -> Result:
        try:
            return self._aside(self.pool.first, question)
        except Exception as error:  # as of one request for images
            raise self._explained(error) from None

    def spool(self, out: BinaryIO, question: Callable[[], None], most: int) -> None:
        self._turn.spool = out, most
        try:
            question()
        finally:
            self._turn.spool = None

    def inputs_of(self, task: Task) -> tuple[list[Upload], Upload | None]:
        return uploads(task, self.api.model.image_formats, self.api.model.max_image_bytes), mask_of(task)

    def take(self, answer: Answer, tasks: Sequence[Task]) -> tuple[list[Slot], RequestError | None]:
        self._price(answer)
        self._count(**{redact(name, self._key): number for name, number in answer.usage.items()})
        return self._unpack(answer, tasks)

    def may_ask(self) -> None:
        self.spending.settle(self.spending.take(None, self.context.should_stop), 0.0, answered=False)
        self._count(requests=1)

    def cleaned(self, text: str) -> str:
        return redact(" ".join(text.split()), self._key)

    def count(self, **numbers: float) -> None:
        self._count(**numbers)

    def final(self, problem: RequestError) -> UserError:
        return self._final_error(problem)

    # One request after the other.

    def _fill(self, slots: list[Slot], tasks: Sequence[Task], images: Sequence[Upload], mask: Upload | None) -> None:
        """Ask until each slot has its image or its error; an image that came is not asked for again."""
        attempt = 0
        while left := [n for n, slot in enumerate(slots) if slot is None]:
            parts, problem = self._ask([tasks[n] for n in left], images, mask)
            for n, part in zip(left, parts):
                slots[n] = part
            if problem is None or (isinstance(problem, TooFew) and any(part is not None for part in parts)):
                continue  # it is asked for the rest: no try has failed
            if problem.kind == "refused" or attempt >= self.settings.api_max_retries:
                tries = f" (tried {attempt + 1} times)" if attempt and problem.kind != "refused" else ""
                slots[:] = [ItemError(f"{problem}{tries}") if slot is None else slot for slot in slots]
                return
            self._count(retries=1)
            if not (self.pool.has_several and (problem.lost or problem.kind == "slow_down")):  # another server is free
                sleep(delay(attempt, self.settings.retry_delay, problem.retry_after), self.context.should_stop)
            attempt += 1

    def _ask(
        self, tasks: Sequence[Task], images: Sequence[Upload], mask: Upload | None
    ) -> tuple[list[Slot], RequestError | None]:
        """One request: what came of each task, and why some have nothing yet."""
        turn = self._turn
        turn.asks, turn.last, turn.server, turn.under_way = True, 0.0, None, False
        turn.may_cost, turn.set_aside = self._may_cost(tasks), None
        failed: RequestError | None = None
        try:
            answer = self._send(tasks, images, mask)
        except RequestError as problem:
            failed = problem
        finally:
            self._give_up_money(failed)
            turn.asks, turn.answer = False, b""
            self._leave()
        if failed is not None:
            self._react(failed, turn.last)
            return [None] * len(tasks), failed
        self.pool.works(self.server)
        return self.take(answer, tasks)

    def _may_cost(self, tasks: Sequence[Task]) -> float | None:
        """What a request for these images may cost at the most; None if nobody knows."""
        known = [self.costs.of(task) for task in tasks]
        most = [dollars.most for dollars in known if dollars is not None and dollars.most is not None]
        return sum(most) if len(most) == len(tasks) else None

    def _pay(self, answer: Answer) -> None:
        """Count what an answer cost; a request that was not counted beforehand is no request of ours."""
        cost, set_aside = self._price(answer), self._turn.set_aside
        assert set_aside is not None, "the SDK's HTTP client calls no hooks: nothing would limit the requests at a time"
        if cost is None and any(not isinstance(part.image, RequestError) for part in answer.parts):
            self.spending.uncounted()
        self._turn.set_aside = None
        self.spending.settle(set_aside, cost or 0.0, answered=cost is not None)

    def _price(self, answer: Answer) -> float | None:
        """What an answer cost, which it says from now on together with its usage; None if nobody knows."""
        cost = self.costs.paid(answer.usage)
        if cost is not None:
            answer.usage["cost"] = cost
            for part in answer.parts:
                part.cost = cost / len(answer.parts)
        return cost

    def _give_up_money(self, failed: RequestError | None) -> None:
        """What was set aside for a request that brought no answer is free again, unless it was billed perhaps."""
        set_aside, self._turn.set_aside = self._turn.set_aside, None
        if set_aside is None:
            return
        is_lost = failed is not None and failed.may_be_billed
        lost = (self._turn.may_cost if self._turn.may_cost is not None else set_aside) if is_lost else 0.0
        self.spending.settle(set_aside, lost, answered=False)
        if lost:
            self._count(cost_of_lost_answers=lost)

    def _send(self, tasks: Sequence[Task], images: Sequence[Upload], mask: Upload | None) -> Answer:
        """One answer, its cost counted.

        Raises:
            RequestError: whatever the SDK raised.
            Drained, UserError: nothing was sent, and nothing will be.
        """
        try:
            answer = self.request(tasks, images, mask)
        except Drained as stop:
            raise (stop.__cause__ if isinstance(stop.__cause__, UserError) else stop) from None
        except Exception as error:  # as above: around one request, which ends as its items' errors or is sent again
            raise self._explained(error) from None
        self._pay(answer)
        return answer

    def _before(self, request: HttpRequest) -> None:
        """The request is built and about to be sent, in the thread that asks."""
        turn = self._turn
        if turn.under_way:
            self._stay(self.server, request.url)
        request.headers["accept-encoding"] = "gzip"  # of what else a client may take, a few bytes unpack to gigabytes
        if turn.asks and not turn.under_way:
            self._take_place(request)
        if not turn.under_way:
            turn.under_way = True
            self._direct(request)
        turn.sent = time.monotonic()

    def _take_place(self, request: HttpRequest) -> None:
        request.read()  # a form is in many small parts, which would be sent one by one
        turn = self._turn
        turn.server, turn.since = self.pool.enter(self.context.should_stop)
        turn.last = turn.since
        try:
            turn.set_aside = self.spending.take(turn.may_cost, self.context.should_stop)
        except UserError as problem:  # the SDK would make an error of its own out of it
            raise Drained from problem
        self._count(requests=1)

    def _direct(self, request: HttpRequest) -> None:
        """Send a request, which the SDK has built for the first server, to the one that was chosen."""
        server, url = self.server, request.url
        if server is not self.pool.first:
            url = request.url = type(url)(server.rebased(str(url), self.pool.first))
            request.headers["host"] = url.netloc.decode("ascii")
        if (
            not self._key and not self.api.by_credentials
        ):  # the SDK sends a word in place of a key that there is none of
            for name in KEY_HEADERS:
                request.headers.pop(name, None)
        if not server.origin[0]:
            server.origin = origin_of(url.scheme, url.host, url.port)

    def _stay(self, server: Server, url: HttpUrl) -> None:
        """A server that sends a request on to another host does not get it there."""
        origin = origin_of(url.scheme, url.host, url.port)
        if origin[0] != server.origin[0]:
            raise RequestError(
                "refused",
                f"{server.origin[0]} sends the request on to {origin[0]}; if that is right, name that host in --api_base",
                unbilled=True,
            )

    def _after(self, response: HttpResponse) -> None:
        """The head of the answer is here. Who waits may send, unless what this answer says may be against it."""
        pieces, timeout = response.iter_bytes, self.settings.timeout
        if self._turn.spool is not None and response.is_success:
            spool_to(*self._turn.spool, pieces())
            response.iter_bytes = lambda: iter(())
        else:
            response.iter_bytes = lambda: bounded(pieces(), self._turn.sent + timeout, timeout)
        self._turn.answer = response.read()
        if response.is_success and self.spending.max_cost is None:
            self._leave()
            time.sleep(0)  # lets go of Python's lock: who got the place sends before this answer is taken apart

    def _leave(self) -> None:
        since, self._turn.since = self._turn.since, None
        if since is not None:
            self.server.limiter.leave()
            with self._counting:
                self.seconds["requests"] += time.monotonic() - since

    def _unpack(self, answer: Answer, tasks: Sequence[Task]) -> tuple[list[Slot], RequestError | None]:
        slots: list[Slot] = []
        problem: RequestError | None = None
        if len(answer.parts) < len(tasks):
            problem = TooFew(len(answer.parts), len(tasks))
        if len(answer.parts) > len(tasks):
            self._count(surplus_images=len(answer.parts) - len(tasks))
            self._note_once(
                f"the server sent {len(answer.parts)} images where {len(tasks)} was asked for; the rest is left out"
            )
        for task, part in zip(tasks, answer.parts):
            try:
                slots.append(self._picture(part, task))
            except RequestError as error:
                said = self._explained(error)
                slots.append(ItemError(str(said)) if said.kind == "refused" else None)
                if said.kind == "stop":
                    raise self._stopped(said) from None
                problem = problem if said.kind == "refused" else said
        return slots, problem

    def _picture(self, part: Part, task: Task) -> "Image | WholeFile":
        """An image that came, and what the ledger says of it."""
        if isinstance(part.image, RequestError):
            raise part.image
        image = picture(part.image, self.output_format)
        if self.output_format == "jpg" and getattr(image, "has_transparency_data", False):
            self._note_once(
                "images came with transparency; a JPEG has none, so they stand on white (--output_format png)"
            )
        told: Record = {name: redact(str(text), self._key) for name, text in part.told.items()}
        server: Record = {"api_server": self.server.base} if self.addresses else {}
        paid: Record = {} if part.cost is None else {"cost_usd": round(part.cost, 6)}
        if told or server or paid:
            self.facts.of_task[task.id] = told | server | paid
        return image

    def _note_once(self, text: str) -> None:
        with self._counting:
            if text not in self._noted:
                self._noted.add(text)
                self.facts.events.append(text)

    def _react(self, problem: RequestError, started: float) -> None:
        """What an answer means for the requests to come."""
        if problem.kind == "stop":
            raise self._stopped(problem)
        if problem.retry_after is not None and problem.retry_after > LONGEST_RETRY_AFTER_S:
            wait = f"The server asks to wait {problem.retry_after:,.0f} s ({problem})"
            raise self.spending.fail(
                UserError(f"{wait}; what came is written. Start the same command again after that time.")
            )
        if problem.kind == "slow_down":
            self._count(slow_downs=1)
            self.server.limiter.slow_down(started, problem.retry_after)
        if problem.lost and self._turn.server is not None:
            self.pool.fails(self.server, started, str(problem))

    def _explained(self, error: Exception) -> RequestError:
        ours = _raised_by_a_hook(error)
        problem = ours if ours is not None else self.explain(error)
        problem.args = (self.cleaned(str(problem)),)
        return problem

    def _stopped(self, problem: RequestError) -> UserError:
        """The end of the run, for this thread and the others. No further request is sent while the server is asked what it has."""
        final = self._final_error(problem)
        first = self.spending.fail(final)
        if first is final and problem.status == 404 and (listed := self._listed()):
            first.args = (f"{first}{'' if str(first).endswith('.') else '.'} It has {', '.join(listed)}.",)
        return first

    def _final_error(self, problem: RequestError) -> UserError:
        """The end of the run, in one paragraph. What a server says of a key repeats parts of it, so it is left out."""
        said = "" if problem.status == 401 else f" It says: {problem}"
        server = f" at {self.server.base}" if self.addresses and self._turn.server is not None else ""
        keys = " or ".join(self.api.keys)
        what = STOPS.get(problem.status or 0, "cannot go on. See what it says, and start the same command again")
        if problem.status == 401 and not self._key:
            what = "wants a key. Set {keys} in the environment and start the same command again"
        return UserError(f"{self.api.name}{server} {what.format(keys=keys, model=self.model)}.{said}")

    def _listed(self) -> list[str]:
        """The models that the server says that it has; none where it does not say."""
        try:
            names = self._aside(self.server, self.models)
        except Exception:  # whatever an SDK raises: this only adds to an error that is told anyway
            return []
        return [redact(name, self._key) for name in names[:SHOWN_MODELS]]

    def _count(self, **numbers: float) -> None:
        with self._counting:
            self.facts.usage.update(numbers)


def _raised_by_a_hook(error: BaseException | None) -> RequestError | None:
    """What our own code raised inside of an SDK, which may have made an error of its own out of it."""
    while error is not None and not isinstance(error, RequestError):
        error = error.__cause__ or error.__context__
    return error
