"""Prompts to embeddings before the denoising begins: each distinct prompt once, and then the text encoders are gone.

A pipeline calls its own encode_prompt() in the middle of a call. A `PromptInterception` takes that method's place and
answers from the host's memory. What it will be asked for is learned from the pipeline itself: it is run with the prompts
of the coming batches up to its latents.

    encoder = PromptEncoder(PromptInterception(pipeline, family.text_outputs, encoders), run, channel)
    encoder.encode(batches)        # as many as the host has memory for; then the text encoders leave
    pipeline.to(device)            # only now: the transformer and the text encoders need not fit together
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from dglaunch.backends.diffusers.loras import Combination
from dglaunch.backends.diffusers.prompt_interception import CHUNK, PromptInterception
from dglaunch.backends.diffusers.prompt_tensors import Embedding, num_bytes
from dglaunch.data.task import Batch, Task
from dglaunch.distributed.channel import Channel
from dglaunch.errors import UserError, is_out_of_memory
from dglaunch.system import host_memory

ROUND = 4 * CHUNK
"""Distinct prompts (at least) that a rank of a replica encodes before the replica's ranks share theirs."""
GRADUAL_ON = ("cpu",)
"""Devices that the text encoders need not leave for the transformer: there the first image does not wait for the last
prompt, one chunk is encoded whenever a batch needs it."""
HOST_SHARE = 0.25
"""Of the host's memory, for the embeddings of all ranks of a machine (FLUX.1: 4 MiB a prompt)."""

Texts = tuple[str, str | None, float | None, Combination]
"""What decides which texts a pipeline encodes for a task, and with which LoRAs in the text encoders."""
Shared = tuple[dict[str, Embedding | str], str | None]
"""What a rank has encoded in a round, and what the user must correct before anything can be encoded."""


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why prompts could not be encoded; the error itself is gone, for its traceback holds tensors."""

    message: str
    out_of_memory: bool


class PromptEncoder:
    """A prompt encoder decides which prompts are encoded when, and shares the work over the ranks of a replica."""

    def __init__(
        self,
        prompts: PromptInterception,
        run: Callable[[Batch], object],
        channel: Channel,
        budget: float | None = None,
        together: bool = False,
    ) -> None:
        """
        Args:
            run: calls the pipeline for a batch.
            channel: the ranks of a replica share the work and what comes out of it.
            budget: bytes for the embeddings of this process; default is its part of HOST_SHARE.
            together: whether every rank of a replica encodes all of its prompts, as they hold the text encoders together.
        """
        self.together = together
        self.prompts, self.run, self.channel = prompts, run, channel
        self.budget = budget if budget is not None else host_memory() * HOST_SHARE / channel.topology.local_world_size
        self.encoded: set[Texts] = set()
        """Of the tasks whose prompts are encoded."""
        self.queue: deque[Batch] = deque()
        self.stored = 0
        """Bytes of the embeddings that are known."""

    def encode(self, batches: Iterable[Batch], should_stop: Callable[[], bool] = lambda: False) -> str:
        """Encode the prompts of these batches in their order, as far as memory allows; returns what was done."""
        self.queue = deque(batches)
        self.budget = min(self.channel.all_of_replica(self.budget))  # its ranks may be on different machines
        self._encode_rounds(should_stop)
        size = sum(map(_size, self.prompts.known.values())) / 2**20
        num_cached, count = self.prompts.num_cached, len(self.encoded)
        cached = f", {num_cached:,} of this rank's from the embedding cache" if num_cached else ""
        later = f"; those of {len(self.queue):,} more batches in their turn" if self.queue else ""
        noun = "distinct prompts" if count != 1 else "distinct prompt"
        return f"{count:,} {noun} ahead ({size:,.1f} MiB on the host{cached}){later}"

    @property
    def seconds_to_come_back(self) -> float:
        """What it takes to load the text encoders once more, where they have left for good."""
        return 0.0 if self.queue else self.prompts.encoders.load_seconds

    def ensure(self, batch: Batch, coming: Sequence[Batch] = ()) -> None:
        """Before a batch: if its prompts are not encoded, encode them and coming ones, in the place of those that are
        known if memory is used up.

        Args:
            coming: batches that follow and are in no share of this replica.
        """
        if all(self._texts(task) in self.encoded for task in batch.tasks):
            return
        if self.stored >= self.budget:
            self.prompts.known.clear()
            self.encoded.clear()
            self.stored = 0
        if batch not in self.queue:
            self.queue.extendleft([*reversed(coming), batch])
        self._encode_rounds(lambda: False)

    # -- rounds, of all ranks of a replica --------------------------------------------------------------------------

    def _encode_rounds(self, should_stop: Callable[[], bool]) -> None:
        """Round after round: each rank encodes its part of a round's prompts, and all of them know them afterwards."""
        topology, gradual = self.channel.topology, self.prompts.encoders.device in GRADUAL_ON
        first = topology.rank - topology.replica_ranks[0]
        wanted = (CHUNK if gradual else ROUND) * (1 if self.together else topology.replica_size)
        while self.queue and not should_stop():
            chunks = list(self._chunks(self._take_round(wanted)))
            if self.together:
                for chunk in chunks:  # after each the ranks hear what went wrong on one of them
                    self._share(self._encode_chunks([chunk]))
            else:
                self._share(self._encode_chunks(chunks[first :: topology.replica_size]))
            if gradual or self.stored >= self.budget:
                break
        self.prompts.encoders.detach(needed_again=bool(self.queue))

    def _take_round(self, wanted: int) -> list[Task]:
        """Take batches from the queue until so many prompts that are not encoded have come together."""
        tasks: dict[Texts, Task] = {}
        while self.queue and len(tasks) < wanted:
            found = {self._texts(task): task for task in self.queue.popleft().tasks}
            tasks |= {texts: task for texts, task in found.items() if texts not in self.encoded}
        self.encoded |= tasks.keys()
        return list(tasks.values())

    def _share(self, problem: str | None) -> None:
        """Give the other ranks of the replica what this one has encoded, and take what they have."""
        everyone: list[Shared] = self.channel.all_of_replica((self.prompts.fresh, problem))
        for embeddings, error in everyone:
            if error is not None:
                raise UserError(error)
            self.prompts.known |= embeddings
            self.stored += sum(map(_size, embeddings.values()))
        self.prompts.fresh = {}

    def _texts(self, task: Task) -> Texts:
        """Below a guidance scale a pipeline leaves the negative prompt."""
        return task.text, task.negative_prompt, task.guidance_scale, self.prompts.loras.encoder_part(task)

    def _chunks(self, tasks: Iterable[Task]) -> Iterator[list[Task]]:
        """CHUNK tasks that one call of the pipeline can take, the rest of each kind at the end."""
        alike: dict[tuple[float | None, bool, Combination], list[Task]] = {}
        for task in tasks:
            _, negative, guidance, uses = self._texts(task)
            chunk = alike.setdefault((guidance, negative is None, uses), [])
            chunk.append(task)
            if len(chunk) == CHUNK:
                yield list(chunk)
                chunk.clear()
        yield from (chunk for chunk in alike.values() if chunk)

    # -- chunks, on this rank ---------------------------------------------------------------------------------------

    def _encode_chunks(self, chunks: Iterable[Sequence[Task]]) -> str | None:
        """Encode the prompts of each chunk together; returns what the user must correct before anything can be encoded."""
        try:
            for tasks in chunks:
                self._encode_chunk(tasks)
        except UserError as error:
            return str(error)
        return None

    def _encode_chunk(self, tasks: Sequence[Task]) -> None:
        """Together, if memory runs out without the other networks, and if that fails for another reason one by one."""
        failure = self._try(tasks)
        if failure is not None and failure.out_of_memory and self.prompts.encoders.make_room():
            failure = self._try(tasks)
        if failure is None:
            return
        if failure.out_of_memory:
            raise UserError(
                f"The text encoders run out of memory on {self.prompts.encoders.device} with {CHUNK} prompts, although "
                "nothing else is there. Use a GPU with more memory, or a smaller --max_sequence_length."
            )
        for task in tasks:
            if (alone := self._try([task])) is not None:
                self.prompts.learn_failure(alone.message)

    def _try(self, tasks: Sequence[Task]) -> _Failure | None:
        """Encode the prompts of these tasks.

        Raises:
            UserError: the text encoders cannot be loaded, or the embedding cache cannot be written.
        """
        try:
            self.prompts.run_to_latents(lambda: self.run(Batch(tuple(tasks))))
        except UserError:
            raise
        # Whatever a text encoder or tokenizer raises concerns these prompts only: the images that ask for them fail.
        except Exception as error:
            return _Failure(f"{type(error).__name__}: {error}", is_out_of_memory(error))
        return None


def _size(known: Embedding | str) -> int:
    return 0 if isinstance(known, str) else num_bytes(known)
