"""The files of examples/ for Kubernetes and SkyPilot: against the schemas of what reads them, and dglaunch's own flags."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from dglaunch.environment import known_flags
from support.commands import ROOT, SUPPORT

jsonschema = pytest.importorskip("jsonschema")

EXAMPLES = {
    "kubernetes_array.yaml": "kubernetes_job.json",
    "kubernetes_elastic.yaml": "kubeflow_pytorchjob.json",
    "skypilot.yaml": "skypilot_task.json",
    "kubernetes_trainjob.yaml": "kubeflow_trainjob.json",
}
"""Each file, and its schema in tests/support/schemas (where it is from stands in it)."""


def problems(told: object, schema: str) -> list[str]:
    found = {path.name: json.loads(path.read_text()) for path in (SUPPORT / "schemas").glob("*.json")}
    known = Registry().with_resources(
        (name, Resource.from_contents(each, default_specification=DRAFT202012)) for name, each in found.items()
    )
    validator = jsonschema.Draft202012Validator(found[schema], registry=known)
    return [f"{'.'.join(map(str, error.path))}: {error.message}" for error in validator.iter_errors(told)]


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / "examples" / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_file_is_as_its_reader_wants_it(name: str) -> None:
    assert problems(read(name), EXAMPLES[name]) == []


def test_the_schemas_see_a_mistake() -> None:
    job, elastic, task, train = (read(name) for name in EXAMPLES)
    job["spec"]["template"]["spec"]["containers"][0]["enviroment"] = []
    elastic["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"][0]["args"] = "--nnodes 1:4"
    task["resources"]["accelerator"] = "H100"
    train["spec"]["trainer"]["numNode"] = 4
    wrong = ("enviroment", "--nnodes", "accelerator", "numNode")
    for told, schema, text in zip((job, elastic, task, train), EXAMPLES.values(), wrong):
        assert any(text in problem for problem in problems(told, schema)), schema


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.stem)
def test_what_they_start_is_a_command_of_dglaunch(path: Path) -> None:
    assert path.name in EXAMPLES, "a new file needs its schema"
    (command,) = commands(read(path.name))
    flags = {word.partition("=")[0].removeprefix("--") for word in command if word.startswith("--")}
    assert command[0] == "t2i" and {"model_name", "prompts_file", "output_dir"} <= flags <= known_flags()


def test_shares_are_as_many_as_there_are_pods() -> None:
    job = read("kubernetes_array.yaml")["spec"]
    (command,) = commands(read("kubernetes_array.yaml"))
    assert int(command[command.index("--num_nodes") + 1]) == job["completions"] == job["parallelism"]


def commands(told: object) -> list[list[str]]:
    """The words behind `dglaunch` in any text or list of arguments."""
    if isinstance(told, dict):
        return [words for value in told.values() for words in commands(value)]
    if isinstance(told, list) and "dglaunch" in told:
        return [told[told.index("dglaunch") + 1 :]]
    if isinstance(told, list):
        return [words for value in told for words in commands(value)]
    if isinstance(told, str) and (found := re.search(r"\bdglaunch (t2i|edit) .*", told, re.DOTALL)):
        return [shlex.split(found[0].replace("\\\n", " "))[1:]]
    return []
