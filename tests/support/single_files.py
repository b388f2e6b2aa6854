"""Whole checkpoints in one file, from a diffusers folder: diffusers' conversions the other way.

ldm_file(families / "sdxl", tmp_path / "x.safetensors")          Stability's keys: U-Net, VAE, CLIP, OpenCLIP
comfy_file(families / "sd3", tmp_path / "x.safetensors")         ComfyUI's prefixes
without_weights(families / "sdxl", tmp_path / "config")          what --model_config needs: no weights
"""

import json
import re
import shutil
from pathlib import Path

import torch

from support.weight_files import State, save, state_of

RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
UNET = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2", "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0", "conv_out": "out.2", "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1", "mid_block.resnets.1": "middle_block.2",
}  # fmt: skip
VAE_ATTENTION = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out", "group_norm": "norm"}
OPEN_CLIP = {
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}  # fmt: skip


def _inside(key: str, names: dict[str, str]) -> str:
    """The part of a key behind its block, by its other name."""
    for ours, theirs in names.items():
        if key == ours or key.startswith(f"{ours}."):
            return theirs + key.removeprefix(ours)
    return key


def ldm_unet(state: State, layers: int, with_attention: list[bool]) -> State:
    """A U-Net under Stability's keys.

    Args:
        layers: of a block.
        with_attention: for each block on the way up.
    """

    def renamed(key: str) -> str:
        found = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)", key)
        if found is None:
            whole = _inside(key, UNET)
            head, _, rest = whole.partition(".")
            if head == "middle_block":
                number, _, rest = rest.partition(".")
                return f"{head}.{number}.{_inside(rest, RESNET) if number != '1' else rest}"
            return whole
        way, block, kind, number, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
        place = 1 + block * (layers + 1) + number if way == "down" else block * (layers + 1) + number
        blocks = "input_blocks" if way == "down" else "output_blocks"
        if kind == "downsamplers":
            return f"input_blocks.{(block + 1) * (layers + 1)}.0.{rest.replace('conv', 'op', 1)}"
        if kind == "upsamplers":
            return f"output_blocks.{block * (layers + 1) + layers}.{2 if with_attention[block] else 1}.{rest}"
        return f"{blocks}.{place}.{_inside(rest, RESNET) if kind == 'resnets' else rest}".replace(
            f".{place}.", f".{place}.{0 if kind == 'resnets' else 1}.", 1
        )

    return {renamed(key): value for key, value in state.items()}


def ldm_vae(state: State, blocks: int) -> State:
    def renamed(key: str) -> str:
        key = key.replace("mid_block.resnets.0", "mid.block_1").replace("mid_block.resnets.1", "mid.block_2")
        key = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block.", key)
        key = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", key)
        key = re.sub(r"up_blocks\.(\d+)\.resnets\.", lambda found: f"up.{blocks - 1 - int(found[1])}.block.", key)
        key = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda found: f"up.{blocks - 1 - int(found[1])}.upsample", key)
        if found := re.fullmatch(r"(.*)mid_block\.attentions\.0\.(.*)", key):
            return f"{found[1]}mid.attn_1.{_inside(found[2], VAE_ATTENTION)}"
        return key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")

    found = {renamed(key): value for key, value in state.items()}
    matrix = re.compile(r".*mid\.attn_1\.(q|k|v|proj_out)\.weight")
    return {key: value[:, :, None, None] if matrix.fullmatch(key) else value for key, value in found.items()}


def open_clip(state: State) -> State:
    found: State = {}
    for key, value in state.items():
        key = key.removeprefix("text_model.")
        if layer := re.fullmatch(r"encoder\.layers\.(\d+)\.(.*)", key):
            block = f"transformer.resblocks.{layer[1]}"
            if ".q_proj." in key:
                each = [state[f"text_model.{key.replace('q_proj', name)}"] for name in ("q_proj", "k_proj", "v_proj")]
                found[f"{block}.attn.in_proj_{key.rpartition('.')[2]}"] = torch.cat(each)
            elif ".k_proj." not in key and ".v_proj." not in key:
                found[f"{block}.{_inside(layer[2], OPEN_CLIP)}"] = value
        elif key == "text_projection.weight":
            found["text_projection"] = value.T
        else:
            key = key.replace("embeddings.position_embedding.weight", "positional_embedding")
            found[
                key.replace("embeddings.token_embedding", "token_embedding").replace("final_layer_norm", "ln_final")
            ] = value
    return found


def _all(state: State, prefix: str) -> State:
    return {prefix + key: value for key, value in state.items()}


def ldm_file(model: Path, file: Path) -> Path:
    """An SDXL as Stability publishes it, with what nothing uses."""
    unet = json.loads((model / "unet" / "config.json").read_text())
    vae = json.loads((model / "vae" / "config.json").read_text())
    up = ["CrossAttn" in kind for kind in unet["up_block_types"]]
    clip = {
        key if key.startswith("text_model.") else f"text_model.{key}": value
        for key, value in state_of(model, "text_encoder").items()
    }
    state = (
        _all(ldm_unet(state_of(model, "unet"), unet["layers_per_block"], up), "model.diffusion_model.")
        | _all(ldm_vae(state_of(model, "vae"), len(vae["block_out_channels"])), "first_stage_model.")
        | _all(clip, "conditioner.embedders.0.transformer.")
        | _all(open_clip(state_of(model, "text_encoder_2")), "conditioner.embedders.1.model.")
        | {
            "conditioner.embedders.1.model.logit_scale": torch.tensor(1.0), "denoiser.sigmas": torch.ones(5),
            "conditioner.embedders.0.transformer.text_model.embeddings.position_ids": torch.arange(5)[None],
        }
    )  # fmt: skip
    return save(state, file)


COMFY = {
    "text_encoder": "text_encoders.clip_l.transformer.", "text_encoder_2": "text_encoders.clip_g.transformer.",
    "text_encoder_3": "text_encoders.t5xxl.transformer.", "vae": "vae.", "transformer": "model.diffusion_model.",
}  # fmt: skip


def comfy_file(model: Path, file: Path, without: tuple[str, ...] = ()) -> Path:
    """Parts of an SD3, each under ComfyUI's prefix and otherwise as diffusers has it."""
    state: State = {}
    for part, prefix in COMFY.items():
        if part not in without:
            state |= _all(state_of(model, part), prefix)
    return save(state, file)


def without_weights(model: Path, folder: Path) -> Path:
    """A copy of a checkpoint's configurations and tokenizers."""
    return Path(shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.safetensors")))
