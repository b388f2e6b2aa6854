"""One of two ranks of a process group that a script has made by itself, without torchrun: `support.own_world:run FOLDER RANK`
in a process that `support.ranks` forks."""

import json
from pathlib import Path


def run(folder: str, rank: str) -> int:
    main(Path(folder), int(rank))
    return 0


def main(folder: Path, rank: int) -> None:
    import torch.distributed as dist

    from dglaunch import BackendConfig, T2IConfig, images, t2i

    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    backend = BackendConfig(backend="fake")
    first, second = (
        T2IConfig(
            backend=backend,
            prompts_file=folder / "prompts.jsonl",
            output_dir=folder / name,
            batch_size=2,
            shares="static",
        )
        for name in ("first", "second")
    )
    result = t2i(first)
    seen = [finished.row["index"] for finished in images(second)]
    dist.barrier()  # the process's own group is as it was
    dist.destroy_process_group()
    found = {"outcome": result.outcome, "num_ok": result.counts.num_ok, "rows": len(result.rows), "seen": seen}
    (folder / f"rank{rank}.json").write_text(json.dumps(found))
