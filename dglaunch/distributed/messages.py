"""What ranks tell each other, as bytes: JSON for the values, raw bytes for images and tensors, never a pickle.

    unpack(pack(value)) == value

A pickle can run any code where it is read, and a stray process may have joined the rendezvous. What is read here becomes
plain values and the few classes that are registered (`@message`), whoever wrote it.

A message is the length of its head in 8 bytes, the head, and the pieces of raw bytes one after the other. The head is JSON:
the value and the length of each piece. A JSON object has one name, which says what it stands for: {"tuple": [1, 2]},
{"bytes": 0} (the first piece), {"Result": {"file_name": ...}}.
"""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dglaunch import errors
from dglaunch.data.task import BatchSize, Result
from dglaunch.errors import DglaunchError, InputError
from dglaunch.models.shape import Shape

if TYPE_CHECKING:
    import torch

Kind = TypeVar("Kind", bound=type)

_LENGTH_BYTES = 8
_ERRORS: dict[str, type[DglaunchError]] = {
    name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, DglaunchError)
}
_MESSAGES: dict[str, type] = {}


def message(kind: Kind) -> Kind:
    """Class decorator: a dataclass that ranks may send each other, field by field."""
    assert kind.__name__ not in (*_MESSAGES, *_READERS), f"two messages are called {kind.__name__}"
    _MESSAGES[kind.__name__] = kind
    return kind


def pack(value: object) -> bytes:
    """Return a value as bytes.

    Raises:
        DglaunchError: it is, or holds, something that ranks do not send each other.
    """
    pieces: list[bytes] = []
    plain = _plain(value, pieces)
    head = json.dumps([plain, [len(piece) for piece in pieces]], separators=(",", ":")).encode()
    return b"".join([len(head).to_bytes(_LENGTH_BYTES), head, *pieces])


def unpack(body: bytes) -> Any:
    """Return the value that `pack` made bytes of; its type is the sender's word.

    Raises:
        DglaunchError: these bytes are no message.
    """
    try:
        at = _LENGTH_BYTES + int.from_bytes(body[:_LENGTH_BYTES])
        plain, lengths = json.loads(body[_LENGTH_BYTES:at])
        pieces: list[bytes] = []
        for length in lengths:
            pieces.append(body[at : at + length])
            at += length
        if at != len(body):
            raise ValueError(f"{len(body)} bytes came, {at} were announced")
        return _value(plain, pieces)
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError, RecursionError) as error:
        raise DglaunchError(
            f"What came from another rank is no message of dglaunch ({type(error).__name__}: {str(error)[:200]}). Is "
            "everything that joins the rendezvous this job, and dglaunch the same on all machines?"
        ) from None


# -- to plain values ----------------------------------------------------------------------------------------------


def _plain(value: object, pieces: list[bytes]) -> object:
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, list):
        return [_plain(item, pieces) for item in value]
    if isinstance(value, tuple):
        return {"tuple": [_plain(item, pieces) for item in value]}
    if isinstance(value, Mapping):
        return {"dict": [[_plain(key, pieces), _plain(item, pieces)] for key, item in value.items()]}
    if isinstance(value, bytes):
        pieces.append(value)
        return {"bytes": len(pieces) - 1}
    if isinstance(value, Path):
        return {"path": str(value)}
    if isinstance(value, DglaunchError):
        kind = next(kind for kind in type(value).__mro__ if kind in _ERRORS.values())
        return {"error": [kind.__name__, str(value), list(getattr(value, "problems", []))]}
    name = type(value).__name__
    if _MESSAGES.get(name) is type(value):
        return {name: {item.name: _plain(getattr(value, item.name), pieces) for item in fields(_MESSAGES[name])}}
    if "torch" in sys.modules and isinstance(value, sys.modules["torch"].Tensor):
        return {"tensor": _plain_tensor(value, pieces)}
    raise DglaunchError(
        f"Ranks do not send each other values of the type {type(value).__module__}.{name}. Register it with "
        "dglaunch.distributed.messages.message, or send what it is made of."
    )


def _plain_tensor(value: "torch.Tensor", pieces: list[bytes]) -> list[object]:
    import torch

    flat = value.detach().cpu().contiguous().reshape(-1)
    pieces.append(flat.view(torch.uint8).numpy().tobytes())
    return [str(value.dtype).removeprefix("torch."), list(value.shape), len(pieces) - 1]


# -- and back -----------------------------------------------------------------------------------------------------


def _value(plain: Any, pieces: list[bytes]) -> Any:
    if isinstance(plain, list):
        return [_value(item, pieces) for item in plain]
    if not isinstance(plain, dict):
        return plain
    ((name, content),) = plain.items()
    if name in _READERS:
        return _READERS[name](content, pieces)
    if name not in _MESSAGES:
        raise ValueError(f"there is no kind {name!r}")
    return _MESSAGES[name](**{key: _value(item, pieces) for key, item in content.items()})


def _tuple(content: Any, pieces: list[bytes]) -> tuple[Any, ...]:
    return tuple(_value(item, pieces) for item in content)


def _dict(content: Any, pieces: list[bytes]) -> dict[Any, Any]:
    return {_value(key, pieces): _value(item, pieces) for key, item in content}


def _bytes(content: int, pieces: list[bytes]) -> bytes:
    return pieces[content]


def _path(content: Any, _: list[bytes]) -> Path:
    return Path(content)


def _error(content: Any, _: list[bytes]) -> DglaunchError:
    name, text, problems = content
    kind = _ERRORS[name]
    error: DglaunchError = kind.__new__(kind, text)  # its own __init__ would make the text anew
    if isinstance(error, InputError):
        error.problems = problems
    return error


def _tensor(content: Any, pieces: list[bytes]) -> "torch.Tensor":
    import torch

    name, shape, number = content
    dtype = getattr(torch, name)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"torch.{name} is no type of a tensor")
    if not pieces[number]:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(pieces[number]), dtype=torch.uint8).view(dtype).reshape(shape)


_READERS: dict[str, Callable[[Any, list[bytes]], Any]] = {
    "tuple": _tuple,
    "dict": _dict,
    "bytes": _bytes,
    "path": _path,
    "error": _error,
    "tensor": _tensor,
}

for _kind in (Result, Shape, BatchSize):
    message(_kind)
