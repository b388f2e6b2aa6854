"""LoRAs over a loaded pipeline: put there tensor by tensor, and switched for each batch, also row by row within one.

loras = PipelineLoras(checkpoint.loras, checkpoint.family.lora)
loras.attach(pipeline)                  # into the network that denoises; UserError unless every tensor is in its place
loras.attach_encoders(holder, encoders) # into text encoders, which may be loaded apart
loras.use(batch.tasks)                  # before each call
"""

import hashlib
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from dglaunch.backends.diffusers.lora_account import Converted, account, as_in_denoiser, as_in_encoder, convert
from dglaunch.backends.diffusers.protocols import Pipeline, denoiser, plain_pipeline
from dglaunch.data.task import Task
from dglaunch.distributed.channel import Channel
from dglaunch.errors import UserError
from dglaunch.models.families import LoraRules
from dglaunch.models.lora import NO_LORAS, LoraFile, Loras, LoraUse

SHOWN = 6
"""Keys in a message."""
BASE = "__base__"
"""peft's name for a row without LoRA."""
BRANCHES = (1, 2)
"""How often the rows of a batch may stand behind each other in a call: guidance has two branches."""
Combination = tuple[LoraUse, ...]
"""The LoRAs of an image; () for none."""


class PipelineLoras:
    """The LoRAs of a pipeline. Without any, all of it does nothing."""

    def __init__(self, loras: Loras, rules: LoraRules | None) -> None:
        self.files = loras.files if rules is not None else ()
        self.names = {file.name: f"lora{n}" for n, file in enumerate(self.files)}
        """What peft calls them: a name there must not hold a dot."""
        self.is_attached = False
        self.effects: dict[str, int] = {}
        """By part of the pipeline: the number of its layers that have one."""
        self._converted: dict[str, Converted] = {}
        self._layers: list[Any] = []
        """peft's layers of all networks that stay."""
        self._held = ""
        """What was put into the network that denoises: the number of layers, and a digest of what they hold."""
        self._active: Combination | None = None
        """What all rows of the last batch used; None: not known."""
        self._rows: list[str] | None = None
        """Where the rows of a batch use different ones: peft's name of each row's."""
        self._aliases: dict[LoraUse, str] = {}
        self._hooks: list[Any] = []

    # -- loading ------------------------------------------------------------------------------------------------------

    def read(self, pipeline: Pipeline) -> None:
        """Bring all files into diffusers' form for this pipeline.

        Raises:
            UserError: a tensor of a file is about nothing that the pipeline has.
        """
        for file in self.files:
            self._convert(file, plain_pipeline(pipeline))

    def attach(self, pipeline: Pipeline) -> None:
        """Put all of them into the network that denoises, and into the text encoders that the pipeline has.

        Raises:
            UserError: a tensor of a file has no place there.
        """
        if self.is_attached or not self.files:
            return
        plain, network = plain_pipeline(pipeline), _network_of(pipeline)
        part = "transformer" if getattr(pipeline, "transformer", None) is not None else "unet"
        for file in self.files:
            converted = self._convert(file, plain)
            if part not in converted.parts:
                continue
            with _explained(file):
                network.load_lora_adapter(
                    dict(converted.tensors), prefix=part, network_alphas=converted.alphas,
                    adapter_name=self.names[file.name], metadata=converted.metadata,
                )  # fmt: skip
            self._check(file, converted, part, as_in_denoiser(converted.of(part)), network)
        self.is_attached = True
        self._layers += _peft_layers(network)
        self._held = _held_by(self._layers)
        encoders = self._encoders_in(plain)
        self.attach_encoders(plain, encoders)
        for encoder in encoders.values():
            self._layers += _peft_layers(encoder)
        self.use_for_all(())

    def attach_encoders(self, holder: Any, encoders: Mapping[str, torch.nn.Module]) -> None:
        """Put their parts into text encoders.

        Args:
            holder: a pipeline of the class that the encoders belong to.

        Raises:
            UserError: a tensor of a file has no place there.
        """
        for file in self.files:
            converted = self._convert(file, holder)
            for name in sorted(converted.parts & encoders.keys()):
                encoder: Any = encoders[name]
                with _explained(file):
                    holder.load_lora_into_text_encoder(
                        dict(converted.tensors), network_alphas=converted.alphas, text_encoder=encoder, prefix=name,
                        adapter_name=self.names[file.name], metadata=converted.metadata,
                    )  # fmt: skip
                self._check(file, converted, name, as_in_encoder(converted.of(name), encoder), encoder)

    def _convert(self, file: LoraFile, pipeline: Any) -> Converted:
        """The file in diffusers' keys; each of them about a part that the pipeline has."""
        if file.name not in self._converted:
            with _explained(file):
                converted = convert(file.path, pipeline)
            known = {*getattr(pipeline, "_lora_loadable_modules", ())}
            lost = converted.in_file(key for key in converted.tensors if key.split(".", 1)[0] not in known)
            if unused := sorted({*lost, *converted.unused}):
                raise UserError(
                    f"--lora {file.name} ({file.source}): {len(unused)} of its {len(file.tensors)} tensors are not for "
                    f"{type(pipeline).__name__}, which would drop them in silence: {_some(unused)}. It was made for another model "
                    "or in a format that diffusers does not convert for this one; convert it, or drop it."
                )
            self._converted[file.name] = converted
        return self._converted[file.name]

    def _check(
        self,
        file: LoraFile,
        converted: Converted,
        part: str,
        renamed: Mapping[str, torch.Tensor],
        network: torch.nn.Module,
    ) -> None:
        """Every tensor of the file is in its layer as the file has it, and no layer has another.

        Raises:
            UserError: with the keys.
        """
        dropped, strange, num_layers = account(renamed, network, self.names[file.name])
        if dropped or strange:
            called = {id(value): key for key, value in converted.of(part).items()}
            keys = converted.in_file(f"{part}.{called.get(id(renamed[key]), key)}" for key in dropped)
            what = f"{len(keys)} of its {len(file.tensors)} tensors have no place in {type(network).__name__}: {_some(keys)}"
            drawn = f"{len(strange)} tensors of {type(network).__name__} would be drawn at random: {_some(strange)}"
            raise UserError(
                f"--lora {file.name} ({file.source}): {what if dropped else drawn}. It was made for another model, or is not "
                "whole; it would be applied in part, without a word. Drop it, or take the one for this model."
            )
        self.effects[part] = max(self.effects.get(part, 0), num_layers)

    def _encoders_in(self, pipeline: Any) -> dict[str, torch.nn.Module]:
        """The text encoders that a pipeline has at the moment, of those that a file is about."""
        names = sorted({name for file in self.files for name in file.encoder_keys})
        found = {name: getattr(pipeline, name, None) for name in names}
        return {name: encoder for name, encoder in found.items() if encoder is not None}

    def describe(self) -> dict[str, str]:
        """Return what run.json says took effect."""
        if not self.files:
            return {}
        layers = ", ".join(f"{count} layers of the {part}" for part, count in self.effects.items())
        return {"lora": f"{', '.join(self.names)}: {layers}; each tensor of the files is in its place"}

    def agree(self, channel: Channel) -> None:
        """See that all ranks of a replica hold the same: with others each would compute a part of another image.

        Raises:
            UserError: they do not.
        """
        if not self.files or channel.topology.replica_size == 1:
            return
        held: list[str] = channel.all_of_replica(self._held)
        if len(set(held)) > 1:
            told = ", ".join(f"rank {rank}: {text}" for rank, text in zip(channel.topology.replica_ranks, held))
            raise UserError(
                f"The ranks that share an image hold different LoRAs ({told}). Give every machine the same files and the same "
                "versions of diffusers and peft."
            )

    # -- for a batch --------------------------------------------------------------------------------------------------

    def use(self, tasks: Sequence[Task]) -> None:
        """Let the next call draw each of these images with its own."""
        if not self._layers:
            return
        rows = [task.lora or () for task in tasks]
        if len(set(rows)) == 1:
            self.use_for_all(rows[0])
        else:
            self._use_by_row(rows)

    def use_for_all(self, uses: Combination) -> None:
        """Switch these on, for all rows."""
        self._rows = None
        if uses != self._active:
            _activate(self._layers, [(self.names[use.name], use.scale) for use in uses])
            self._active = uses

    def _use_by_row(self, rows: Sequence[Combination]) -> None:
        """Each row has one or none: planning keeps the others apart."""
        if any(len(uses) > 1 for uses in rows):
            raise RuntimeError("a row with several LoRAs is in a batch with others")
        for use in {use for uses in rows for use in uses} - self._aliases.keys():
            self._aliases[use] = self._add_alias(use)
        for layer in self._layers:
            layer.enable_adapters(True)
        self._active = None
        self._rows = [self._aliases[uses[0]] if uses else BASE for uses in rows]
        if not self._hooks:
            self._hooks = [layer.register_forward_pre_hook(self._by_row, with_kwargs=True) for layer in self._layers]

    def _add_alias(self, use: LoraUse) -> str:
        """Make a LoRA known to its layers under another name too, with the weight that some rows give it: peft has one weight
        for a name."""
        name, alias = self.names[use.name], f"row{len(self._aliases)}"
        for layer in self._layers:
            if name in layer.lora_A:
                layer.set_scale(name, use.scale)
                layer.scaling[alias] = layer.scaling[name]
                for factors in (layer.lora_A, layer.lora_B, layer.lora_dropout):
                    factors[alias] = factors[name]
        return alias

    def _by_row(
        self, layer: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Tell a layer which LoRA each row of its input uses."""
        if self._rows is None:
            return None
        times, left = divmod(len(args[0]), len(self._rows))
        if left or times not in BRANCHES:
            raise RuntimeError(
                f"a layer ({type(layer).__name__}) gets {len(args[0])} rows for {len(self._rows)} images: with LoRAs these must "
                "not share a batch; give --batch_size 1"
            )
        return args, {**kwargs, "adapter_names": self._rows * times}

    # -- prompts ------------------------------------------------------------------------------------------------------

    def encoder_part(self, task: Task) -> Combination:
        """Return those of an image's LoRAs that change what its text encoders say."""
        return tuple(use for use in task.lora or () if use.name in self.names and self._has_encoder(use.name))

    def _has_encoder(self, name: str) -> bool:
        return any(file.name == name and file.encoder_keys for file in self.files)

    def use_in_encoders(self, encoders: Iterable[torch.nn.Module], uses: Combination) -> None:
        """Switch these on in text encoders, for all prompts."""
        if not self.files:
            return
        layers = [layer for encoder in encoders for layer in _peft_layers(encoder)]
        _activate(layers, [(self.names[use.name], use.scale) for use in uses])

    def encoder_key(self, uses: Combination) -> list[object]:
        """Return what an embedding depends on besides its text: what the files have for text encoders, in order, with the
        weights, and the library that applies it."""
        from importlib.metadata import version

        return [version("peft"), *([self._encoder_digest(use.name), use.scale] for use in uses)] if uses else []

    def _encoder_digest(self, name: str) -> str:
        """Of the part for text encoders alone: the rest of a file changes no prompt."""
        converted = self._converted[name]
        digest = hashlib.sha256()
        for key in sorted(key for key in converted.tensors if key.startswith("text_encoder")):
            digest.update(key.encode())
            digest.update(converted.tensors[key].contiguous().view(torch.uint8).numpy().tobytes())
        for said in (converted.alphas, converted.metadata):
            found = {key: str(value) for key, value in (said or {}).items() if key.startswith("text_encoder")}
            digest.update(repr(sorted(found.items())).encode())
        return digest.hexdigest()

    # -- fused --------------------------------------------------------------------------------------------------------

    def fuse(self, pipeline: Pipeline, uses: Combination) -> None:
        """Add these to the weights of the network that denoises, and take peft's layers out of it: for what knows the plain
        layers only."""
        if not self.files:
            return
        network = _network_of(pipeline)
        names = [self.names[use.name] for use in uses]
        if uses:
            network.set_adapters(names, [use.scale for use in uses])
            network.fuse_lora(adapter_names=names)
        network.unload_lora()
        encoders = self._encoders_in(plain_pipeline(pipeline)).values()
        self._layers = [layer for encoder in encoders for layer in _peft_layers(encoder)]
        self._active = None


NO_PIPELINE_LORAS = PipelineLoras(NO_LORAS, None)


def _network_of(pipeline: Pipeline) -> Any:
    found: Any = denoiser(pipeline)
    if not hasattr(found, "load_lora_adapter"):
        raise UserError(
            f"--lora: the network of {type(pipeline).__name__} takes no LoRA in this version of diffusers. Drop the flag."
        )
    return found


def _peft_layers(network: torch.nn.Module) -> list[Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in network.modules() if isinstance(module, BaseTunerLayer)]


def _activate(layers: Iterable[Any], weights: Sequence[tuple[str, float]]) -> None:
    """Switch LoRAs on, with their weights; without any, off."""
    names = [name for name, _ in weights]
    for layer in layers:
        layer.enable_adapters(bool(names))
        if names:
            layer.set_adapter(names)
            for name, weight in weights:
                layer.set_scale(name, weight)


def _held_by(layers: Sequence[Any]) -> str:
    """How many layers there are, and a digest of the factors and scales that they hold."""
    digest = hashlib.sha256()
    for layer in layers:
        digest.update(repr(sorted(layer.scaling.items())).encode())
        for factors in (layer.lora_A, layer.lora_B):
            for name in sorted(factors):
                weight = factors[name].weight.detach().cpu().contiguous()
                digest.update(weight.view(torch.uint8).numpy().tobytes())
    return f"{len(layers)} layers, {digest.hexdigest()[:16]}"


def _some(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - SHOWN:,} more" if len(keys) > SHOWN else ""
    return ", ".join(keys[:SHOWN]) + more


@contextmanager
def _explained(file: LoraFile) -> Iterator[None]:
    """What the libraries raise about a file is the user's to correct."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # a second file is no mistake
            warnings.filterwarnings("ignore", "TorchaoLoraLinear was instantiated")  # nothing is merged into int8
            yield
    except UserError:
        raise
    except Exception as error:  # converters raise what they stumble over
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"--lora {file.name} ({file.source}) cannot be loaded: {reason[:500]} It was made for another model, or is damaged; drop "
            "it, or take the one for this model."
        ) from None
