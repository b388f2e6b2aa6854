"""xfuser's own first-block cache (--cache_type fbcache), for FLUX.1 and FLUX.2.

A step's other blocks are skipped when the first one changed little. The ranks of an image decide together: what each sees
is averaged over them, and only over them, so that several replicas do not meddle with each other. (cache-dit averages over
the whole world.)
"""

from collections.abc import Iterator
from functools import partial
from typing import Any
from unittest import mock

import torch

THRESHOLD = 0.12
"""xfuser's own."""


def apply_step_cache(transformer: Any, threshold: float | None, device: str) -> str:
    """Put the cache into a loaded transformer of xfuser, and say what was found on it afterwards."""
    from xfuser.model_executor.cache import utils
    from xfuser.model_executor.cache.adapters import flux, flux2

    adapter = flux2 if hasattr(transformer, "single_stream_modulation") else flux
    wanted = THRESHOLD if threshold is None else threshold
    # xfuser would put what it counts with on the first GPU of every machine, whichever the rank's is.
    with mock.patch.object(utils, "get_device", lambda _: torch.device(device)):
        adapter.apply_fbcache(transformer, rel_l1_thresh=wanted)
    for blocks in _cached(transformer):
        _keep_apart(blocks)
    count = sum(len(blocks.transformer_blocks) for blocks in _cached(transformer))
    return f"xfuser's FBCache(threshold={wanted:g}) around {count} blocks"


def _keep_apart(blocks: Any) -> None:
    """Let what the last step left not be overwritten before it is compared: for FLUX.2, xfuser 0.7 keeps it in one buffer that the
    new step is copied into first, so that every step looks like the one before and all but the first are skipped (wrong by 0.9)."""
    if hasattr(blocks, "_store_modulated_inputs"):
        blocks._store_modulated_inputs = partial(setattr, blocks.cache_context, "modulated_inputs")


def forget_images(transformer: Any) -> None:
    """Forget the last call's features: the first step of the next is computed in full, whatever it looks like. xfuser would
    compare it with the last step of other images, and break off where their number or size is another."""
    for blocks in _cached(transformer):
        blocks.use_cache = torch.tensor(False)
        blocks.cache_context.modulated_inputs = None


def _cached(transformer: torch.nn.Module) -> Iterator[Any]:
    from xfuser.model_executor.cache.utils import CachedTransformerBlocks

    return (module for module in transformer.modules() if isinstance(module, CachedTransformerBlocks))
