"""What encode_prompt() returns for a batch of prompts, cut to one prompt each, and put together again."""

from collections.abc import Sequence

import torch

from dglaunch.backends.diffusers.protocols import TextValue
from dglaunch.models.families import TextOutput

Embedding = tuple[torch.Tensor | None, ...]
"""What encode_prompt returns, cut to one prompt, on the host: as many values, each without what another prompt made of
it (the padding to a longer one)."""


def split(kinds: Sequence[TextOutput], values: Sequence[TextValue]) -> list[Embedding]:
    """Split encode_prompt's values into one embedding for each prompt, on the host.

    Args:
        kinds: what each value is.
    """
    count = next(len(value) for kind, value in zip(kinds, values) if kind != "same" and value is not None)
    mask = next((value for kind, value in zip(kinds, values) if kind == "mask"), None)
    assert not isinstance(mask, Sequence), "a mask is a tensor"
    return [tuple(_cut(kind, value, row, mask) for kind, value in zip(kinds, values)) for row in range(count)]


def join(kinds: Sequence[TextOutput], embeddings: Sequence[Embedding], device: str) -> tuple[TextValue, ...]:
    """Join the embeddings of a batch's prompts to encode_prompt's values, on a device."""
    columns = [[None if value is None else value.to(device) for value in column] for column in zip(*embeddings)]
    return tuple(_joined(kind, column, columns[0]) for kind, column in zip(kinds, columns))


def num_bytes(embedding: Embedding) -> int:
    """How much host memory an embedding takes."""
    return sum(value.nbytes for value in embedding if value is not None)


def _cut(kind: TextOutput, value: TextValue, row: int, mask: torch.Tensor | None) -> torch.Tensor | None:
    if value is None or len(value) == 0 or kind == "mask":
        return None
    if kind == "list":
        return value[row].cpu().clone()
    assert isinstance(value, torch.Tensor), kind
    if kind == "same":
        return value.cpu()
    part = value[row : row + 1]
    if kind == "padded" and mask is not None:
        part = part[:, : int(mask[row].sum())]
    return part.cpu().clone()


def _joined(kind: TextOutput, column: Sequence[torch.Tensor | None], first: Sequence[torch.Tensor | None]) -> TextValue:
    """One of encode_prompt's values; `first` is the column of its first, whose padding the mask is about."""
    if kind == "mask":
        return _mask([value for value in first if value is not None])
    present = [value for value in column if value is not None]
    if kind == "list":
        return present
    if column[0] is None:
        return None
    if kind == "same":
        return present[0]
    if kind == "padded":
        longest = max(value.shape[1] for value in present)
        present = [torch.nn.functional.pad(value, (0, 0, 0, longest - value.shape[1])) for value in present]
    return torch.cat(present)


def _mask(padded: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """Ones for each prompt's own tokens; None where there is no padding."""
    lengths = [value.shape[1] for value in padded]
    if len(set(lengths)) == 1:
        return None
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return mask.long().to(padded[0].device)
