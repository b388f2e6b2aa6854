"""Prompts to embeddings before the denoising begins: each distinct prompt once, and then the text encoders are gone.

A pipeline calls its own encode_prompt() in the middle of a call. `TextEncoding` takes that method's place and answers
from the host's memory. What it will be asked for is learnt from the pipeline itself: it is run with the prompts of the
coming batches up to prepare_latents(), the first thing that every pipeline does after its last encode_prompt().

    texts = TextEncoding(pipeline, family.text_outputs, device, load_encoders, run, channel)
    texts.encode(batches)          # as many as the host has memory for; then the text encoders leave
    pipeline.to(device)            # only now: the transformer and the text encoders need not fit together
"""

import hashlib
import inspect
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from dglaunch.backends.diffusers.embedding_cache import EmbeddingCache, Rows
from dglaunch.data.task import Batch, Task
from dglaunch.distributed.channel import Channel
from dglaunch.errors import UserError, is_out_of_memory
from dglaunch.models.families import TextOutput
from dglaunch.system import host_memory

CHUNK = 8
"""Prompts in one forward pass of the text encoders. A smaller chunk is filled up with its last prompt: so every prompt
meets kernels of one shape, and its embedding does not depend on how many others there are to encode."""
ROUND = 4 * CHUNK
"""Distinct prompts (at least) that a rank of a replica encodes before the replica's ranks share theirs."""
GRADUAL_ON = ("cpu",)
"""Devices that the text encoders need not leave for the transformer: there the first image does not wait for the last
prompt, one chunk is encoded whenever a batch needs it."""
HOST_SHARE = 0.25
"""Of the host's memory, for the embeddings of all ranks of a machine (FLUX.1: 4 MiB a prompt)."""
PER_PROMPT = frozenset(f"{sign}prompt{number}" for sign in ("", "negative_") for number in ("", "_2", "_3", "_4"))
"""Arguments of encode_prompt that hold a text for each image."""


class Reached(Exception):
    """The pipeline has encoded its prompts and goes on to the latents."""


class TextEncoding:
    """In the place of a pipeline's encode_prompt()."""

    def __init__(
        self,
        pipeline: Any,
        outputs: tuple[TextOutput, ...],
        device: str,
        load_encoders: Callable[[], dict[str, torch.nn.Module]],
        run: Callable[[Batch], Any],
        channel: Channel,
        cache: EmbeddingCache | None = None,
        budget: float | None = None,
    ) -> None:
        """
        Args:
            outputs: what each of the values of encode_prompt is.
            load_encoders: the pipeline's text encoders by name; called only when a prompt is not in the cache.
            run: calls the pipeline for a batch.
            channel: the ranks of a replica share the work and what comes out of it.
            budget: bytes for the embeddings of this process; default is its part of HOST_SHARE.
        """
        # xfuser's pipelines hold the plain one, and pass on to it what they do not have.
        self.pipeline, self.outputs, self.device = getattr(pipeline, "module", pipeline), outputs, device
        self.load_encoders, self.run, self.channel, self.cache = load_encoders, run, channel, cache
        self.budget = budget if budget is not None else host_memory() * HOST_SHARE / channel.topology.local_world_size
        self.original = self.pipeline.encode_prompt
        self.signature = inspect.signature(self.original)
        self.encoders: dict[str, torch.nn.Module] = {}
        self.known: dict[str, Rows | str] = {}
        """By the digest of all that a prompt's embedding depends on; a str is the error that it ends in."""
        self.fresh: dict[str, Rows | str] = {}
        """What the other ranks of the replica have not been told yet."""
        self.texts: set[tuple[Any, ...]] = set()
        """Of the tasks that are encoded."""
        self.queue: deque[Batch] = deque()
        self.asked: list[str] = []
        """What the pipeline's call under way wanted to know that was not known."""
        self.stored = 0
        """Bytes of what is known."""
        self.num_cached = 0
        self.away: list[torch.nn.Module] = []
        """Networks that left the GPU for the text encoders, to come back after the round."""
        self.pipeline.encode_prompt = self

    # -- ahead of the batches -------------------------------------------------------------------------------------

    def encode(self, batches: Iterable[Batch], should_stop: Callable[[], bool] = lambda: False) -> str:
        """Encode the prompts of these batches in their order, as far as memory allows; returns what was done."""
        self.queue = deque(batches)
        self.budget = min(self.channel.all_of_replica(self.budget))  # its ranks may be on different machines
        self._fill(should_stop)
        size = sum(_num_bytes(rows) for rows in self.known.values()) / 2**20
        cached = f", {self.num_cached:,} of this rank's from the embedding cache" if self.num_cached else ""
        later = f"; those of {len(self.queue):,} more batches in their turn" if self.queue else ""
        prompts = "distinct prompts" if len(self.texts) != 1 else "distinct prompt"
        return f"{len(self.texts):,} {prompts} ahead ({size:,.1f} MiB on the host{cached}){later}"

    def ensure(self, batch: Batch) -> None:
        """Before a batch: if its prompts are not encoded, encode them and coming ones, in the place of those that are known
        if memory is used up."""
        if all(_text(task) in self.texts for task in batch.tasks):
            return
        if self.stored >= self.budget:
            self.known.clear()
            self.texts.clear()
            self.stored = 0
        if batch not in self.queue:
            self.queue.appendleft(batch)
        self._fill(lambda: False)

    def _fill(self, should_stop: Callable[[], bool]) -> None:
        topology, gradual = self.channel.topology, self.device in GRADUAL_ON
        place = topology.rank - topology.replica_ranks[0]
        wanted = (CHUNK if gradual else ROUND) * topology.replica_size
        while self.queue and not should_stop():
            chunks = list(_chunks(self._round(wanted)))
            refused = self._encode_chunks(chunks[place :: topology.replica_size])
            for rows, error in self.channel.all_of_replica((self.fresh, refused)):
                if error is not None:
                    raise UserError(error)
                self.known |= rows
                self.stored += sum(map(_num_bytes, rows.values()))
            self.fresh = {}
            if gradual or self.stored >= self.budget:
                break
        for name in self.encoders:
            setattr(self.pipeline, name, None)  # or pipeline.to(device) would take it along
        if not self.queue:
            self.encoders = {}
        for encoder in self.encoders.values():
            encoder.to("cpu")
        self._empty_cache()
        for part in self.away:
            part.to(self.device)
        self.away = []

    def _round(self, wanted: int) -> list[Task]:
        """Take batches from the queue until so many prompts that are not encoded have come together."""
        tasks: dict[tuple[Any, ...], Task] = {}
        while self.queue and len(tasks) < wanted:
            tasks |= {_text(t): t for t in self.queue.popleft().tasks if _text(t) not in self.texts}
        self.texts |= tasks.keys()
        return list(tasks.values())

    def _encode_chunks(self, chunks: Iterable[Sequence[Task]]) -> str | None:
        """Each together; returns what the user must mend before anything can be encoded."""
        try:
            for tasks in chunks:
                self._encode_chunk(tasks)
        except UserError as error:
            return str(error)
        return None

    def _encode_chunk(self, tasks: Sequence[Task]) -> None:
        """Together, if memory runs out without the other networks, and if that fails for another reason one by one."""
        try:
            if self._fits(tasks) or (self._make_room() and self._fits(tasks)):
                return
        except UserError:
            raise
        except Exception:
            for task in tasks:
                self._encode_alone(task)
            return
        raise UserError(
            f"The text encoders run out of memory on {self.device} with {CHUNK} prompts, although nothing else is there. "
            "Use a GPU with more memory, or a smaller --max_sequence_length."
        )

    def _fits(self, tasks: Sequence[Task]) -> bool:
        """Encode them, unless memory runs out."""
        try:
            self._run_to_latents(tasks)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return False
        return True

    def _make_room(self) -> bool:
        """Take the other networks off the GPU until this round is encoded; False if there are none on it."""
        others = [part for part in self.pipeline.components.values() if part not in self.encoders.values()]
        self.away += [part.to("cpu") for part in others if isinstance(part, torch.nn.Module) and _off_host(part)]
        self._empty_cache()
        return bool(self.away)

    def _empty_cache(self) -> None:
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()

    def _encode_alone(self, task: Task) -> None:
        """An error is kept for the image that asks for the prompt."""
        try:
            self._run_to_latents([task])
        except UserError:
            raise
        except Exception as error:
            told = f"{type(error).__name__}: {error}"
            self._learn({key: told for key in self.asked if key not in self.known})

    def _run_to_latents(self, tasks: Sequence[Task]) -> None:
        self.asked = []
        self.pipeline.prepare_latents = _stop
        try:
            self.run(Batch(tuple(tasks)))
        except Reached:
            pass
        finally:
            del self.pipeline.prepare_latents

    def _learn(self, rows: Mapping[str, Rows | str]) -> None:
        self.known |= rows
        self.fresh |= rows

    # -- inside the pipeline's call -------------------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """encode_prompt's values; what is not known is encoded now."""
        arguments = self.signature.bind(*args, **kwargs).arguments
        given = {name: value for name, value in arguments.items() if value is not None}
        texts = {name: [text] if isinstance(text, str) else text for name, text in given.items() if name in PER_PROMPT}
        number = max(map(len, texts.values()))
        texts = {name: each * number if len(each) == 1 else each for name, each in texts.items()}
        others = {name: value for name, value in given.items() if name not in texts and name not in ("device", "dtype")}
        rows = [{name: each[n] for name, each in texts.items()} for n in range(number)]
        keys = [hashlib.sha256(json.dumps(row | others, sort_keys=True).encode()).hexdigest() for row in rows]
        missing = {key: row for key, row in zip(keys, rows) if key not in self.known}
        self.asked += missing
        if missing and self.cache is not None:
            found = self.cache.read(missing, len(self.outputs))
            self.num_cached += len(found)
            self._learn(found)
            missing = {key: row for key, row in missing.items() if key not in found}
        if missing:
            self._encode(missing, dict(arguments))
        return self._joined([self.known[key] for key in keys])

    def _encode(self, missing: dict[str, dict[str, str]], arguments: dict[str, Any]) -> None:
        """Let the pipeline's own method encode these texts (a row of its arguments for each)."""
        if not self.encoders:
            self.encoders = self.load_encoders()
        for name, encoder in self.encoders.items():
            setattr(self.pipeline, name, encoder.to(self.device))
        rows = list(missing.values())
        rows += [rows[-1]] * (CHUNK - len(rows))
        texts = {name: [row[name] for row in rows] for name in rows[0]}
        split = _split(self.outputs, self.original(**(arguments | texts | {"device": torch.device(self.device)})))
        made = dict(zip(missing, split))
        self._learn(made)
        if self.cache is not None:
            self.cache.write(made)

    def _joined(self, rows: Sequence[Rows | str]) -> tuple[Any, ...]:
        for row in rows:
            if isinstance(row, str):
                raise RuntimeError(f"the prompt could not be encoded: {row}")
        columns = [[None if t is None else t.to(self.device) for t in column] for column in zip(*rows)]
        return tuple(_join(kind, column, columns) for kind, column in zip(self.outputs, columns))


def _stop(*_args: Any, **_kwargs: Any) -> None:
    raise Reached


def _off_host(module: torch.nn.Module) -> bool:
    return any(weight.device.type != "cpu" for weight in module.parameters())


def _text(task: Task) -> tuple[Any, ...]:
    """What decides which texts the pipeline encodes for a task: below a guidance scale it leaves the negative one."""
    return task.prompt, task.negative_prompt, task.guidance_scale


def _chunks(tasks: Iterable[Task]) -> Iterator[list[Task]]:
    """CHUNK tasks that one call of the pipeline can take, the rest of each kind at the end."""
    alike: dict[tuple[Any, ...], list[Task]] = {}
    for task in tasks:
        chunk = alike.setdefault((task.guidance_scale, task.negative_prompt is None), [])
        chunk.append(task)
        if len(chunk) == CHUNK:
            yield list(chunk)
            chunk.clear()
    yield from (chunk for chunk in alike.values() if chunk)


# -- batches of embeddings, and rows of them ----------------------------------------------------------------------


def _split(kinds: Sequence[TextOutput], values: Sequence[Any]) -> list[Rows]:
    """encode_prompt's values to one row for each prompt, on the host."""
    number = next(len(value) for kind, value in zip(kinds, values) if kind != "same" and value is not None)
    mask = next((value for kind, value in zip(kinds, values) if kind == "mask"), None)

    def cut(kind: TextOutput, value: Any, row: int) -> torch.Tensor | None:
        if value is None or len(value) == 0 or kind == "mask":
            return None
        if kind == "same":
            return value.cpu()
        if kind == "list":
            return value[row].cpu().clone()
        part = value[row : row + 1]
        if kind == "padded" and mask is not None:
            part = part[:, : int(mask[row].sum())]
        return part.cpu().clone()

    return [tuple(cut(kind, value, row) for kind, value in zip(kinds, values)) for row in range(number)]


def _join(kind: TextOutput, column: Sequence[torch.Tensor | None], columns: Sequence[Sequence[Any]]) -> Any:
    """One of encode_prompt's values for a batch, from its rows."""
    if kind == "list":
        return [value for value in column if value is not None]
    if kind == "mask":
        lengths = [padded.shape[1] for padded in columns[0]]
        if len(set(lengths)) == 1:
            return None
        mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        return mask.long().to(columns[0][0].device)
    if column[0] is None:
        return None
    if kind == "same":
        return column[0]
    if kind == "padded":
        longest = max(value.shape[1] for value in column)
        column = [torch.nn.functional.pad(value, (0, 0, 0, longest - value.shape[1])) for value in column]
    return torch.cat(column)


def _num_bytes(rows: Rows | str) -> int:
    return 0 if isinstance(rows, str) else sum(value.nbytes for value in rows if value is not None)
