"""--config: a job in a file. The line wins over variables, these over the file; what is wrong in it is told as of flags."""

import json
from pathlib import Path

import pytest

from dglaunch import T2IConfig
from dglaunch.cli.job_file import MOST_BYTES
from dglaunch.cli.main import main
from dglaunch.run.python_api import t2i
from support.commands import dglaunch
from support.results import ledger, run_json

JOB = {
    "job.yaml": "# a job\nbackend: fake\nprompt: a red fox\nnum-inference-steps: 4\nguidance_scale: 2.5\nseed: 007\ngallery: yes\nheight: null\n",
    "job.yml": "{backend: fake, prompt: 'a red fox', num_inference_steps: 4, guidance_scale: 2.5, seed: 7, gallery: true}",
    "job.toml": 'backend = "fake"\nprompt = "a red fox"\nnum_inference_steps = 4\nguidance_scale = 2.5\nseed = 7\ngallery = true\n',
    "job.json": '{"backend": "fake", "prompt": "a red fox", "num_inference_steps": 4, "guidance_scale": 2.5, "seed": 7, "gallery": true, "height": null}',
}
"""One job, in all the forms."""


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*words: str, **variables: str) -> str:
    ended = dglaunch(*words, cwd=Path.cwd(), **variables)
    assert ended.code == 0, ended.output
    return ended.output


def refused(text: str, name: str = "job.yaml", *words: str, **variables: str) -> str:
    """What is said of a file with this text; nothing was made."""
    Path(name).write_text(text)
    ended = dglaunch("t2i", "--config", name, *words, cwd=Path.cwd(), **variables)
    assert ended.code == 2 and "Traceback" not in ended.output and not Path("outputs").exists(), ended.output
    assert ended.output.startswith("dglaunch: --config " + name) and ended.output.count("\n") == 1, ended.output
    return ended.output


@pytest.mark.parametrize("name", JOB)
def test_a_job_in_a_file_is_the_job_of_its_flags(name: str) -> None:
    Path(name).write_text(JOB[name])
    run("t2i", "--config", name)
    config = run_json(Path("outputs"))["config"]
    assert {key: entry["value"] for key, entry in config.items() if entry["from"] == name} == {
        "backend": "fake", "prompt": "a red fox", "num_inference_steps": 4, "guidance_scale": 2.5, "seed": 7, "gallery": True,
    }  # fmt: skip
    assert ledger(Path("outputs"))[0]["prompt"] == "a red fox"


def test_the_line_wins_over_a_variable_and_this_over_the_file() -> None:
    Path("job.yaml").write_text(JOB["job.yaml"])
    run("t2i", "--config", "job.yaml", "--guidance_scale", "3", "--no_gallery", DG_GUIDANCE_SCALE="9", DG_SEED="5")
    config = run_json(Path("outputs"))["config"]
    assert config["guidance_scale"] == {"value": 3.0, "from": "flag"}
    assert config["seed"] == {"value": 5, "from": "DG_SEED"}
    assert config["num_inference_steps"] == {"value": 4, "from": "job.yaml"}
    assert config["gallery"] == {"value": False, "from": "flag"} and not Path("outputs/gallery.html").exists()


def test_a_prompt_on_the_line_is_instead_of_the_file_s_prompts() -> None:
    Path("job.yaml").write_text("backend: fake\nprompts_file: nowhere.jsonl\n")
    run("t2i", "--config", "job.yaml", "--prompt", "a cat")
    run("t2i", "--config", "job.yaml", "--output_dir", "two", DG_PROMPT="a dog")
    assert [ledger(Path(name))[0]["prompt"] for name in ("outputs", "two")] == ["a cat", "a dog"]


def test_run_json_is_given_back_as_it_is() -> None:
    run("t2i", "--backend", "fake", "--prompt", "a red fox", "--seed", "3", "--output_dir", "out")
    assert "1 there before" in run("t2i", "--config", "out/run.json")
    run("t2i", "--config", "out/run.json", "--output_dir", "again")
    told = {key: entry for key, entry in run_json(Path("again"))["config"].items() if entry["from"] != "default"}
    assert told.keys() == {"backend", "prompt", "seed", "output_dir"} and told["seed"]["from"] == "out/run.json"
    assert Path("out/000000.png").read_bytes() == Path("again/000000.png").read_bytes()


def test_what_python_started_is_given_back_too() -> None:
    from dglaunch import BackendConfig

    t2i(T2IConfig(backend=BackendConfig(backend="fake"), prompt="x", seed=3, output_dir=Path("out")))
    run("t2i", "--config", "out/run.json", "--output_dir", "again")
    told = {key for key, entry in run_json(Path("again"))["config"].items() if entry["from"] == "out/run.json"}
    assert told == {"backend", "prompt", "seed", "num_images_per_prompt"}


def test_a_run_of_edit_is_no_job_of_t2i() -> None:
    config = {"input": {"value": "t.csv", "from": "flag"}}
    assert "a flag of edit" in refused(json.dumps({"outcome": "done", "config": config}), "run.json")


def test_paths_are_relative_to_the_working_directory() -> None:
    Path("jobs").mkdir()
    Path("jobs/job.yaml").write_text("backend: fake\nprompts_file: p.txt\noutput_dir: ~/out\n")
    Path("p.txt").write_text("a cat\n")
    run("t2i", "--config", "jobs/job.yaml", HOME=str(Path.cwd() / "home"))
    assert ledger(Path("home/out"))[0]["prompt"] == "a cat"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("guidence_scale: 3", "The nearest is --guidance_scale"),
        ("steps: 3", "it is --num_inference_steps here"),
        ("world_size: 3", "a flag of plan"),
        ("seed: abc", "seed 'abc' is not a whole number"),
        ("batch_size: 3.5", "batch_size '3.5' is not a whole number or one of auto"),
        ("output_format: gif", "output_format 'gif' is not one of png, jpg, webp"),
        ("gallery: perhaps", "gallery 'perhaps' is not a truth value"),
        ("seed: []", "seed is a list"),
        ("seed: [1, 2]", "seed is a list; --seed takes one value"),
        ("backend:\n  model_name: x", "backend (line 1) is no plain value"),
        ("seed: 1\nseed: 2", "it has seed twice (line 2)"),
        ("- seed", "it is no list of flags"),
        ("seed: [", "it is no YAML"),
        ("config: other.yaml", "a job's file leads to no other"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nprompt: [*b, *b]", "is no plain value"),
        ("prompt: &a [*a]", "is no plain value"),
        ("!!python/object/apply:os.system ['touch owned']", "it is no list of flags"),
        ("prompt: !!python/object/apply:os.system ['touch owned']", "prompt is a list"),
        ("prompt: !!python/name:os.system x", "is no plain value"),
        ("[" * 5_000, "it is nested without end"),
        ("prompt: \x01", "it is no YAML"),
        ("x" * (MOST_BYTES + 1), "it is larger than 1,048,576 bytes"),
        ("seed: " + "9" * 10_000, "9..."),
    ],
)
def test_what_is_wrong_in_a_file_is_told(text: str, said: str) -> None:
    output = refused(text)
    assert said in output and len(output) < 800
    assert not Path("owned").exists()


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("job.toml", "[backend]\nmodel_name = 'x'", "backend is no plain value"),
        ("job.toml", "seed = ", "it is no TOML"),
        ("job.toml", "seed = 2020-01-01", "seed is no plain value"),
        ("job.toml", "a = " + "[" * 50_000, "it is nested without end"),
        ("job.json", "[1]", "it is no list of flags"),
        ("job.json", '{"seed": 1.5}', "seed '1.5' is not a whole number"),
        ("job.json", "[" * 50_000, "it is no JSON that can be read"),
        ("run.json", '{"config": {"seed": 3}}', "no run of dglaunch has left it"),
        ("job.txt", "seed: 1", "name a file that ends in .yaml"),
    ],
)
def test_what_is_wrong_in_files_of_other_kinds_is_told(name: str, text: str, said: str) -> None:
    assert said in refused(text, name)


def test_a_file_that_cannot_be_read_is_told() -> None:
    Path("job.yaml").mkdir()
    Path("latin.yaml").write_bytes("prompt: Füchse".encode("latin-1"))
    for name, said in (("nowhere.yaml", "No such file"), ("job.yaml", "Is a directory"), ("latin.yaml", "not UTF-8")):
        ended = dglaunch("t2i", "--config", name, cwd=Path.cwd())
        assert ended.code == 2 and said in ended.output


@pytest.mark.parametrize("name", ["trust_remote_code", "allow_pickle"])
def test_no_file_lets_code_run(name: str) -> None:
    assert f"give --{name} on the command line" in refused(f"prompt: x\n{name}: true\n")
    entry = {"value": True, "from": "flag"}
    assert "no file turns that on" in refused(json.dumps({"config": {name: entry}}), "run.json", "--prompt", "x")
    run("plan", "t2i", "--config", "job.yaml", f"--{name}")


def test_the_record_of_a_run_does_not_say_who_gets_the_key() -> None:
    entry = {"value": "http://elsewhere/v1", "from": "flag"}
    said = refused(json.dumps({"config": {"api_base": entry}}), "run.json", "--prompt", "x", "--backend", "openai")
    assert "Give --api_base on the command line" in said
    Path("job.yaml").write_text("prompt: x\nbackend: openai\nmodel_name: gpt-image-1\napi_base: http://here/v1\n")
    run("plan", "t2i", "--config", "job.yaml")


def test_a_command_around_a_job_takes_its_own_flags_from_it_too() -> None:
    Path("job.yaml").write_text("prompt: x\nworld_size: 4\n")
    assert "4 replicas" in run("plan", "t2i", "--config", "job.yaml")
    Path("slurm.yaml").write_text("prompt: x\nnodes: 4\ntime: 24:00:00\nsbatch: [--account=me, --exclusive]\n")
    script = run("slurm", "t2i", "--config", "slurm.yaml", "--seed", "3")
    assert "#SBATCH --nodes=4" in script and "#SBATCH --time=24:00:00" in script and "#SBATCH --exclusive" in script
    assert "--prompt=x" in script and "--seed 3" in script and "slurm.yaml" not in script


def test_certify_takes_its_prompts_from_the_file() -> None:
    from dglaunch.cli.certify import Setup

    Path("p.txt").write_text("a cat\n")
    Path("job.toml").write_text('prompts_file = "p.txt"\nmax_mean = 3\n')
    setup = Setup.of("t2i", ["--config", "job.toml", "--num_gpus", "1"], {}, 0)
    assert setup.own.max_mean == 3 and setup.words == ("--prompts_file=p.txt",)
    assert "certify_prompts" in Setup.of("t2i", ["--num_gpus", "1"], {}, 0).words[1]


def test_num_gpus_of_a_file_starts_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ranks read the file themselves."""
    started: list[object] = []
    monkeypatch.setattr("dglaunch.cli.jobs.run_ranks", lambda *asked: started.extend(asked) or 0)
    Path("job.yaml").write_text("backend: fake\nprompt: x\nnum_gpus: 2\n")
    assert main(["t2i", "--config", "job.yaml"]) == 0
    assert started == [2, ["t2i", "--config", "job.yaml"]]
