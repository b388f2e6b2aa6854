"""docs/HOW_DO_I.md tells a reader what to type; here it is typed, in its order, in one folder. The fake backend stands in
for the checkpoints (DG_BACKEND=fake), one rank for torchrun's; what asks an API is planned only, what is served is interrupted
at once, and the choices of a blind page are made up."""

import gzip
import json
import re
import shlex
from contextlib import ExitStack
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dglaunch.cli.main import main
from dglaunch.output.serving import Server
from support.checkpoint_folders import checkpoint_folder
from support.commands import ROOT
from support.edit_images import SINGLE, picture, save_table
from support.hub_server import HubServer
from support.input_tables import table as sketch_table
from support.lora_files import write_lora
from support.results import ledger, run_json, write_jsonl
from support.s3_server import S3Server

PAGE = ROOT / "docs" / "HOW_DO_I.md"


FENCED = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    return re.findall(r"^ {4}(\S.*)$", FENCED.sub("", PAGE.read_text(encoding="utf-8")), re.MULTILINE)


def prepare(folder: Path) -> None:
    """The files that the page takes for granted."""
    write_jsonl(folder / "prompts.jsonl", [{"prompt": f"prompt {n}"} for n in range(5)])
    write_jsonl(folder / "evaluation_metadata.jsonl", [{"prompt": "a bench", "tag": "single_object", "include": []}])
    save_table(folder / "edits.csv", SINGLE[:3], task="make it new")
    for name in ("IMG_2.jpg", "IMG_10.jpg", "day/a.png"):
        (folder / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        picture(len(name)).save(folder / "photos" / name)
    sketches = [
        {"prompt": f"prompt {n}", "sketch": f"i{n}.png", "mask": f"m{n}.png", "edges": f"c{n}.png"} for n in range(2)
    ]
    sketch_table(folder, [*sketches, {"prompt": "from text"}], "sketches.jsonl")
    patches = [
        {"input_images": "i0.png", "instruction": "a hat", "mask": "m0.png"},
        {"input_images": "i1.png", "instruction": "night"},
    ]
    write_jsonl(folder / "patches.jsonl", patches)
    (folder / "dpg_bench" / "prompts").mkdir(parents=True)
    (folder / "dpg_bench" / "prompts" / "7.txt").write_text("a long prompt")
    (folder / "color_val.txt").write_text("a green bench and a blue bowl\n")
    (folder / "job.yaml").write_text(re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[0])
    (folder / "own_scores.py").write_text(FENCED.findall(PAGE.read_text(encoding="utf-8"))[0])
    (folder / "colleague.csv").write_text(
        "Caption;id;Seed;cfg;Sampler\na red fox;q1;7;3,5;euler\na blue bear;q2;8;3,5;euler\n"
    )
    (folder / "tables").mkdir()
    (folder / "tables" / "a.csv").write_text("Prompt,id,Seed\na red fox,q1,7\n")
    (folder / "shards").mkdir()
    for name in ("a", "b"):
        pq.write_table(
            pa.table({"prompt": [f"{name}{n}" for n in range(3)], "seed": range(3)}),
            folder / "shards" / f"{name}.parquet",
        )
    (folder / "more.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "a blue bear"}\n'))
    for seed, name in enumerate(("style", "detail")):
        write_lora(folder / f"{name}.safetensors", seed=seed)
    (folder / "by_row.csv").write_text('prompt,lora\na fox,"style:0.8,detail:0.5"\na bear,none\na cat,\n')
    (folder / "people.csv").write_text("Name,Style,Seed\nAda,oil,7\nBo,ink,8\n")


def type_in(command: str) -> int:
    words = shlex.split(command)
    assert words[0] in ("dglaunch", "torchrun"), command
    words = words[words.index("dglaunch") + 1 :]
    if "--choices" in words:
        choose(Path(words[1]), Path(words[2]), Path(words[-1]))
    if words[0] == "fetch":
        return fetch(words)
    return main(["plan", *words] if needs_no_stand_in(command) and words[0] != "plan" else words)


def needs_no_stand_in(command: str) -> bool:
    """Whether it names a backend, or needs `tiny` itself."""
    return "--backend" in command or "--scheduler" in command


def fetch(words: list[str]) -> int:
    """From a hub on loopback."""
    folder = checkpoint_folder(Path("hub"))
    with pytest.MonkeyPatch.context() as patch, HubServer({words[1]: folder}) as hub:
        hub.in_use(patch, Path("cache").resolve())
        return main(words)


def with_buckets(servers: ExitStack, variables: pytest.MonkeyPatch) -> None:
    """A store on loopback; moto's server stays until the tests end, so what a command has put there is there for the next."""
    server = servers.enter_context(S3Server())
    server.put(server.bucket("tables"), "rows/a.csv", b"prompt\na red fox\na crow\n")
    server.bucket("results")
    for name, value in server.environment.items():
        variables.setenv(name, value)


def choose(one: Path, other: Path, file: Path) -> None:
    """What the button of a blind page gives: in every row the first run's image is the better one."""
    pairs = [[row["sha256"][:16] for row in rows] for rows in zip(ledger(one), ledger(other))]
    rows = [{"index": n, "sample": 0, "among": pair, "chosen": pair[0]} for n, pair in enumerate(pairs)]
    file.write_text(json.dumps({"dglaunch": "choices", "choices": rows}))


def interrupted(server: Server) -> None:
    raise KeyboardInterrupt


def test_every_command_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(tmp_path)
    monkeypatch.setattr(Server, "serve_forever", interrupted)
    monkeypatch.chdir(tmp_path)
    for command in commands():
        with monkeypatch.context() as variables, ExitStack() as servers:
            if "s3://" in command:
                with_buckets(servers, variables)
            if not needs_no_stand_in(command):
                variables.setenv("DG_BACKEND", "fake")
            assert type_in(command) == 0, command
    assert len(commands()) > 20
    assert len(ledger(Path("out"))) == len(ledger(Path("shared"))) == len(ledger(Path("few"))) == 5
    assert [(line["seed"], line["guidance_scale"]) for line in ledger(Path("out"))[2::2]] == [(102, 1.0), (4, 5.0)]
    assert len(list(Path("out/replaced").glob("*.png"))) == 4, "three, and one by its score"
    assert len(list(Path("out/best_of_1_contrast").glob("*.png"))) == 5
    assert Path("out/000002.png").exists() and Path("variation.png").exists() and Path("edit-again.png").exists()
    assert [run_json(Path(f"from-file{suffix}"))["config"]["guidance_scale"]["value"] for suffix in ("", "-5", "-7")] == [
        None, 5.0, None,
    ]  # fmt: skip
    assert sorted(line["seed"] for line in ledger(Path("from-file-7"))) == [7, 8, 9, 10, 11]
    assert Path("from-file/gallery.html").exists() and not Path("from-file-5/gallery.html").exists()
    assert all(Path(name).exists() for name in ("compare.html", "blind.html", "results.html", "sheet.webp"))
    assert sorted(path.name for path in Path("night").glob("*.png")) == ["IMG_10.png", "IMG_2.png"]
    assert Path("models/flux/transformer/config.json").exists() and len(ledger(Path("staged"))) == 5
    assert [line.get("strength") for line in ledger(Path("begun"))] == [0.7, 0.7, None]
    assert len(ledger(Path("strengths"))) == 9 and all("mask_sha256" in line for line in ledger(Path("painted"))[:2])
    assert Path("snow/a.png").exists() and Path("one/IMG_2.png").exists()
    assert "Steps: 1, " in Image.open("viewers/000000.png").text["parameters"]  # type: ignore[attr-defined]
    views = ("bench/geneval/00000/samples/00003.png", "dpg/dpg/7.png", "out/webdataset/00000.tar")
    assert all(Path(name).exists() for name in views) and len(list(Path("color/t2i_compbench/samples").iterdir())) == 10
    by_index = {name: sorted(ledger(Path(name)), key=lambda line: line["index"]) for name in TABLES}
    assert [(line["prompt"], line["seed"], line["id"], line["cfg"]) for line in by_index["colleague"]] == [
        ("a red fox", 7, "q1", "3,5"), ("a blue bear", 8, "q2", "3,5")
    ]  # fmt: skip
    assert [(line["prompt"], line["seed"]) for line in by_index["together"]] == [("a red fox", 7), ("a blue bear", 1)]
    assert [line["prompt"] for line in by_index["people"]] == ["oil photo of Ada", "ink photo of Bo"]
    assert [(line["guidance_scale"], line["seed"]) for line in by_index["grid"]] == [
        (2, 1),
        (2, 2),
        (4, 1),
        (4, 2),
        (7, 1),
        (7, 2),
    ]
    lights = [(line["prompt"], line["light"], line["guidance_scale"], line["seed"]) for line in by_index["lights"][:3]]
    assert lights == [
        ("noon photo of Ada", "noon", 2, 7),
        ("noon photo of Ada", "noon", 4, 7),
        ("dusk photo of Ada", "dusk", 2, 7),
    ]

    assert [line["lora"] for line in by_index["by_row"]] == ["style:0.8,detail:0.5", "", "style:1,detail:1"]
    assert [line["lora"] for line in by_index["weights"][:4]] == ["", "style:0.4", "style:0.8", "style:1.2"]
    assert [line["lora"] for line in by_index["styled"]] == ["style:0.8"] * 2 + ["style:1.2"] + ["style:0.8"] * 2
    assert Path("weaker.png").exists()


TABLES = ("colleague", "together", "people", "grid", "lights", "by_row", "weights", "styled")


def test_work_in_a_notebook(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code = "".join(FENCED.findall(PAGE.read_text(encoding="utf-8"))).replace(
        'model_name="black-forest-labs/FLUX.1-dev"', 'backend="fake"'
    )
    exec(compile(code, str(PAGE), "exec"), {})
    said = capsys.readouterr().out
    assert "a red fox 0 (64, 64)\na cat in the rain 7 (64, 64)\n" in said and "noted/000001.png')] 0\n" in said


def test_the_readme_leads_to_the_page() -> None:
    assert "(docs/HOW_DO_I.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
