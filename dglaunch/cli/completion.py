"""`dglaunch completion bash|zsh|fish`: what the Tab key needs to know, as a script of that shell.

The script has all commands, flags and values in itself, so Tab starts no Python.
"""

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dglaunch.cli.flag_table import Flag, flags_of, flags_of_tool
from dglaunch.cli.main import COMMANDS, TOOLS, USAGE, imported
from dglaunch.cli.own_flags import AROUND, OwnFlags
from dglaunch.config import COMMANDS as JOBS
from dglaunch.environment import kinds_of, takes_several
from dglaunch.errors import EXIT_DONE
from dglaunch.streams import Stream

FILES = {Path, tuple[Path, ...]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What may follow a command."""

    name: str
    about: str
    jobs: tuple[str, ...] = ()
    """The job that it is around stands behind it: plan t2i."""
    flags: Mapping[str, Flag]
    """Its own, without those of the job."""

    @property
    def named(self) -> list[Flag]:
        return [flag for flag in self.flags.values() if not flag.by_place]

    @property
    def words(self) -> tuple[str, ...]:
        """Those that may stand behind it at once."""
        places = [flag for flag in self.flags.values() if flag.by_place]
        return self.jobs or tuple(choice for flag in places[:1] for choice in flag.choices)


def completion(shell: Literal["bash", "zsh", "fish"], /) -> int:
    """Print what a shell needs to complete dglaunch's commands, flags and values.

    bash: dglaunch completion bash > ~/.local/share/bash-completion/completions/dglaunch

    zsh: dglaunch completion zsh > ~/.zfunc/_dglaunch, with `fpath+=~/.zfunc` before `compinit` in ~/.zshrc

    fish: dglaunch completion fish > ~/.config/fish/completions/dglaunch.fish

    Args:
        shell: bash, zsh or fish.
    """
    Stream(error=False).hand_over({"bash": bash, "zsh": zsh, "fish": fish}[shell](commands()))
    return EXIT_DONE


def commands() -> list[Command]:
    """Return all commands, as --help has them."""
    return [*map(_with_job, COMMANDS), *map(_tool, TOOLS)]


def _with_job(name: str) -> Command:
    if name in JOBS:
        return Command(name=name, about=_about(name), flags=flags_of(JOBS[name], OwnFlags))
    around = AROUND[name]
    return Command(name=name, about=_about(name), flags=flags_of(around.own), jobs=around.jobs)


def _tool(name: str) -> Command:
    return Command(name=name, about=_about(name), flags=flags_of_tool(imported(TOOLS[name])))


def _about(name: str) -> str:
    """What `dglaunch --help` says of a command, up to the end of the line."""
    found = re.search(rf"^  {name}\b.*?(?:  +|\n +)(.+)$", USAGE, re.MULTILINE)
    return found[1].rstrip(",;:") if found else ""


def _takes_files(flag: Flag) -> bool:
    return any(kind in FILES for kind in kinds_of(flag.kind))


# -- bash ---------------------------------------------------------------------------------------------------------


def bash(known: Sequence[Command]) -> str:
    """Return the script for bash."""
    return f"""\
# dglaunch completion bash > ~/.local/share/bash-completion/completions/dglaunch
_dglaunch() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD-1]}} command=${{COMP_WORDS[1]}} words='' first=''
    if [[ $current == = ]]; then
        current=
    elif [[ $previous == = ]]; then
        previous=${{COMP_WORDS[COMP_CWORD-2]}}
    fi
    COMPREPLY=()
    if (( COMP_CWORD == 1 )); then
        mapfile -t COMPREPLY < <(compgen -W {_quoted(command.name for command in known)} -- "$current")
        return
    fi
    case $previous in
{_bash_values(known)}
    esac
    case $command in
{_bash_flags(known)}
    esac
    case " ${{COMP_WORDS[*]:2}} " in
{_bash_jobs(known)}
    esac
    if [[ $current == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
    elif [[ -n $first ]] && (( COMP_CWORD == 2 )); then
        mapfile -t COMPREPLY < <(compgen -W "$first" -- "$current")
    else
        mapfile -t COMPREPLY < <(compgen -f -- "$current")
        compopt -o filenames 2> /dev/null
    fi
}}
complete -F _dglaunch dglaunch
"""


def _bash_values(known: Sequence[Command]) -> str:
    """What stands behind a flag: some words, a file, or what nobody can guess. A flag is the same for all commands."""
    flags = {flag.name: flag for command in known for flag in command.named}
    cases = [
        f'        --{name})\n            mapfile -t COMPREPLY < <(compgen -W {_quoted(flag.choices)} -- "$current")\n            return ;;'
        for name, flag in flags.items()
        if flag.choices
    ]
    files = "|".join(f"--{name}" for name, flag in flags.items() if _takes_files(flag))
    unknown = "|".join(
        f"--{name}" for name, flag in flags.items() if not (flag.choices or flag.is_switch or _takes_files(flag))
    )
    cases.append(
        f'        {files})\n            mapfile -t COMPREPLY < <(compgen -f -- "$current")\n'
        "            compopt -o filenames 2> /dev/null\n            return ;;"
    )
    return "\n".join([*cases, f"        {unknown})\n            return ;;"])


def _bash_flags(known: Sequence[Command]) -> str:
    """What may stand behind each command: its flags, and first perhaps one of some words."""
    cases = []
    for command in known:
        flags = _quoted([*(f"--{flag.name}" for flag in command.named), "--help"])
        first = f" first={_quoted(command.words)}" if command.words else ""
        cases.append(f"        {command.name}) words={flags}{first} ;;")
    return "\n".join(cases)


def _bash_jobs(known: Sequence[Command]) -> str:
    """The flags of the job that stands behind a command around it."""
    return "\n".join(
        f"        *' {command.name} '*)\n            words+={_quoted(['', *(f'--{flag.name}' for flag in command.named)])} ;;"
        for command in known
        if command.name in JOBS
    )


def _quoted(words: Iterable[str]) -> str:
    return shlex.quote(" ".join(words))


# -- zsh ----------------------------------------------------------------------------------------------------------


def zsh(known: Sequence[Command]) -> str:
    """Return the script for zsh."""
    by_name = {command.name: command for command in known}
    described = "\n".join(f"        {shlex.quote(_zsh(command.name) + ':' + command.about)}" for command in known)
    cases = []
    for command in known:
        for job in command.jobs:
            flags = {**by_name[job].flags, **command.flags}
            cases.append(_zsh_case(f"{command.name} {job}", flags.values(), ()))
        cases.append(_zsh_case(command.name, command.flags.values(), command.jobs))
    around = "|".join(command.name for command in known if command.jobs)
    jobs = "|".join(JOBS)
    return f"""\
#compdef dglaunch
# dglaunch completion zsh > ~/.zfunc/_dglaunch
_dglaunch() {{
    local -a commands=(
{described}
    )
    if (( CURRENT == 2 )); then
        _describe command commands
        return
    fi
    shift words
    (( CURRENT-- ))
    local command=$words[1]
    if [[ $command == ({around}) && CURRENT -gt 2 && $words[2] == ({jobs}) ]]; then
        command="$command $words[2]"
        shift words
        (( CURRENT-- ))
    fi
    case $command in
{chr(10).join(cases)}
    esac
}}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    _dglaunch "$@"
else
    compdef _dglaunch dglaunch
fi
"""


def _zsh_case(name: str, flags: Iterable[Flag], jobs: Sequence[str]) -> str:
    entries = [f"1:job:({' '.join(jobs)})"] if jobs else []
    for flag in flags:
        values = f":{_zsh(flag.takes)}:{_zsh_values(flag)}"
        several = "*" if takes_several(flag.kind) else ""
        if flag.by_place:
            entries.append(f"{several or '1'}{values}")
        else:
            about = f"--{flag.name}{'' if flag.is_switch else '='}[{_zsh(flag.usual or flag.first_sentence)}]"
            entries.append(f"{several}{about}{'' if flag.is_switch else values}")
    lines = " \\\n".join(f"                {shlex.quote(entry)}" for entry in [*entries, "--help[What it does]"])
    return f"        {shlex.quote(name)})\n            _arguments -S \\\n{lines} ;;"


def _zsh_values(flag: Flag) -> str:
    if flag.choices:
        return f"({' '.join(flag.choices)})"
    return "_files" if _takes_files(flag) else ""


def _zsh(text: str) -> str:
    """A text within what _arguments reads."""
    return "".join(f"\\{character}" if character in "\\[]:()" else character for character in text)


# -- fish ---------------------------------------------------------------------------------------------------------


def fish(known: Sequence[Command]) -> str:
    """Return the script for fish."""
    lines = ["# dglaunch completion fish > ~/.config/fish/completions/dglaunch.fish", "complete -c dglaunch -f"]
    for command in known:
        lines.append(f"complete -c dglaunch -n __fish_use_subcommand -a {command.name} -d {shlex.quote(command.about)}")
        seen = shlex.quote(f"__fish_seen_subcommand_from {command.name}")
        if command.words:
            none_yet = shlex.quote(
                f"__fish_seen_subcommand_from {command.name}; and not __fish_seen_subcommand_from {' '.join(command.words)}"
            )
            lines.append(f"complete -c dglaunch -n {none_yet} -a {_quoted(command.words)}")
        if any(flag.by_place and _takes_files(flag) for flag in command.flags.values()):
            lines.append(f"complete -c dglaunch -n {seen} -F")
        lines += [f"complete -c dglaunch -n {seen} {_fish(flag)}" for flag in command.named]
    return "\n".join(lines) + "\n"


def _fish(flag: Flag) -> str:
    about = f"-l {flag.name} -d {shlex.quote(flag.usual or flag.first_sentence)}"
    if flag.is_switch:
        return about
    if flag.choices:
        return f"{about} -x -a {_quoted(flag.choices)}"
    return f"{about} -r -F" if _takes_files(flag) else f"{about} -x"
