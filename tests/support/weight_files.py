"""Files with the weights of a tiny checkpoint's parts, as people pass them around: safetensors, GGUF, the model's own keys."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

State = dict[str, torch.Tensor]


def state_of(model: Path, part: str = "transformer") -> State:
    """Return the weights of a part of a diffusers folder."""
    (file,) = (model / part).glob("*.safetensors")
    return load_file(file)


def save(state: Mapping[str, torch.Tensor], file: Path) -> Path:
    save_file({key: value.clone().contiguous() for key, value in state.items()}, file)
    return file


WHOLE = ("norm", "embed", "ff_i.gate", "scale_shift_table")
"""In the keys of matrices that are no layers' weights; converters leave them as they are."""


def save_gguf(
    state: Mapping[str, torch.Tensor], file: Path, kind: str = "Q8_0", whole: tuple[str, ...] = WHOLE
) -> Path:
    """Write a GGUF file in which each matrix that can be is quantised."""
    import gguf

    wanted = gguf.GGMLQuantizationType[kind]
    block = gguf.GGML_QUANT_SIZES[wanted][0]
    writer = gguf.GGUFWriter(file, "tiny")
    for key, value in state.items():
        numbers = value.float().numpy()
        if value.dim() == 2 and value.shape[-1] % block == 0 and not any(word in key for word in whole):
            writer.add_tensor(key, gguf.quants.quantize(numbers, wanted), raw_dtype=wanted)
        else:
            writer.add_tensor(key, numbers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def scaled_fp8(state: Mapping[str, torch.Tensor], ending: str = ".scale_weight") -> State:
    """Return weights as ComfyUI's scaled fp8 files have them."""
    found: State = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)} if ending == ".scale_weight" else {}
    for key, value in state.items():
        if value.dim() == 2 and key.endswith(".weight"):
            scale = value.abs().max() / 448
            found[key] = (value / scale).to(torch.float8_e4m3fn)
            found[key.removesuffix(".weight") + ending] = scale.reshape(())
        else:
            found[key] = value
    return found


def unscaled(state: Mapping[str, torch.Tensor]) -> State:
    """Return what a scaled file stands for: what it would give with no rounding but its own."""
    found: State = {}
    for key, value in state.items():
        if value.dtype == torch.float8_e4m3fn and key != "scaled_fp8":
            found[key] = value.float() * next(
                state[key.removesuffix(".weight") + end] for end in (".scale_weight", ".weight_scale")
                if key.removesuffix(".weight") + end in state
            )  # fmt: skip
        elif not key.endswith((".scale_weight", ".weight_scale")) and key != "scaled_fp8":
            found[key] = value
    return found


def flux_own_keys(state: Mapping[str, torch.Tensor], prefix: str = "", blocks: tuple[int, int] = (2, 2)) -> State:
    """Return a Flux transformer's weights under Black Forest Labs' own keys: diffusers' conversion the other way."""
    found: State = {}
    taken: set[str] = set()

    def take(name: str) -> torch.Tensor:
        taken.add(name)
        return state[name]

    def both(theirs: str, ours: str, change: Callable[[torch.Tensor], torch.Tensor] = lambda value: value) -> None:
        for end in ("weight", "bias"):
            found[f"{theirs}.{end}"] = change(take(f"{ours}.{end}"))

    def joined(theirs: str, *ours: str) -> None:
        for end in ("weight", "bias"):
            found[f"{theirs}.{end}"] = torch.cat([take(f"{name}.{end}") for name in ours])

    def swapped(value: torch.Tensor) -> torch.Tensor:
        shift, scale = value.chunk(2)
        return torch.cat([scale, shift])

    embed = "time_text_embed"
    for theirs, ours in (
        ("time_in", "timestep_embedder"),
        ("vector_in", "text_embedder"),
        ("guidance_in", "guidance_embedder"),
    ):
        both(f"{theirs}.in_layer", f"{embed}.{ours}.linear_1")
        both(f"{theirs}.out_layer", f"{embed}.{ours}.linear_2")
    both("txt_in", "context_embedder")
    both("img_in", "x_embedder")
    both("final_layer.linear", "proj_out")
    both("final_layer.adaLN_modulation.1", "norm_out.linear", swapped)
    for n in range(blocks[0]):
        block, own = f"transformer_blocks.{n}", f"double_blocks.{n}"
        for side, norm, mlp, out, q, k in (
            ("img", "norm1", "ff", "to_out.0", "norm_q", "norm_k"),
            ("txt", "norm1_context", "ff_context", "to_add_out", "norm_added_q", "norm_added_k"),
        ):
            both(f"{own}.{side}_mod.lin", f"{block}.{norm}.linear")
            names = ("to_q", "to_k", "to_v") if side == "img" else ("add_q_proj", "add_k_proj", "add_v_proj")
            joined(f"{own}.{side}_attn.qkv", *[f"{block}.attn.{name}" for name in names])
            found[f"{own}.{side}_attn.norm.query_norm.scale"] = take(f"{block}.attn.{q}.weight")
            found[f"{own}.{side}_attn.norm.key_norm.scale"] = take(f"{block}.attn.{k}.weight")
            both(f"{own}.{side}_mlp.0", f"{block}.{mlp}.net.0.proj")
            both(f"{own}.{side}_mlp.2", f"{block}.{mlp}.net.2")
            both(f"{own}.{side}_attn.proj", f"{block}.attn.{out}")
    for n in range(blocks[1]):
        block, own = f"single_transformer_blocks.{n}", f"single_blocks.{n}"
        both(f"{own}.modulation.lin", f"{block}.norm.linear")
        joined(f"{own}.linear1", *[f"{block}.attn.to_{name}" for name in "qkv"], f"{block}.proj_mlp")
        found[f"{own}.norm.query_norm.scale"] = take(f"{block}.attn.norm_q.weight")
        found[f"{own}.norm.key_norm.scale"] = take(f"{block}.attn.norm_k.weight")
        both(f"{own}.linear2", f"{block}.proj_out")
    assert taken == set(state), set(state) - taken
    return {prefix + key: value for key, value in found.items()}


def zimage_own_keys(state: Mapping[str, torch.Tensor], prefix: str = "") -> State:
    """Return a Z-Image transformer's weights under its own keys, as ComfyUI has them, with the norm that nothing uses."""
    names = {
        "all_final_layer.2-1.": "final_layer.", "all_x_embedder.2-1.": "x_embedder.",
        ".attention.to_out.0.": ".attention.out.", ".attention.norm_k.": ".attention.k_norm.",
        ".attention.norm_q.": ".attention.q_norm.",
    }  # fmt: skip
    found: State = {"norm_final.weight": torch.ones(4)}
    for key, value in state.items():
        if ".attention.to_q." in key:
            each = [state[key.replace("to_q", name)] for name in ("to_q", "to_k", "to_v")]
            found[key.replace("to_q", "qkv")] = torch.cat(each)
        elif ".attention.to_k." not in key and ".attention.to_v." not in key:
            for ours, theirs in names.items():
                key = key.replace(ours, theirs)
            found[key] = value
    return {prefix + key: value for key, value in found.items()}


def set_state(part: str, state: Mapping[str, torch.Tensor]) -> Callable[[Any], None]:
    """Return a change of a pipeline: these weights in one of its parts."""

    def change(pipeline: Any) -> None:
        getattr(pipeline, part).load_state_dict(dict(state))

    return change
