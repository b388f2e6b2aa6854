"""encode_prompt's values, cut to one prompt each and joined again: for every batch what the pipeline itself would give."""

from collections.abc import Sequence
from itertools import permutations

import pytest
import torch

from dglaunch.backends.diffusers.prompt_tensors import Embedding, join, num_bytes, split
from dglaunch.backends.diffusers.protocols import TextValue
from dglaunch.models.families import TextOutput

LENGTHS = {"a": 2, "bcd": 4, "ef": 3, "gh": 3}


def encoded(prompts: Sequence[str], kind: str) -> tuple[TextValue, ...]:
    """What pipelines of these kinds return."""
    rows = {
        prompt: torch.rand(LENGTHS[prompt], 5, generator=torch.Generator().manual_seed(ord(prompt[0])))
        for prompt in LENGTHS
    }
    longest = max(LENGTHS[prompt] for prompt in prompts)
    padded = torch.stack([torch.nn.functional.pad(rows[p], (0, 0, 0, longest - len(rows[p]))) for p in prompts])
    if kind == "list":
        return ([rows[prompt] for prompt in prompts], [])
    if kind == "padded":
        lengths = torch.tensor([LENGTHS[prompt] for prompt in prompts])
        mask = (torch.arange(longest) < lengths[:, None]).long()
        return padded, (None if bool(mask.all()) else mask)
    fixed = torch.stack([torch.nn.functional.pad(rows[p], (0, 0, 0, 6 - len(rows[p]))) for p in prompts])
    return fixed, fixed[:, 0], torch.arange(12.0).reshape(4, 3), None


KINDS: dict[str, tuple[TextOutput, ...]] = {
    "row": ("row", "row", "same", "row"),
    "list": ("list", "list"),
    "padded": ("padded", "mask"),
}


def equal(one: TextValue, other: TextValue) -> bool:
    if one is None or other is None:
        return one is other
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return len(one) == len(other) and all(map(torch.equal, one, other))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 2, 3])
def test_every_batch_is_what_the_pipeline_itself_gives_for_it(kind: str, size: int) -> None:
    """The prompts were encoded in one chunk, beside longer ones."""
    embeddings = dict(zip(LENGTHS, split(KINDS[kind], encoded(list(LENGTHS), kind))))
    for prompts in permutations(LENGTHS, size):
        joined = join(KINDS[kind], [embeddings[prompt] for prompt in prompts], "cpu")
        expected = encoded(prompts, kind)
        assert len(joined) == len(expected) and all(map(equal, joined, expected)), prompts


def test_a_mask_is_one_only_where_prompts_differ_in_length() -> None:
    embeddings = split(("padded", "mask"), encoded(["ef", "gh"], "padded"))
    assert join(("padded", "mask"), embeddings, "cpu")[1] is None


def test_a_prompt_keeps_nothing_of_the_chunk_that_it_was_encoded_in() -> None:
    """A view would keep the whole chunk in memory."""
    values = encoded(list(LENGTHS), "row")
    (first, *_), taken = split(KINDS["row"], values), values[0]
    assert isinstance(taken, torch.Tensor) and first[0] is not None
    assert first[0].untyped_storage().nbytes() == first[0].nbytes < taken.nbytes


def test_bytes_are_counted_without_what_is_missing() -> None:
    embedding: Embedding = (torch.zeros(2, 3), None, torch.zeros(4, dtype=torch.float16))
    assert num_bytes(embedding) == 24 + 8
