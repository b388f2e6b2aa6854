"""Requests/s of one rank with the API backends, against concurrency / latency and against the bare SDK with as many threads.

    PYTHONPATH=tests python -m support.api_bench [--rounds 3] [--requests 800] [--latency 0.05] [--concurrency 16]

The server is a process of its own and answers each request so long after its arrival. The two contenders take turns, so
that what else the machine does falls on both; each is a fresh process, timed without its start (dglaunch from its first
request to its last image on the disk, as run.json has it). Both read input images from files and leave whole images.
The inputs are 64x64 (8 kB), the answers 32x32: large ones would measure the loopback interface and base64.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
CASES = {
    "openai t2i": ("openai", 0),
    "openai edit, 1 image": ("openai", 1),
    "openai edit, 3 images": ("openai", 3),
    "google_genai t2i": ("google_genai", 0),
    "google_genai edit, 1 image": ("google_genai", 1),
    "google_genai edit, 3 images": ("google_genai", 3),
}


def bare(backend: str, address: str, rows: Path, concurrency: int) -> None:
    """The SDK alone: threads over one iterator, nothing kept. Prints requests/s."""
    import base64

    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    key = os.environ["OPENAI_API_KEY"]

    def files(line: dict[str, Any]) -> list[tuple[str, bytes]]:
        return [(name, (rows.parent / name).read_bytes()) for name in line.get("input_images", ())]

    def kind(name: str) -> str:
        return f"image/{name.rpartition('.')[2].replace('jpg', 'jpeg')}"

    if backend == "openai":
        import openai

        client = openai.OpenAI(api_key=key, base_url=address, max_retries=0)
        client.models.retrieve("m")

        def ask(line: dict[str, Any]) -> bytes:
            if given := files(line):
                images = [(name, data, kind(name)) for name, data in given]
                answer = client.images.edit(model="m", prompt=line["instruction"], n=1, image=images)
            else:
                answer = client.images.generate(model="m", prompt=line["prompt"], n=1)
            return base64.b64decode(answer.data[0].b64_json)
    else:
        from google import genai
        from google.genai import types

        google = genai.Client(api_key=key, http_options=types.HttpOptions(base_url=address))
        google.models.get(model="m")

        def ask(line: dict[str, Any]) -> bytes:
            parts = [types.Part.from_bytes(data=data, mime_type=kind(name)) for name, data in files(line)]
            contents = [*parts, line.get("prompt") or line["instruction"]]
            config = types.GenerateContentConfig(response_modalities=["IMAGE"])
            answer = google.models.generate_content(model="m", contents=contents, config=config)
            return answer.candidates[0].content.parts[0].inline_data.data

    shared, lock = iter(lines), threading.Lock()

    def work() -> None:
        while True:
            with lock:
                line = next(shared, None)
            if line is None:
                return
            assert ask(line)

    threads = [threading.Thread(target=work) for _ in range(concurrency)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(len(lines) / (time.perf_counter() - start))


def ours(backend: str, address: str, rows: Path, concurrency: int, out: Path) -> float:
    """dglaunch's images/s."""
    from support.api_servers import KEYS
    from support.remote_runs import MODELS

    table = ["edit", "--input"] if rows.stem == "edits" else ["t2i", "--prompts_file"]
    words = [*table, str(rows), "--backend", backend, "--model_name", MODELS[backend], "--api_base", address]
    words += ["--num_processes", str(concurrency), "--output_dir", str(out)]
    command = [sys.executable, "-m", "dglaunch", *words]
    subprocess.run(command, env=os.environ | KEYS, cwd=ROOT, check=True, capture_output=True)
    return json.loads((out / "run.json").read_text())["images_per_s"]


def serve(pipe: Any, latency: float) -> None:
    from support.api_servers import ApiServer

    with ApiServer(latency) as server:
        while True:
            pipe.send((server.openai, server.google, server.highest))
            pipe.recv()


def main() -> None:
    from support.api_servers import KEYS
    from support.remote_runs import edits_of, rows_of

    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=800)
    parser.add_argument("--latency", type=float, default=0.05)
    parser.add_argument("--concurrency", type=int, default=16)
    given = parser.parse_args()
    ours_end, theirs = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(theirs, given.latency), daemon=True)
    server.start()
    addresses = dict(zip(("openai", "google_genai"), ours_end.recv()))
    ideal = given.concurrency / given.latency
    print(
        f"of {ideal:.0f} requests/s ({given.concurrency} at a time, {given.latency * 1000:.0f} ms each); median (best)"
    )
    with tempfile.TemporaryDirectory() as name:
        folder, prompts = Path(name), [f"prompt {n}" for n in range(given.requests)]
        for case, (backend, count) in CASES.items():
            rows = edits_of(folder, prompts, count)[0] if count else rows_of(folder, prompts)
            shares: dict[str, list[float]] = {"bare SDK": [], "dglaunch": []}
            for turn in range(given.rounds):
                arguments = (backend, addresses[backend], rows, given.concurrency)
                command = [sys.executable, __file__, "bare", *map(str, arguments)]
                ended = subprocess.run(command, env=os.environ | KEYS, check=True, capture_output=True, text=True)
                shares["bare SDK"].append(float(ended.stdout) / ideal)
                shares["dglaunch"].append(ours(*arguments, folder / f"{case} {turn}") / ideal)
            told = [f"{who} {statistics.median(found):.1%} ({max(found):.1%})" for who, found in shares.items()]
            print(f"{case:28} {'   '.join(told)}   load {os.getloadavg()[0]:.0f}", flush=True)
    ours_end.send("most?")
    print(f"most requests at a time that the server saw: {ours_end.recv()[2]}")
    server.terminate()


if __name__ == "__main__":
    if sys.argv[1:2] == ["bare"]:
        bare(sys.argv[2], sys.argv[3], Path(sys.argv[4]), int(sys.argv[5]))
    else:
        main()
