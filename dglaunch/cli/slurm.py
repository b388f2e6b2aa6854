"""`dglaunch slurm t2i ... --nodes 4 --gpus_per_node 8 [--submit]`: the batch script for Slurm, filled in.

The same templates, with examples instead of arguments, make the files of the folder slurm/.
"""

import re
import shlex
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from dglaunch.cli.flags import parse, read_words, without
from dglaunch.config import COMMANDS
from dglaunch.environment import JOB_TOKEN
from dglaunch.errors import EXIT_DONE, UserError
from dglaunch.streams import Stream


@dataclass(kw_only=True, slots=True)
class SlurmConfig:
    """Where and how long a job runs. All other flags are those of the command."""

    nodes: int = 1
    """Machines."""
    gpus_per_node: int = 8
    """GPUs, and ranks, on each."""
    array: bool = False
    """Independent nodes as a job array, with no rendezvous: each starts when Slurm has room for it."""
    partition: str | None = None
    """Slurm's partition. Default: the cluster's."""
    time: str = "24:00:00"
    """Time limit of each start; what is left then goes back to the queue."""
    cpus_per_gpu: int = 4
    """Cores for each rank: loading, and encoding images."""
    venv: Path | None = None
    """Virtual environment to activate on the nodes. Default: what is active when the job is submitted, or this command's."""
    job_name: str = "dglaunch"
    """Name in the queue, and of the log file."""
    max_requeues: int = 20
    """How often the job may put itself back into the queue."""
    sbatch: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = field(default=())
    """A further option for sbatch, e.g. --sbatch=--account=me; may be given several times."""
    submit: bool = False
    """Hand the script to sbatch instead of printing it."""

    def __post_init__(self) -> None:
        for name in ("nodes", "gpus_per_node", "cpus_per_gpu"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} is {getattr(self, name)}; it must be 1 or more.")
        for name in ("partition", "time", "venv", "job_name", "sbatch"):
            _refuse_line_breaks(name, getattr(self, name))


def _refuse_line_breaks(name: str, value: str | Path | tuple[str, ...] | None) -> None:
    """What stands behind #SBATCH ends with its line: the next one would be a command of the script."""
    for text in value if isinstance(value, tuple) else [str(value or "")]:
        if any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in text):
            raise UserError(f"--{name} {text!r} holds a line break or another control character; give it without.")


KINDS: dict[str, dict[str, str]] = {
    "one_node": {"what": "dglaunch on one node.", "template": "base.sbatch.j2"},
    "multi_node": {
        "what": "dglaunch on several nodes that form one world: rank 0 writes all images.",
        "template": "multi_node.sbatch.j2",
    },
    "array": {
        "what": "dglaunch on independent nodes: each takes its share of the prompts, and waits for no other.",
        "template": "base.sbatch.j2",
        "node_flags": ' \\\n  --node_rank "$SLURM_ARRAY_TASK_ID" --num_nodes "$SLURM_ARRAY_TASK_COUNT"',
        "status_flags": ' --node_rank "$SLURM_ARRAY_TASK_ID"',
    },
}

EXAMPLES: dict[str, tuple[str, SlurmConfig, list[str]]] = {
    "one_node": ("one_node", SlurmConfig(), ["t2i"]),
    "multi_node": ("multi_node", SlurmConfig(nodes=4), ["t2i"]),
    "array": ("array", SlurmConfig(nodes=4, array=True), ["t2i"]),
    "edit": ("one_node", SlurmConfig(), ["edit"]),
}
EXAMPLE_ARGUMENTS = {
    "t2i": ["t2i", "--model_name", "black-forest-labs/FLUX.1-dev", "--prompts_file", "prompts.jsonl"],
    "edit": ["edit", "--model_name", "black-forest-labs/FLUX.1-Kontext-dev", "--input", "edits.csv"],
}


def slurm(words: Sequence[str], environ: Mapping[str, str]) -> int:
    """Print the batch script of a job, or submit it (`dglaunch slurm t2i ... [--submit]`)."""
    cluster, rest = read_words(
        SlurmConfig,
        "dglaunch slurm t2i",
        words[1:],
        return_unknown_args=True,
        description="Print a batch script for Slurm that runs a command of dglaunch, with the command's own flags.",
    )
    command = rest[0] if rest else ""
    if command not in COMMANDS:
        raise UserError(f"Name the command to run first: dglaunch slurm {' or '.join(COMMANDS)} [flags].")
    config, _ = parse(COMMANDS[command], rest[1:], environ, f"dglaunch slurm {command}")
    if config.num_gpus is not None or config.num_nodes is not None:
        raise UserError(
            "--num_gpus, --num_nodes and --node_rank are the script's to set; give --nodes and --gpus_per_node instead "
            "(--array: independent nodes)."
        )
    cluster.venv = cluster.venv or _virtual_environment(environ)
    # The token is a secret, and scripts are shown around; sbatch hands it on from the environment.
    variables = {k: value for k, value in sorted(environ.items()) if k.startswith("DG_") and k != JOB_TOKEN}
    script = render(_kind_of(cluster), cluster, rest, config.output_dir, variables)
    if not cluster.submit:
        Stream(error=False).hand_over(script)
        return EXIT_DONE
    return _submit(script)


def _kind_of(cluster: SlurmConfig) -> str:
    if cluster.array:
        return "array"
    return "multi_node" if cluster.nodes > 1 else "one_node"


def _virtual_environment(environ: Mapping[str, str]) -> Path | None:
    """The virtual environment that runs this, if it is not activated: the script's `python` would be another one."""
    if sys.prefix == sys.base_prefix:
        return None
    python = shutil.which("python", path=environ.get("PATH", ""))
    is_activated = python is not None and Path(python).parent == Path(sys.prefix) / "bin"
    return None if is_activated else Path(sys.prefix)


def _submit(script: str) -> int:
    try:
        return subprocess.run(["sbatch"], input=script.encode("utf-8", "surrogateescape"), check=False).returncode
    except FileNotFoundError:
        raise UserError("There is no sbatch on this machine; print the script without --submit and copy it.") from None


def render(
    kind: str,
    cluster: SlurmConfig,
    arguments: Sequence[str],
    output_dir: Path,
    variables: Mapping[str, str] | None = None,
    file_name: str | None = None,
) -> str:
    """Return one batch script.

    Args:
        kind: a key of KINDS.
        cluster: partition, nodes, time, ...
        arguments: the command and its flags; --output_dir is taken out, as the script needs it too.
        output_dir: where the images go.
        variables: DG_* variables that the job needs.
        file_name: named in the script's head.
    """
    import jinja2

    loader = jinja2.PackageLoader("dglaunch.cli", "slurm_templates")
    jinja = jinja2.Environment(
        loader=loader, undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False
    )
    jinja.filters |= {"quote": shlex.quote, "sbatch_quote": sbatch_quote, "sbatch_option": sbatch_option}
    settings = {name: getattr(cluster, name) for name in SlurmConfig.__dataclass_fields__}
    settings["venv"] = str(cluster.venv or "")
    about = {"node_flags": "", "status_flags": "", **KINDS[kind]}
    return jinja.get_template(KINDS[kind]["template"]).render(
        **settings,
        **about,
        job_nodes=1 if cluster.array else cluster.nodes,
        file_name=file_name or "THIS_FILE",
        remark="(stopped by its time limit or preempted, it goes back to the queue and resumes)",
        output_dir=str(output_dir),
        variables=variables or {},
        argument_lines=_lines(without(arguments, "output_dir")),
    )


def sbatch_quote(text: str) -> str:
    """A value behind #SBATCH. Slurm reads quotes there, and a backslash in them, but is no shell: it knows no 'a'"b"."""
    if re.fullmatch(r"[\w@%+=:,./~-]+", text, re.ASCII) or _is_quoted(text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def sbatch_option(text: str) -> str:
    """An option of --sbatch: --name=value, or -n value."""
    name, sign, value = text.partition("=") if "=" in text.split(" ")[0] else text.partition(" ")
    return name + sign + sbatch_quote(value) if value else text


def _is_quoted(text: str) -> bool:
    """By the user, for a script, as a whole."""
    return re.fullmatch(r'"[^"\\]*"|\'[^\'\\]*\'', text) is not None


def _lines(arguments: Sequence[str]) -> list[str]:
    """The command on a line, then each flag with its values."""
    lines: list[str] = []
    for word in arguments:
        if word.startswith("--") or not lines:
            lines.append(shlex.quote(word))
        else:
            lines[-1] += " " + shlex.quote(word)
    return lines


def example(name: str) -> str:
    """Return the file slurm/NAME.sbatch."""
    kind, cluster, (command,) = EXAMPLES[name]
    return render(kind, cluster, EXAMPLE_ARGUMENTS[command], Path("outputs"), file_name=f"{name}.sbatch")
