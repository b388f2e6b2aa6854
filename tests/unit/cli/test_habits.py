"""A flag that is not there: what people type by habit is known, else the nearest is named. Nothing is loaded for it."""

import pytest

from dglaunch.cli.flag_table import flags_of
from dglaunch.cli.habits import HABITS, told
from dglaunch.cli.own_flags import AROUND, OwnFlags
from dglaunch.config import COMMANDS, T2IConfig
from support.commands import dglaunch

T2I = flags_of(T2IConfig, OwnFlags)


@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("--resume", "start the same command again"),
        ("--dry_run", "dglaunch plan"),
        ("--log_level", "--debug"),
        ("--ulysses_degree", "DG_XDIT_ULYSSES_DEGREE"),
        ("--ring_degree", "DG_XDIT_RING_DEGREE"),
        ("--cfg_parallel", "DG_XDIT_USE_CFG_PARALLEL"),
        ("--steps", "--num_inference_steps"),
        ("--num_steps", "--num_inference_steps"),
        ("--num-steps", "--num_inference_steps"),
        ("--cfg", "--guidance_scale"),
        ("--guidance", "--guidance_scale"),
        ("--n", "--num_images_per_prompt"),
        ("-n", "--num_images_per_prompt"),
        ("--model", "--model_name"),
        ("--prompts", "--prompts_file"),
        ("--out", "--output_dir"),
        ("-o", "--output_dir"),
        ("--dtype", "--torch_dtype"),
        ("--preemptible", "--max_requeues"),
        ("--preemptable", "dglaunch slurm"),
        ("--size", "--width 1024 --height 1024"),
        ("--gpus", "--num_gpus"),
        ("--api_key", "OPENAI_API_KEY"),
        ("--promt", "The nearest is --prompt"),
        ("--stpes", "--num_inference_steps"),
        ("--world_size", "a flag of plan"),
        ("--nodes", "a flag of slurm"),
        ("--input", "a flag of edit"),
        ("--quux", "t2i --help all lists the flags"),
        ("a red fox", "A prompt stands behind --prompt"),
        ("true", "A switch takes no value"),
    ],
)
def test_what_is_said_of_a_word(word: str, named: str) -> None:
    said = told(word, T2I, "t2i")
    assert named in said and word in said and said.endswith((".", ")"))


def test_no_habit_is_a_flag_and_each_leads_to_one() -> None:
    flags = {name for config_type in COMMANDS.values() for name in flags_of(config_type)} | {"config"}
    assert not HABITS.keys() & flags, "it is a flag by now: take it out"
    assert {habit[2:] for habit in HABITS.values() if habit.startswith("--") and " " not in habit} <= flags


@pytest.mark.parametrize("command", ["t2i", "plan t2i", "rehearse t2i", "tune t2i", "certify", "slurm t2i"])
def test_every_command_tells_all_strangers_at_once(command: str) -> None:
    ended = dglaunch(*command.split(), "--prompt", "x", "--stepz", "4", "--resume", "--compair")
    assert ended.code == 2 and ended.output.count("\n") == 1
    assert all(name in ended.output for name in ("--stepz", "--resume", "--compair"))


@pytest.mark.parametrize("command", AROUND)
def test_a_misspelt_flag_of_the_command_s_own_is_told(command: str) -> None:
    own = [flag.name for flag in flags_of(AROUND[command].own).values() if flag.group is None and not flag.by_place]
    job = [AROUND[command].jobs[0], "--prompt", "x"] if AROUND[command].jobs else ["out"]
    for name in (name for name in own if f"{name}s" not in HABITS):
        ended = dglaunch(command, *job, f"--{name}s", "1")
        assert ended.code == 2 and f"The nearest is --{name}" in ended.output, ended.output


def test_a_tool_tells_them_too() -> None:
    assert "The nearest is --repair" in dglaunch("verify", "out", "--repiar").output
    assert "needs FOLDER" in dglaunch("gallery").output
    assert "does not know what 'b' is" in dglaunch("status", "a", "b").output


@pytest.mark.parametrize(
    "words",
    [
        ("plan", "t2i", "--prompt", "x", "--world_size", "none"),
        ("plan", "t2i", "--prompt", "x", "--world_size", "0"),
        ("rehearse", "t2i", "--prompt", "x", "--json"),
        ("tune", "t2i", "--prompt", "x", "--search", "--max_difference", "256"),
        ("gallery", "out", "--thumbnails", "some"),
        ("plan",),
        ("slurm", "--prompt", "x"),
    ],
)
def test_a_wrong_use_of_an_own_flag_is_one_paragraph(words: tuple[str, ...]) -> None:
    ended = dglaunch(*words)
    assert ended.code == 2 and ended.output.startswith("dglaunch: ") and ended.output.count("\n") == 1


def test_what_a_terminal_would_obey_is_shown() -> None:
    output = dglaunch("t2i", "--\x1b[31mred", "\x1b[0m").output
    assert "\x1b" not in output and "\\x1b[31mred" in output
