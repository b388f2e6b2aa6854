"""What rewrites prompts: the contract, and which module does it. Nothing heavy is imported here.

rewriter = rewriter_of(wanted, device="cuda:0", dtype="bfloat16", should_stop=stop)
rewriter.rewrite([Ask("a fox", None)])        ["A red fox ...", or a Failed, or None: it was stopped before]
rewriter.close()
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dglaunch.backends.registry import imported
from dglaunch.data.rewriting import Ask, Rewriting, cleaned
from dglaunch.errors import UserError
from dglaunch.models.hub import into_cache
from dglaunch.system import need

FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
"""What is fetched of a model of the hub."""


@dataclass(frozen=True, slots=True)
class Failed:
    """Why a prompt was not rewritten."""

    why: str


class Rewriter(Protocol):
    """A language model that rewrites prompts, on one rank."""

    at_a_time: int
    """Prompts that are best handed in together."""

    def rewrite(self, asks: Sequence[Ask]) -> "Sequence[str | Failed | None]":
        """Return what became of each prompt; None: it was stopped before.

        Raises:
            UserError: nothing can be rewritten at all.
        """
        ...

    def close(self) -> None:
        """Give memory and connections back."""
        ...


def answer(text: str, is_cut: bool, max_tokens: int) -> str | Failed:
    """Return what a model said as a prompt, or why it is none."""
    if is_cut:
        return Failed(f"the answer is longer than --rewrite_max_tokens {max_tokens}, and was cut")
    return cleaned(text) or Failed("the answer is empty")


def rewriter_of(wanted: Rewriting, device: str, dtype: str, should_stop: Callable[[], bool]) -> Rewriter:
    """Return what rewrites prompts, not loaded yet where loading takes long.

    Raises:
        UserError: there is no such model.
    """
    module = "chat:ChatRewriter" if wanted.api_base is not None else "local:LocalRewriter"
    made: Rewriter = imported(f"dglaunch.backends.rewriting.{module}")(wanted, device, dtype, should_stop)
    return made


def fetch(source: str) -> None:
    """Fetch a model of the hub into this machine's cache; a folder is there already.

    Raises:
        UserError: it cannot be fetched.
    """
    if not os.path.isdir(source):
        into_cache(
            source, FILES, f"--rewrite_prompts {source}", "a folder, or a server's model with --rewrite_api_base"
        )


def check_model(wanted: Rewriting) -> None:
    """Refuse what can be seen to be no language model, before anything is loaded.

    Raises:
        UserError: a folder lacks what such a model has, or a package is missing.
    """
    if wanted.model is None:
        return
    if wanted.api_base is not None:
        need("openai", "--rewrite_api_base", "pip install 'dglaunch[api]'")
        return
    need("transformers", "--rewrite_prompts", "pip install dglaunch")
    source, folder = wanted.model, Path(wanted.model)
    if not folder.is_dir():
        return
    lacks = [name for name in ("config.json", "tokenizer_config.json") if not (folder / name).is_file()]
    if not any(folder.glob("*.safetensors")):
        lacks.append("*.safetensors")
    if lacks:
        hint = " (it is a diffusers pipeline)" if (folder / "model_index.json").exists() else ""
        raise UserError(
            f"--rewrite_prompts {source} is no causal language model of transformers{hint}: it lacks {', '.join(lacks)}."
        )
