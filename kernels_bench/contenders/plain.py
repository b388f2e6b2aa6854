"""What people write first: a loop over batches around a plain diffusers pipeline; each rank takes every n-th prompt.

    python plain.py job.json, or under torchrun

Part of kernels_bench end_to_end, which writes job.json: model, prompts, batch_size, arguments, seed, device, dtype, out.
"""

import json
import os
import sys

import torch
from diffusers import DiffusionPipeline

with open(sys.argv[1]) as file:
    job = json.load(file)
rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
device = f"cuda:{rank}" if job["device"] == "cuda" else "cpu"
pipe = DiffusionPipeline.from_pretrained(job["model"], torch_dtype=getattr(torch, job["dtype"])).to(device)
mine = list(enumerate(job["prompts"]))[rank::world]
for start in range(0, len(mine), job["batch_size"]):
    batch = mine[start : start + job["batch_size"]]
    generators = [torch.Generator("cpu").manual_seed(job["seed"]) for _ in batch]
    images = pipe([prompt for _, prompt in batch], generator=generators, **job["arguments"]).images
    for (index, _), image in zip(batch, images):
        image.save(f"{job['out']}/{index:06d}.png")
