"""`dglaunch slurm t2i ... --nodes 4 --gpus_per_node 8 [--submit]`: the batch script for Slurm, filled in.

The same templates, with examples instead of arguments, make the files of the folder slurm/.
"""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from dglaunch.cli.flags import job_of, read_around, without
from dglaunch.cli.own_flags import SlurmFlags
from dglaunch.environment import JOB_TOKEN
from dglaunch.errors import EXIT_DONE, UserError
from dglaunch.streams import Stream

KINDS: dict[str, dict[str, str]] = {
    "one_node": {"what": "dglaunch on one node.", "template": "base.sbatch.j2"},
    "multi_node": {
        "what": "dglaunch on several nodes that form one world: rank 0 writes all images.",
        "template": "multi_node.sbatch.j2",
    },
    "elastic": {
        "what": "dglaunch on nodes that come and go: those that are there form one world, and form it anew when one joins or dies.",
        "template": "elastic.sbatch.j2",
        "max_restarts": "20",
    },
    "array": {
        "what": "dglaunch on independent nodes: each takes its share of the prompts, and waits for no other.",
        "template": "base.sbatch.j2",
        "node_flags": ' \\\n  --node_rank "$SLURM_ARRAY_TASK_ID" --num_nodes "$SLURM_ARRAY_TASK_COUNT"',
        "status_flags": ' --node_rank "$SLURM_ARRAY_TASK_ID"',
    },
}

EXAMPLES: dict[str, tuple[str, SlurmFlags, list[str]]] = {
    "one_node": ("one_node", SlurmFlags(), ["t2i"]),
    "multi_node": ("multi_node", SlurmFlags(nodes=4), ["t2i"]),
    "elastic": ("elastic", SlurmFlags(nodes=4, elastic=True, partition="preemptible"), ["t2i"]),
    "array": ("array", SlurmFlags(nodes=4, array=True), ["t2i"]),
    "edit": ("one_node", SlurmFlags(), ["edit"]),
}
EXAMPLE_ARGUMENTS = {
    "t2i": ["t2i", "--model_name", "black-forest-labs/FLUX.1-dev", "--prompts_file", "prompts.jsonl"],
    "edit": ["edit", "--model_name", "black-forest-labs/FLUX.1-Kontext-dev", "--input", "edits.csv"],
}


def slurm(words: Sequence[str], environ: Mapping[str, str]) -> int:
    """Print the batch script of a job, or submit it (`dglaunch slurm t2i ... [--submit]`)."""
    job, _ = job_of(words)
    asked = read_around(SlurmFlags, words, environ)
    config, cluster = asked.config, asked.own
    if config.num_gpus is not None or config.num_nodes is not None:
        raise UserError(
            "--num_gpus, --num_nodes and --node_rank are the script's to set; give --nodes and --gpus_per_node instead "
            "(--array: independent nodes)."
        )
    cluster.venv = cluster.venv or _virtual_environment(environ)
    # The token is a secret, and scripts are shown around; sbatch hands it on from the environment.
    variables = {k: value for k, value in sorted(environ.items()) if k.startswith("DG_") and k != JOB_TOKEN}
    script = render(_kind_of(cluster), cluster, [str(job), *asked.words], config.output_dir, variables)
    if not cluster.submit:
        Stream(error=False).hand_over(script)
        return EXIT_DONE
    return _submit(script)


def _kind_of(cluster: SlurmFlags) -> str:
    if cluster.elastic:
        return "elastic"
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
    cluster: SlurmFlags,
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
    settings = {name: getattr(cluster, name) for name in SlurmFlags.__dataclass_fields__}
    settings["venv"] = str(cluster.venv or "")
    about = {"node_flags": "", "status_flags": "", "max_restarts": "1", **KINDS[kind]}
    return jinja.get_template(KINDS[kind]["template"]).render(
        **settings,
        **about,
        job_nodes=1 if cluster.array or cluster.elastic else cluster.nodes,
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
