"""`python -m kernels_bench BENCH [--device cpu|cuda] [flags]`: run one bench, record it, print a table and a JSON line."""

import difflib
import importlib
import sys
from collections.abc import Sequence

from kernels_bench import measure

BENCHES = {
    "attention": "every attention backend that is installed, against the machine's measured peak",
    "exchange": "Ulysses all-to-all and ring between ranks",
    "vae": "whole, sliced and tiled decoding, with peak memory",
    "encode": "PNG levels, JPEG and WebP, with threads",
    "scale": "a job of 10^4 to 10^7 rows beside the model: seconds and memory of reading it, planning it, ...",
    "tail": "how long replicas wait for the slowest: fixed shares against claimed ones, on a made-up clock",
    "gather": "how many finished images rank 0 takes in and writes, alone and with --writer rank",
    "store": "images/s of files against WebDataset and Parquet shards, made and read at random",
    "batch": "images/s over batch size and resolution, through dglaunch's backend",
    "optimizations": "each optimization on and off: time, memory, difference in the image",
    "lora": "images/s of a table with eight LoRAs shuffled, the same sorted, and without LoRA",
    "true_size": "a published model's true size on a GPU: each flag's speed, memory beside the plan, pixels, halving, idle share",
    "end_to_end": "dglaunch against a plain loop, accelerate and diffgentor",
}


def main(words: Sequence[str]) -> int:
    """The bench that the first word names; its module holds `Options`, `run`, `COLUMNS` and `plot`."""
    usage = "usage: python -m kernels_bench BENCH [flags]\n\n" + "\n".join(f"  {n:15}{t}" for n, t in BENCHES.items())
    if not words or words[0] in ("-h", "--help"):
        print(usage)
        return 0 if words else 2
    if words[0] not in BENCHES:
        near = difflib.get_close_matches(words[0], BENCHES, n=1)
        print(
            f"There is no bench {words[0]!r}{f'; the nearest is {near[0]}' if near else ''}.\n{usage}", file=sys.stderr
        )
        return 2
    return measure.main(words[0], importlib.import_module(f"kernels_bench.{words[0]}"), words[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
