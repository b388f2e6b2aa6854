"""Completion: the scripts know every command, flag and value, and each shell that is installed answers by its own."""

import shutil
import subprocess
from pathlib import Path

import pytest

from dglaunch.cli.completion import Command, bash, commands, fish, zsh
from dglaunch.cli.flag_table import Flag
from dglaunch.cli.main import COMMANDS, TOOLS
from dglaunch.config import COMMANDS as JOBS
from dglaunch.config import leaf_fields
from support.commands import dglaunch

SHELLS = ("bash", "zsh", "fish")
LINES = {
    "dglaunch pl": {"plan"},
    "dglaunch plan ": {"t2i", "edit"},
    "dglaunch plan t2i --wor": {"--world_size"},
    "dglaunch plan t2i --num_i": {"--num_images_per_prompt", "--num_inference_steps"},
    "dglaunch certify --max_": {"--max_difference", "--max_mean", "--max_share"},
    "dglaunch t2i --backend x": {"xdit"},
    "dglaunch t2i --output_format ": {"png", "jpg", "webp"},
    "dglaunch t2i --output_dir some": {"somewhere"},
    "dglaunch t2i --seed ": set(),
    "dglaunch edit --prompts_": set(),
    "dglaunch verify --rep": {"--repair"},
    "dglaunch verify some": {"somewhere"},
    "dglaunch completion z": {"zsh"},
}
"""What was typed -> what Tab offers."""


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_has_every_command_flag_and_value(shell: str) -> None:
    script = dglaunch("completion", shell).output
    names = {item.name for config_type in JOBS.values() for item in leaf_fields(config_type)} | {"world_size", "config"}
    assert not [name for name in [*COMMANDS, *TOOLS, *names] if name not in script]
    assert "first_block_cache taylor_seer" in script and "None" not in script


def test_commands_are_those_of_help_with_a_line_each() -> None:
    assert [command.name for command in commands()] == [*COMMANDS, *TOOLS]
    assert not [command.name for command in commands() if not command.about]


def test_a_shell_that_is_none_is_told() -> None:
    ended = dglaunch("completion", "tcsh")
    assert ended.code == 2 and "is not one of bash, zsh, fish" in ended.output


def asked_of(shell: str, folder: Path, lines: list[str]) -> dict[str, set[str]]:
    """What the shell itself offers for each line, with the script in a file."""
    script = folder / f"completion.{shell}"
    script.write_text(dglaunch("completion", shell).output)
    (folder / "somewhere").mkdir()
    done = subprocess.run(
        [shell, *(["-f"] if shell == "zsh" else []), "-c", ASK[shell].format(script=script), shell, *lines],
        cwd=folder, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0 and not done.stderr, done.stderr
    answers = [answer.splitlines() for answer in done.stdout.split("#\n")[1:]]
    return {line: {word.partition("\t")[0].rstrip("/ ") for word in words} for line, words in zip(lines, answers)}


ASK = {
    "bash": """
        source {script}
        for line; do
            read -ra COMP_WORDS <<< "$line"; [[ $line == *' ' ]] && COMP_WORDS+=('')
            COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _dglaunch; echo '#'; printf '%s\\n' "${{COMPREPLY[@]}}"
        done""",
    "fish": "source {script}; for line in $argv[2..]; echo '#'; complete -C $line; end",
}


@pytest.mark.parametrize("shell", ASK)
def test_what_tab_offers(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    assert asked_of(shell, tmp_path, list(LINES)) == {
        line: words or ({""} if shell == "bash" else set()) for line, words in LINES.items()
    }


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_is_one_of_the_shell_s(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "script").write_text(dglaunch("completion", shell).output)
    done = subprocess.run([shell, "-n", tmp_path / "script"], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr


def test_bash_s_script_is_what_shellcheck_wants(tmp_path: Path) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed (apt-get install shellcheck)")
    script = tmp_path / "script"
    script.write_text(dglaunch("completion", "bash").output)
    done = subprocess.run(["shellcheck", "--shell", "bash", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_texts_of_flags_are_quoted() -> None:
    text = 'It\'s [one]: $(two) `three` \\ "four"'
    odd = Command(name="odd", about="it's odd", flags={"flag": Flag(name="flag", kind=str, told=lambda: text)})
    for shell, write in (("zsh", zsh), ("fish", fish), ("bash", bash)):
        if shutil.which(shell) is not None:
            done = subprocess.run([shell, "-n"], input=write([*commands(), odd]), capture_output=True, text=True)
            assert done.returncode == 0 and not done.stderr, (shell, done.stderr)
