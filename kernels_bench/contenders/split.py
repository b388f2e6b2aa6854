"""accelerate's split_between_processes with a batch, as in diffusers' guide "Distributed inference".

    python split.py job.json, or under torchrun

Part of kernels_bench end_to_end, which writes job.json: model, prompts, batch_size, arguments, seed, device, dtype, out.
"""

import json
import sys

import torch
from accelerate import PartialState
from diffusers import DiffusionPipeline

with open(sys.argv[1]) as file:
    job = json.load(file)
state = PartialState(cpu=job["device"] == "cpu")
pipe = DiffusionPipeline.from_pretrained(job["model"], torch_dtype=getattr(torch, job["dtype"])).to(state.device)
with state.split_between_processes(list(enumerate(job["prompts"]))) as mine:
    for start in range(0, len(mine), job["batch_size"]):
        batch = mine[start : start + job["batch_size"]]
        generators = [torch.Generator("cpu").manual_seed(job["seed"]) for _ in batch]
        images = pipe([prompt for _, prompt in batch], generator=generators, **job["arguments"]).images
        for (index, _), image in zip(batch, images):
            image.save(f"{job['out']}/{index:06d}.png")
state.destroy_process_group()
