"""What the API backends share: one request for the samples of one row, several requests at a time, polite retries.

A batch is one request. The run calls `generate` from as many threads as `Facts.workers` says; each thread sends what it
has paid for on its way before it asks for more, so that a killed run loses no more than what was under way.

An adapter (remote_openai, remote_google) says in an `Api` what its API can do, makes the request with the official SDK,
and translates the SDK's errors into a `Trouble`. Input images of an edit come in through `input_images` alone.
"""

import base64
import binascii
import email.utils
import io
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from PIL import Image

from dglaunch.backends import Context, Facts, ItemError, engine
from dglaunch.backends.pace import Brake, Gate, delay, share, sleep
from dglaunch.config import RunConfig
from dglaunch.errors import Drained, MissingPackage, UserError
from dglaunch.flags import environment
from dglaunch.plan import Batch, BatchSize, Bucket
from dglaunch.tasks import ROW_FIELDS, Task
from dglaunch.topology import Topology

LONGEST_RETRY_AFTER_S = 900.0
"""A server that asks for a longer pause than this has a quota by the day: the run stops, and a later start goes on."""
PROBES = 3
SPARE_THREADS = 4
"""One thread more than requests at a time, and one more for each 4: while some write their images, others ask."""
MAX_DOWNLOAD = 1 << 27
SLOW_DOWN = (429, 503, 529)
AGAIN = (408, 409, 425)
STOPS = {
    401: "does not accept the key in {keys}. Correct the variable and start the same command again",
    402: "wants a payment first. Settle it and start the same command again",
    403: "does not let this key use {model}. Ask for access or choose another --model_name",
    404: "has no model {model}, or is not such an API. Correct --model_name, or --api_base",
}
"""Answers that every further request would get as well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """What one API can do with one model; known without a connection."""

    name: str
    package: str
    keys: tuple[str, ...]
    """Variables that may hold the key, the first one that is set counts."""
    fields: frozenset[str]
    """What of ROW_FIELDS can be sent."""
    images_per_request: int
    size: Callable[[int, int], Any] = field(repr=False)
    """Width and height to what the API calls them; a ValueError lists the sizes that it has."""
    max_seed: int = 0


class Trouble(Exception):
    """Why a request has no (whole) answer.

    `again`: worth another try. `slow_down`: the same, and with fewer at a time. `refused`: this item gets no image.
    `stop`: no item will get one.
    """

    def __init__(
        self,
        kind: Literal["again", "slow_down", "refused", "stop"],
        text: str,
        retry_after: float | None = None,
        status: int | None = None,
    ) -> None:
        super().__init__(text)
        self.kind = kind
        self.retry_after = retry_after
        self.status = status


@dataclass(slots=True)
class Answer:
    """One answer: for each task asked for its image's bytes or what happened to it; perhaps fewer than were asked for."""

    parts: list[bytes | Trouble]
    usage: dict[str, float] = field(default_factory=dict)
    """Numbers that the server reports; `cost` is in US dollars."""


# -- before the run -----------------------------------------------------------------------------------------------


def api_of(config: RunConfig) -> Api:
    return engine(config).describe(config.backend.model_name)


def check(config: RunConfig, topology: Topology, tasks: Sequence[Task]) -> None:
    """Raise a UserError for what the API cannot do, before anything is sent."""
    api, remote = api_of(config), config.remote
    ranks = topology.world_size * topology.num_nodes
    if remote.max_global_workers is not None and remote.max_global_workers < ranks:
        raise UserError(
            f"--max_global_workers {remote.max_global_workers} with {ranks} ranks: each needs at least one request at a "
            f"time. Start {remote.max_global_workers} ranks, or allow {ranks}."
        )
    if config.batch_size != "auto" and config.batch_size > api.images_per_request:
        raise UserError(
            f"--batch_size {config.batch_size}: {api.name} makes at most {api.images_per_request} images of one prompt in a "
            "request. Leave the flag out."
        )
    for size in dict.fromkeys((task.width, task.height) for task in tasks):
        _check_size(api, *size)
    for task in tasks:
        _check_fields(api, task)


def _check_size(api: Api, width: int | None, height: int | None) -> None:
    if (width is None) != (height is None):
        raise UserError(f"{api.name} takes width and height together; give both --width and --height, or neither.")
    if width is not None and height is not None:
        try:
            api.size(width, height)
        except ValueError as error:
            raise UserError(f"{width}x{height} is no size of {api.name}. {error}") from None


def _check_fields(api: Api, task: Task) -> None:
    for name in ROW_FIELDS:
        value = getattr(task, name)
        if name != "seed" and value is not None and name not in api.fields:
            raise UserError(
                f"Row {task.index} has {name} {value!r}, but {api.name} takes no {name}. Remove it (the column, or --{name})."
            )
    if api.max_seed and task.seed > api.max_seed:
        raise UserError(f"Row {task.index} has the seed {task.seed}; {api.name} takes seeds up to {api.max_seed}.")


def request_size(config: RunConfig) -> Callable[[Bucket], BatchSize]:
    """How many samples of one row go into one request."""
    api = api_of(config)
    auto = BatchSize(
        api.images_per_request, f"{api.name} makes up to {api.images_per_request} images of a prompt at once"
    )
    size = auto if config.batch_size == "auto" else BatchSize(config.batch_size, "as given")
    return lambda _bucket: size


def reasons(config: RunConfig, topology: Topology) -> dict[str, str]:
    """The automatic choices, for the user to read."""
    api, workers = api_of(config), num_workers(config, topology)
    told = {"requests at a time": f"{workers} on this rank, of {topology.world_size * topology.num_nodes} ranks"}
    if not api.max_seed:
        told["seed"] = f"not sent: {api.name} takes none, so the images cannot be made again alike"
    return told


def num_workers(config: RunConfig, topology: Topology) -> int:
    """Requests at a time of this rank."""
    remote = config.remote
    if remote.max_global_workers is None:
        return remote.num_processes
    return min(remote.num_processes, share(remote.max_global_workers, *_place(topology)))


def _place(topology: Topology) -> tuple[int, int]:
    """This rank among all ranks of the run, those of other nodes included."""
    return topology.node * topology.world_size + topology.rank, topology.world_size * topology.num_nodes


def key_of(api: Api, environ: Mapping[str, str]) -> str:
    """The key, from the environment only."""
    key = next((environ[name].strip() for name in api.keys if environ.get(name, "").strip()), None)
    names = " or ".join(api.keys)
    if key is None:
        raise UserError(f"{api.name} needs a key: set {names} in the environment.")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UserError(
            f"The key in {names} has a character that no key has (a space, a line break, a quote?). Set it again."
        )
    return key


# -- the engine ---------------------------------------------------------------------------------------------------


class RemoteBackend:
    """An engine that asks. An adapter gives `describe`, `connect`, `probe`, `request` and `explain`."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.model = context.config.backend.model_name
        self.settings = context.config.remote
        self.api = self.describe(self.model)
        self.seconds = {"requests": 0.0}
        places = num_workers(context.config, context.topology)
        self.facts = Facts(workers=places + places // SPARE_THREADS + 1, ledger={"seed_sent": self.api.max_seed > 0})
        self.gate = Gate(places, self.facts.events.append)
        part, parts = _place(context.topology)
        max_requests, max_cost = self.settings.max_requests, self.settings.max_cost
        self.brake = Brake(
            None if max_requests is None else share(max_requests, part, parts),
            None if max_cost is None else max_cost / parts,
            self.facts.events.append,
        )
        self.client: Any = None
        self._key = ""
        self._counting = threading.Lock()

    # What an adapter brings.

    @staticmethod
    def describe(model: str) -> Api:
        raise NotImplementedError

    def connect(self, key: str) -> None:
        """Make the SDK's client, without the SDK's own retries."""
        raise NotImplementedError

    def probe(self) -> None:
        """Ask for something that costs nothing and needs the key."""
        raise NotImplementedError

    def request(self, tasks: Sequence[Task]) -> Answer:
        """One request for all samples of one row."""
        raise NotImplementedError

    def explain(self, error: Exception) -> Trouble:
        """What an exception of the SDK means."""
        raise NotImplementedError

    # The contract of an engine.

    def load(self) -> Facts:
        """Connect, and see that the key is accepted before any image is asked for."""
        problem: UserError | None = None
        try:
            self._key = key_of(self.api, environment())
            self._connect()
            self._probe()
        except UserError as error:
            problem = error
        # Keys may differ from machine to machine: all ranks leave together, and rank 0 tells why.
        problem = next((other for other in self.context.channel.all_of_world(problem) if other is not None), None)
        if problem is not None:
            raise problem
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
            except Exception as error:
                trouble = self._explained(error)
            if trouble.status == 401:
                raise self._problem(trouble)
            if trouble.status is not None:
                return
            sleep(delay(attempt, self.settings.retry_delay, None), self.context.should_stop)
        where = f" at {self.settings.api_base}" if self.settings.api_base else ""
        raise UserError(f"{self.api.name} cannot be reached{where}: {trouble}. Check the network and --api_base.")

    def generate(self, batch: Batch) -> Sequence[Image.Image | ItemError | None]:
        """The images of one row. A slot is None where the run was stopped in between: that image stays pending."""
        slots: list[Image.Image | ItemError | None] = [None] * len(batch)
        try:
            self._fill(slots, batch.tasks)
        except (Drained, UserError):
            if all(slot is None for slot in slots):
                raise
        return slots

    def close(self) -> None:
        if self.client is not None:
            self.client.close()

    def _fill(self, slots: list[Image.Image | ItemError | None], tasks: Sequence[Task]) -> None:
        """Ask until each slot has its image or its error; an image that came is not asked for again."""
        attempt = 0
        while left := [n for n, slot in enumerate(slots) if slot is None]:
            made, trouble = self._ask([tasks[n] for n in left])
            for n, part in zip(left, made):
                slots[n] = part
            if trouble is None:
                continue
            if trouble.kind == "refused" or attempt >= self.settings.api_max_retries:
                tries = f" (tried {attempt + 1} times)" if attempt and trouble.kind != "refused" else ""
                slots[:] = [ItemError(f"{trouble}{tries}") if slot is None else slot for slot in slots]
                return
            self._count(retries=1)
            sleep(delay(attempt, self.settings.retry_delay, trouble.retry_after), self.context.should_stop)
            attempt += 1

    def _ask(self, tasks: Sequence[Task]) -> tuple[list[Image.Image | ItemError | None], Trouble | None]:
        """One request: what came of each task, and why some have nothing yet."""
        with self.gate.slot(self.context.should_stop) as started:
            self.brake.take()
            self._count(requests=1)
            try:
                answer = self.request(tasks)
            except Exception as error:
                trouble = self._explained(error)
            else:
                trouble = None
        with self._counting:
            self.seconds["requests"] += time.monotonic() - started
        if trouble is not None:
            self._react(trouble, started)
            return [None] * len(tasks), trouble
        self.gate.went_well()
        self._count(**answer.usage)
        self.brake.paid(answer.usage.get("cost"))
        return self._unpack(answer, len(tasks))

    def _unpack(self, answer: Answer, wanted: int) -> tuple[list[Image.Image | ItemError | None], Trouble | None]:
        made: list[Image.Image | ItemError | None] = []
        trouble = (
            None if len(answer.parts) >= wanted else Trouble("again", f"{len(answer.parts)} of {wanted} images came")
        )
        for part in answer.parts[:wanted]:
            try:
                made.append(picture(part) if isinstance(part, bytes) else _refusal(part))
            except Trouble as damaged:
                made.append(None)
                trouble = damaged
        return made, trouble

    def _react(self, trouble: Trouble, started: float) -> None:
        """What an answer means for the requests to come."""
        if trouble.kind == "stop":
            raise self.brake.fail(self._problem(trouble))
        if trouble.retry_after is not None and trouble.retry_after > LONGEST_RETRY_AFTER_S:
            wait = f"The server asks to wait {trouble.retry_after:,.0f} s ({trouble})"
            raise self.brake.fail(
                UserError(f"{wait}; what came is written. Start the same command again after that time.")
            )
        if trouble.kind == "slow_down":
            self._count(slow_downs=1)
            self.gate.slow_down(started, trouble.retry_after)

    def _explained(self, error: Exception) -> Trouble:
        trouble = error if isinstance(error, Trouble) else self.explain(error)
        trouble.args = (redact(" ".join(str(trouble).split()), self._key),)
        return trouble

    def _problem(self, trouble: Trouble) -> UserError:
        """The end of the run, in one paragraph. What a server says of a key repeats parts of it, so it is left out."""
        said = "" if trouble.status == 401 else f" It says: {trouble}"
        what = STOPS.get(
            trouble.status or 0, "cannot go on. See what it says, and start the same command again"
        ).format(keys=" or ".join(self.api.keys), model=self.model)
        return UserError(f"{self.api.name} {what}.{said}")

    def _count(self, **numbers: float) -> None:
        with self._counting:
            self.facts.usage.update(numbers)


def _refusal(part: Trouble) -> ItemError:
    """The server's word on one of several images; one that may be tried again is raised."""
    if part.kind == "refused":
        return ItemError(str(part))
    raise part


# -- what adapters use --------------------------------------------------------------------------------------------


def input_images(task: Task) -> list[tuple[bytes, str]]:
    """The input images of an edit as (bytes, media type), from `task.images`: PIL images or encoded bytes; [] without."""
    given = getattr(task, "images", None) or ()
    return [_encoded(image) for image in given]


def _encoded(image: "Image.Image | bytes") -> tuple[bytes, str]:
    if isinstance(image, bytes):
        return image, Image.open(io.BytesIO(image)).get_format_mimetype() or "image/png"
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue(), "image/png"


def decode(text: str) -> bytes:
    """base64 that is whole."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Trouble("again", f"the image in the answer is damaged: {error}") from None


def picture(data: bytes) -> Image.Image:
    """The image in full; one that is cut off is trouble now, not a file that cannot be read later."""
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise Trouble("again", f"the image in the answer is damaged: {error}") from None
    return image


def download(address: str, timeout: float) -> bytes:
    """An image that the answer only points to. It is paid for already, so the download has tries of its own."""
    if urlsplit(address).scheme not in ("http", "https"):
        raise Trouble("again", "the answer points to something that is no http address")
    for last in (False, False, True):
        try:
            with urllib.request.urlopen(address, timeout=timeout) as answer:
                return answer.read(MAX_DOWNLOAD)
        except (OSError, ValueError, urllib.error.URLError) as error:
            if last:
                raise Trouble("again", f"the image cannot be fetched from the address in the answer: {error}") from None
        time.sleep(1.0)
    raise AssertionError("the last try returns or raises")


def by_status(status: int, reason: str, headers: Mapping[str, str]) -> Trouble:
    """What an HTTP status means, whichever API sent it."""
    wait = retry_after(headers)
    if status in SLOW_DOWN:
        return Trouble("slow_down", f"HTTP {status}: {reason}", wait, status)
    if status in AGAIN or status >= 500:
        return Trouble("again", f"HTTP {status}: {reason}", wait, status)
    return Trouble("stop" if status in STOPS else "refused", reason, None, status)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait: Retry-After as a number or a date."""
    text = headers.get("retry-after", "").strip()
    try:
        return max(float(text), 0.0)
    except ValueError:
        pass
    try:
        return max(email.utils.parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError):
        return None


def redact(text: str, key: str) -> str:
    """A text without the key, and without what begins like it (servers repeat a key with its middle starred out)."""
    return re.sub(re.escape(key[:8]) + r"[\w*.-]*", "[key]", text)[:2000] if key else text[:2000]


def flat_numbers(report: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of a usage report; nested ones get dotted names."""
    numbers: dict[str, float] = {}
    for name, value in report.items():
        if isinstance(value, Mapping):
            numbers |= flat_numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            numbers[prefix + name] = value
    return numbers
