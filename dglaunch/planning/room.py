"""The one rule by which anything fits a GPU, be it planned, rehearsed or measured.

fits(room_of("decode", weights, live), gpu.memory)
"""

SPARE = 0.9
"""Share of the memory that is planned for; the rest is the allocator's and the driver's: fragmentation, the CUDA context, NCCL's
buffers."""
WORKSPACES = {"decode": 0.35}
"""What cuDNN's convolutions take in a stage beside its live tensors, as a share of these: while images are decoded on an H100 0.23 to
0.61 for one image and 0.17 to 0.35 for 2 to 24 (kernels_bench/results/true_size.jsonl). No trace and no rehearsal sees it."""


def room_of(stage: str, weights: int, live: int) -> int:
    """Return the bytes that a stage wants to find.

    Args:
        live: bytes of its tensors beside the weights, at their worst moment.
    """
    return weights + live + int(WORKSPACES.get(stage, 0.0) * live)


def fits(room: float, memory: int) -> bool:
    """Return whether so many bytes, workspaces included, are there on a GPU of this memory."""
    return room <= memory * SPARE
