"""Make xfuser's QwenImage and ZImage transformers draw what plain diffusers draws, whatever the prompts' lengths.

xfuser 0.7.0 computes a whole batch without any attention mask, and pads what the parallel degree does not divide with
zeros that every token then attends to. Nothing tells: the images are just wrong. Turn the transformer of a loaded
pipeline into one that is right, in place and on any device:

    import_xfuser()                                        # of cpu.py, before this module is imported
    pipeline = DiffusionPipeline.from_pretrained(folder)   # a plain one: these transformers go into plain pipelines
    wrap_qwen(pipeline.transformer)                        # or wrap_zimage

Differences in the docstrings are of pixels in [0, 1], measured on the models of tests/support/tiny_models.py by
tests/torchrun/test_xfuser_parity.py, fp32, 3 steps; all are below 5e-5 now.
"""

from collections.abc import Hashable, Iterable, Sequence
from functools import lru_cache
from typing import Any

import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from xfuser.core.distributed import (
    get_classifier_free_guidance_world_size,
    get_ring_parallel_world_size,
    get_sequence_parallel_rank,
    get_sequence_parallel_world_size,
    get_ulysses_parallel_world_size,
)
from xfuser.model_executor.layers import usp
from xfuser.model_executor.models.transformers import transformer_qwen, transformer_z_image
from xfuser.model_executor.models.transformers.transformers_utils import chunk_and_pad_sequence

Argument = torch.Tensor | Sequence[object] | dict[str, object] | None
"""What the transformer of QwenImage is called with besides its two streams of tokens."""


def group_equal(keys: Iterable[Hashable]) -> list[list[int]]:
    """The positions of equal keys, together: "abab" gives [[0, 2], [1, 3]]. All ranks of a replica group alike."""
    groups: dict[Hashable, list[int]] = {}
    for position, key in enumerate(keys):
        groups.setdefault(key, []).append(position)
    return list(groups.values())


# --- QwenImage -------------------------------------------------------------------------------------------------------


def wrap_qwen(transformer: torch.nn.Module) -> torch.nn.Module:
    """Turn a loaded QwenImage transformer, plain or already xfuser's, into the right one, in place."""
    if isinstance(transformer, QwenImageTransformer):
        return transformer
    transformer.__class__ = QwenImageTransformer
    for block in transformer.get_submodule("transformer_blocks").children():
        block.get_submodule("attn").processor = transformer_qwen.xFuserQwenDoubleStreamAttnProcessor()
        block.register_forward_pre_hook(_split_modulate_index, with_kwargs=True)
    transformer_qwen.USP = _attend  # the name under which the processor calls it
    return transformer


class QwenImageTransformer(transformer_qwen.xFuserQwenImageTransformerWrapper):  # type: ignore[misc]  # it has no types
    """xfuser's, for any mixture of text lengths and any number of tokens.

    xfuser's own ignores the text's mask: the shorter prompts of a batch attend to their padding (wrong by 1.0, even
    without sequence parallelism). So the samples of each length are computed apart, with the padding cut off.
    """

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_hidden_states_mask: torch.Tensor | None = None,
        return_dict: bool = True,
        **kwargs: Argument,
    ) -> "Transformer2DModelOutput | tuple[torch.Tensor]":
        lengths = _text_lengths(encoder_hidden_states, encoder_hidden_states_mask)
        groups = group_equal(lengths)
        if len(groups) == 1:
            text = encoder_hidden_states[:, : lengths[0]]
            output = self._forward_equal(hidden_states, text, kwargs)
        else:
            if self.is_cache_enabled:
                raise ValueError(
                    "prompts of different lengths are computed one length after the other here, and a cache of "
                    "diffusers would mix them up: disable the cache, or give each call prompts of one length"
                )
            samples: dict[int, torch.Tensor] = {}
            for rows in groups:
                text = encoder_hidden_states[rows, : lengths[rows[0]]]
                picked = {name: _pick(name, value, rows) for name, value in kwargs.items()}
                outputs = self._forward_equal(hidden_states[rows], text, picked)
                samples |= zip(rows, outputs, strict=True)
            output = torch.stack([samples[row] for row in range(len(lengths))])
        return Transformer2DModelOutput(sample=output) if return_dict else (output,)

    def _forward_equal(self, image: torch.Tensor, text: torch.Tensor, kwargs: dict[str, Argument]) -> torch.Tensor:
        num_text, num_image, world_size = text.shape[1], image.shape[1], get_sequence_parallel_world_size()
        tokens = real_tokens(num_text, num_image, world_size, image.device)
        if tokens is not None and get_ring_parallel_world_size() > 1:
            raise ValueError(
                f"{num_text} text and {num_image} image tokens do not divide by the {world_size} ranks of an image: "
                "xfuser would pad them, and its ring attention would attend to the padding and draw a wrong image. Use "
                "Ulysses without ring, or prompts (negative ones too) and sizes whose tokens divide"
            )
        for block in self.transformer_blocks:
            block.attn.real_tokens = tokens  # for _attend
        output: torch.Tensor = super().forward(image, text, return_dict=False, **kwargs)[0]
        return output


def _text_lengths(text: torch.Tensor, mask: torch.Tensor | None) -> list[int]:
    """How many tokens each sample has."""
    if mask is None:
        return [text.shape[1]] * len(text)
    mask = mask.bool()
    lengths = mask.sum(dim=1)
    if (mask != (torch.arange(text.shape[1], device=mask.device) < lengths[:, None])).any():
        raise ValueError("the mask of the text must be ones and then zeros: xfuser knows no other padding")
    return lengths.tolist()


def _pick(name: str, value: Argument, rows: list[int]) -> Argument:
    """The rows of one of forward's arguments, if it has something for each sample."""
    if name == "controlnet_block_samples" and value is not None:
        raise ValueError("a controlnet needs prompts of equal length under xfuser: use batch size 1")
    if isinstance(value, torch.Tensor):
        return value[rows]
    return [value[row] for row in rows] if isinstance(value, Sequence) else value


@lru_cache(maxsize=64)
def real_tokens(num_text: int, num_image: int, world_size: int, device: torch.device) -> torch.Tensor | None:
    """The positions of the tokens in a sequence put together from what each rank holds. None if they are everywhere.

    Each rank holds a chunk of the text, then a chunk of the image. All chunks of a kind have one length, and zeros fill
    up the last of them: of 5 text tokens, four ranks hold 2, 2, 1 and none. (A tensor, for torch.compile compiles anew
    for every value of a number; cached, for making one on a GPU waits for it.)
    """
    if num_text % world_size == 0 and num_image % world_size == 0:
        return None
    positions: list[int] = []
    start = 0
    for rank in range(world_size):
        for num_tokens in (num_text, num_image):
            chunk = -(-num_tokens // world_size)
            num_real = min(max(num_tokens - rank * chunk, 0), chunk)
            positions += range(start, start + num_real)
            start += chunk
    return torch.tensor(positions, device=device)


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, attn_layer: torch.nn.Module, **kwargs: object
) -> torch.Tensor:
    """xfuser's USP, except that nothing attends to the padding (wrong by 0.7 to 0.9 for odd texts or images).

    Only keys and values are cut: what the padding itself attends to is dropped in the end.
    """
    tokens = getattr(attn_layer, "real_tokens", None)
    if tokens is None:
        output: torch.Tensor = usp.USP(query, key, value, attn_layer=attn_layer, **kwargs)
        return output
    query, key, value = (usp._ft_c_input_all_to_all(part) for part in (query, key, value))
    key, value = key.index_select(2, tokens), value.index_select(2, tokens)
    partial, _ = usp._get_attention_function()(query, key, value, **kwargs)
    output = usp._ft_c_output_all_to_all(partial)
    return output


def _split_modulate_index(
    block: torch.nn.Module, args: tuple[object, ...], kwargs: dict[str, object]
) -> tuple[tuple[object, ...], dict[str, object]] | None:
    """Give a block the part of the index that is about its tokens: xfuser gives it all, and their sizes do not match.

    The index tells the noise's tokens from those of the references, in checkpoints with `zero_cond_t` (Qwen Image Edit
    2511). Under sequence parallelism these fail: "The size of tensor a (72) must match the size of tensor b (144)".
    """
    index = kwargs.get("modulate_index")
    world_size = get_sequence_parallel_world_size()
    if not isinstance(index, torch.Tensor) or world_size == 1:
        return None
    padding = -index.shape[1] % world_size
    part = chunk_and_pad_sequence(index, get_sequence_parallel_rank(), world_size, padding, dim=1)
    return args, {**kwargs, "modulate_index": part}


# --- ZImage ----------------------------------------------------------------------------------------------------------


def wrap_zimage(transformer: torch.nn.Module) -> torch.nn.Module:
    """Turn a loaded plain ZImage transformer into the right one, in place.

    There is no other way to load it: xfuser's class hides its arguments behind **kwargs, so that its `from_pretrained`
    ignores the checkpoint's config and builds the published size.
    """
    transformer.__class__ = ZImageTransformer
    for attention in transformer_z_image.z_image_attn_modules(transformer):
        attention.processor = transformer_z_image.xFuserZSingleStreamAttnProcessor()
    _name_padded_heads(transformer.config)
    return transformer


def _name_padded_heads(config: Any) -> None:
    """Tell xfuser the heads that there are once its attention has padded them: of 30, four ranks hold 8 each.

    Its runtime state refuses heads that the Ulysses degree does not divide, although the attention of this transformer
    pads them. It looks for this name first; the network itself has its heads under `n_heads`.
    """
    config.num_attention_heads = config.n_heads + -config.n_heads % get_ulysses_parallel_world_size()


class ZImageTransformer(transformer_z_image.xFuserZImageTransformer2DWrapper):  # type: ignore[misc]  # it has no types
    """xfuser's, for any mixture of prompt lengths.

    A prompt is padded to a multiple of 32 tokens, by design; but xfuser pads those of a batch to the longest, and
    attends to that too (wrong by 0.3 to 1.0). A positive and its negative prompt share a batch, unless CFG parallelism
    parts them, so one long prompt with the empty negative one is enough. So only the samples whose prompts have as many
    times 32 tokens are computed together.

    It also takes (and refuses) the `joint_attention_kwargs` that diffusers 0.42 passes and xfuser does not know.
    """

    def forward(
        self,
        x: list[torch.Tensor],
        t: torch.Tensor,
        cap_feats: list[torch.Tensor],
        *args: object,
        joint_attention_kwargs: dict[str, object] | None = None,
        return_dict: bool = True,
        **kwargs: object,
    ) -> "Transformer2DModelOutput | tuple[list[torch.Tensor]]":
        if joint_attention_kwargs:
            raise TypeError("xfuser's ZImage transformer does not take joint_attention_kwargs")
        multiple, world_size = transformer_z_image.SEQ_MULTI_OF, get_sequence_parallel_world_size()
        if multiple % world_size:
            raise ValueError(
                f"{world_size} ranks for an image do not divide ZImage's multiples of {multiple} tokens: xfuser would "
                "pad them, and attend to the padding. Use 2, 4, 8, 16 or 32"
            )
        # CFG parallelism cuts the list in two, the positive prompts first: then pairs stay together.
        num_branches = get_classifier_free_guidance_world_size()
        if len(x) % num_branches:
            raise ValueError(f"CFG parallelism needs guidance: without it, {len(x)} samples are not pairs")
        num_samples = len(x) // num_branches
        branches = [range(start, len(x), num_samples) for start in range(num_samples)]
        sizes = [(features.shape, -(-len(text) // multiple)) for features, text in zip(x, cap_feats, strict=True)]
        groups = group_equal(tuple(sizes[row] for row in rows) for rows in branches)
        outputs = list(x)
        for group in groups:
            rows = [branches[sample][branch] for branch in range(num_branches) for sample in group]
            pick = ([x[row] for row in rows], t[rows], [cap_feats[row] for row in rows])
            for row, output in zip(rows, super().forward(*pick, *args, return_dict=False, **kwargs)[0], strict=True):
                outputs[row] = output
        return Transformer2DModelOutput(sample=outputs) if return_dict else (outputs,)
