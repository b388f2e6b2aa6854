"""Images are scored by a model of transformers that gives an image and a text each one vector: CLIP, SigLIP and their like.

The score is the cosine of the angle between the two, from -1 to 1 (torchmetrics' CLIP score is 100 times that, and not below
0). With a head (LAION's predictor of beauty) it is what its linear layers say of the image's vector of length 1. Only
safetensors are read, and no code that comes with the model.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dglaunch.backends.scoring.base import WEIGHTS, Wanted
from dglaunch.data.task import Record
from dglaunch.errors import UserError
from dglaunch.output.scores import Scored

if TYPE_CHECKING:
    from PIL.Image import Image

ON_GPU, ON_CPU = 64, 8
"""Images at a time."""


class ImageText:
    """See the module's docstring."""

    def __init__(self, wanted: Wanted, device: str, dtype: str) -> None:
        """
        Raises:
            UserError: it is not whole, or its head does not fit.
        """
        import transformers
        from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

        transformers.utils.logging.disable_progress_bar()
        self.at_a_time = ON_CPU if device == "cpu" else ON_GPU
        self._device, self._dtype = device, getattr(torch, dtype)
        # The same pixels on every machine, whether it has torchvision or not.
        portable = {"backend": "pil"} if int(transformers.__version__.split(".")[0]) >= 5 else {"use_fast": False}
        try:
            self._images = AutoImageProcessor.from_pretrained(wanted.processor, trust_remote_code=False, **portable)
            self._tokenizer = AutoTokenizer.from_pretrained(wanted.processor, trust_remote_code=False)
            model, found = AutoModel.from_pretrained(
                wanted.model, dtype=self._dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True
            )
        except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
            raise UserError(f"--with {wanted.said}: transformers cannot load it: {_in_a_line(error)}") from None
        _refuse_unfilled(wanted, found)
        self._model = model.to(device).eval()
        self._most_tokens = min(self._tokenizer.model_max_length, model.config.text_config.max_position_embeddings)
        self._head = None if wanted.head is None else read_head(wanted.head)
        if self._head is not None:
            self._fit_head(wanted)

    def score(self, images: "Sequence[Image]", records: Sequence[Record]) -> Sequence[Scored | str]:
        with torch.inference_mode():
            vectors = self._vectors_of_images(images)
            if self._head is not None:
                for weight, bias in self._head:
                    vectors = torch.nn.functional.linear(vectors, weight, bias)
                return [_scored(value, is_cut=False) for value in vectors[:, 0].tolist()]
            texts, cut = self._vectors_of_texts([str(record.get("prompt", "")) for record in records])
            cosines = (vectors * texts).sum(dim=1).tolist()
        return [_scored(value, is_cut) for value, is_cut in zip(cosines, cut)]

    def _vectors_of_images(self, images: "Sequence[Image]") -> torch.Tensor:
        inputs = self._images(images=list(images), return_tensors="pt").to(self._device)
        pixels = {name: value.to(self._dtype) if value.is_floating_point() else value for name, value in inputs.items()}
        return _unit(self._model.get_image_features(**pixels))

    def _vectors_of_texts(self, texts: Sequence[str]) -> tuple[torch.Tensor, list[bool]]:
        """The vectors, and of which texts only the beginning was read. All are padded to the longest that the model takes,
        as SigLIP was trained, so that a text's vector does not depend on the others. Samples of a prompt share its vector."""
        places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
        inputs = self._tokenizer(
            list(places), padding="max_length", truncation=True, max_length=self._most_tokens, return_tensors="pt"
        ).to(self._device)
        whole = self._tokenizer(list(places), verbose=False)["input_ids"]
        wanted = [places[text] for text in texts]
        vectors = _unit(self._model.get_text_features(**inputs))
        return vectors[wanted], [len(whole[place]) > self._most_tokens for place in wanted]

    def _fit_head(self, wanted: Wanted) -> None:
        """The head on the device, if it fits the model's vectors.

        Raises:
            UserError: it does not.
        """
        from PIL import Image

        assert self._head is not None, "there is one"
        with torch.inference_mode():
            size = self._vectors_of_images([Image.new("RGB", (64, 64))]).shape[1]
        if self._head[0][0].shape[1] != size:
            raise UserError(
                f"--head {wanted.head} is for vectors of {self._head[0][0].shape[1]} numbers, and those of {wanted.model} have {size}. "
                "Name the model that it was trained over."
            )
        self._head = [(weight.to(self._device), bias.to(self._device)) for weight, bias in self._head]


def read_head(path: Path) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return the linear layers of a head, in their order.

    Raises:
        UserError: it is none.
    """
    tensors = _tensors(path)
    names = sorted({name.removesuffix(".weight").removesuffix(".bias") for name in tensors}, key=_in_order)
    names = [name for name in names if name not in ("weight", "bias")] or [""]
    wanted = [(f"{name}.weight".lstrip("."), f"{name}.bias".lstrip(".")) for name in names]
    if {key for pair in wanted for key in pair} != set(tensors):
        raise UserError(f"--head {path}: it is no chain of linear layers; it has {', '.join(sorted(tensors)[:8])}.")
    layers = [(tensors[weight].float(), tensors[bias].float()) for weight, bias in wanted]
    sizes = [weight.shape for weight, _ in layers if weight.ndim == 2]
    fits = len(sizes) == len(layers) and all(one[0] == other[1] for one, other in pairwise(sizes))
    if not fits or sizes[-1][0] != 1 or any(bias.shape != weight.shape[:1] for weight, bias in layers):
        shapes = ", ".join(str(tuple(weight.shape)) for weight, _ in layers)
        raise UserError(f"--head {path}: its layers {shapes} do not lead from a vector to one number.")
    if not all(bool(tensor.isfinite().all()) for pair in layers for tensor in pair):
        raise UserError(f"--head {path} holds NaN or infinity: it is damaged.")
    return layers


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    try:
        found = load_file(path) if path.suffix == WEIGHTS else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file of another format ends in whatever torch's reader stumbles over
        raise UserError(f"--head {path} cannot be read: {_in_a_line(error)}") from None
    if not isinstance(found, dict) or not found or not all(isinstance(each, torch.Tensor) for each in found.values()):
        raise UserError(f"--head {path}: it is no state dict of tensors.")
    return dict(found)


def _in_order(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def _unit(features: Any) -> torch.Tensor:
    """Vectors of length 1, from what transformers 4 (a tensor) and 5 (several, by name) return."""
    found: torch.Tensor = getattr(features, "pooler_output", features)
    return torch.nn.functional.normalize(found.float(), dim=-1)


def _scored(value: float, is_cut: bool) -> Scored | str:
    return Scored(value, is_cut) if abs(value) < float("inf") else f"the model's answer is {value}"


def _refuse_unfilled(wanted: Wanted, found: Any) -> None:
    """transformers fills what a file lacks with random numbers, and only warns.

    Raises:
        UserError: a weight is missing or of another shape.
    """
    missing = [*found["missing_keys"], *(str(each[0]) for each in found["mismatched_keys"])]
    if missing:
        raise UserError(
            f"--with {wanted.said}: the weights of {wanted.model} lack {len(missing)} that its config.json asks for "
            f"({', '.join(sorted(missing)[:3])}), or have them in another shape. Get the whole model."
        )


def _in_a_line(error: Exception) -> str:
    return " ".join(str(error).split())[:500]
