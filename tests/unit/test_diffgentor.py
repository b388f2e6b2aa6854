"""What diffgentor's users type: every flag, variable and name of it is known, and the error says what to write instead.

The facts are copied here from the notes on the systems that users have today; where the notes are at hand, the two are compared.
"""

import re
from pathlib import Path
from typing import get_args

import pytest

from dglaunch import diffgentor
from dglaunch.cli.flag_table import flags_of
from dglaunch.cli.habits import HABITS
from dglaunch.cli.own_flags import OwnFlags
from dglaunch.config import COMMANDS, XDIT_PREFIX, CacheType
from dglaunch.environment import check_variables, variable_of
from dglaunch.errors import UserError
from support.commands import dglaunch

NOTES = Path(__file__).resolve().parents[3] / "shared"
"""Not in a clone."""
T2I = [
    "backend",
    "model_name",
    "model_type",
    "device",
    "num_gpus",
    "seed",
    "torch_dtype",
    "optimize",
    "attention_backend",
    "cache_type",
    "enable_compile",
    "enable_cpu_offload",
    "enable_vae_slicing",
    "enable_vae_tiling",
    "timeout",
    "api_max_retries",
    "retry_delay",
    "max_global_workers",
    "num_processes",
    "node_rank",
    "num_nodes",
    "log_dir",
    "prompt",
    "prompts_file",
    "output_dir",
    "output_name_column",
    "num_images_per_prompt",
    "height",
    "width",
    "num_inference_steps",
    "guidance_scale",
    "negative_prompt",
    "batch_size",
    "max_retries",
    "resume",
    "no_resume",
]
EDIT = [
    "input",
    "output_csv",
    "instruction_key",
    "image_cache_dir",
    "true_cfg_scale",
    "filter_rows",
    "prompt_enhance_type",
]
SERVE = ["mode", "host", "port", "max_concurrent"]
NAMED_IN_PEERS = [
    "--true_cfg_scale",
    "--output_csv",
    "--resume",
    "--max_retries",
    "--optimize",
    "--image_cache_dir",
    "flux2_edit",
]
"""What the notes say that differs."""
GROUPS_IN_PEERS = ["DG_OPENAI_*", "DG_GEMINI_*", "DG_PROMPT_ENHANCER_*", "DG_SERVE_*", "DG_STEP1X_*"]
POOL_IN_APIS = ["DG_OPENAI_ENDPOINTS", "DG_OPENAI_API_KEYS", "DG_OPENAI_WEIGHTS", "DG_OPENAI_RATE_LIMITS"]
HERE = {name for config_type in COMMANDS.values() for name in flags_of(config_type, OwnFlags)}


def test_each_of_its_flags_is_known_and_either_here_or_replaced() -> None:
    assert diffgentor.SAME.keys() | diffgentor.FLAGS.keys() == {*T2I, *EDIT, *SERVE}
    assert diffgentor.SAME.keys() <= HERE and not diffgentor.FLAGS.keys() & HERE
    assert diffgentor.FLAGS.items() <= HABITS.items()


def test_what_is_named_instead_exists() -> None:
    texts = [*diffgentor.FLAGS.values(), *diffgentor.SAME.values(), *diffgentor.VARIABLES.values()]
    texts += [*diffgentor.OPTIMIZE.values(), *diffgentor.PREFIXES.values(), *diffgentor.COMMANDS.values()]
    texts += [text for values in diffgentor.VALUES.values() for text in values.values()]
    torchruns = {"log", "redirects", "nnodes", "help"}
    named = {name for text in texts for name in re.findall(r"--([a-z]\w*)", text)} - torchruns
    assert named <= HERE
    variables = {name for text in texts for name in re.findall(r"DG_[A-Z_]+", text)}
    assert {name for name in variables if not name.startswith(XDIT_PREFIX)} <= {variable_of(name) for name in HERE}


@pytest.mark.parametrize("flag", [name for name in diffgentor.FLAGS if name not in SERVE])
def test_a_flag_of_diffgentor_is_told(flag: str) -> None:
    ended = dglaunch("edit", "--input", "edits.csv", f"--{flag}", "1")
    here = diffgentor.FLAGS[flag]
    assert ended.code == 2 and ended.output.count("\n") == 1
    assert (here in ended.output or f"it is {here} here" in ended.output) and f"--{flag}" in ended.output


@pytest.mark.parametrize("name", [*diffgentor.VARIABLES, "DG_STEP1X_VERSION", "DG_BAGEL_NEW", "DG_OPENAI_NEW"])
def test_a_variable_of_diffgentor_is_told_and_its_value_is_not(name: str) -> None:
    with pytest.raises(UserError) as told:
        check_variables({name: "sk-secret"})
    said = str(told.value)
    assert name in said and "diffgentor's; unset it." in said and "secret" not in said
    assert diffgentor.VARIABLES.get(name, "") in said


def test_all_variables_are_told_at_once() -> None:
    ended = dglaunch(
        "t2i", "--prompt", "a", DG_OPENAI_ENDPOINTS="http://a,http://b", DG_OPENAI_API_KEYS="k", DG_GEMINI_WEIGHTS="1"
    )
    assert ended.code == 2 and ended.output.count("\n") == 1 and "unset them" in ended.output
    assert all(
        name in ended.output for name in ("DG_OPENAI_ENDPOINTS", "--api_base", "DG_OPENAI_API_KEYS", "OPENAI_API_KEY")
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["t2i", "--prompt", "a", "--backend", "gemini"], "diffgentor's gemini is google_genai here."),
        (["t2i", "--prompt", "a", "--backend", "bagel"], "diffgentor's bagel: this model is no diffusers pipeline"),
        (["t2i", "--prompt", "a", "--device", "cuda:3"], "is cuda here, with CUDA_VISIBLE_DEVICES=3."),
        (["t2i", "--prompt", "a", "--cache_type", "deep_cache"], "first_block_cache is for transformers"),
        (["serve", "--mode", "t2i", "--port", "8000"], "none are served"),
    ],
)
def test_a_name_of_diffgentor_is_told(words: list[str], said: str) -> None:
    ended = dglaunch(*words)
    assert ended.code == 2 and said in ended.output and ended.output.count("\n") == 1


def test_its_family_is_told() -> None:
    ended = dglaunch("plan", "edit", "--backend", "fake", "--model_type", "flux2_edit", "--input", "none.csv")
    assert ended.code == 2 and "diffgentor's flux2_edit is flux2 here." in ended.output


def test_each_word_of_optimize_is_a_flag_here() -> None:
    assert {flag.split()[0][2:] for flag in diffgentor.OPTIMIZE.values() if flag.startswith("--")} <= HERE
    assert {flag.partition("cache_type ")[2] for flag in diffgentor.OPTIMIZE.values()} - {""} <= set(
        get_args(CacheType)
    )


def test_the_notes_say_nothing_else() -> None:
    """Where they are at hand; a clone has none."""
    if not (NOTES / "PEERS.md").exists():
        pytest.skip("the notes are not here")
    peers = re.sub(r"\s+", " ", (NOTES / "PEERS.md").read_text(encoding="utf-8"))
    differ = re.search(r"Its flags that differ: (.*)", peers)
    assert differ is not None
    assert set(re.findall(r"--[a-z_]+|flux2_edit", differ[1])) == set(NAMED_IN_PEERS)
    assert set(re.findall(r"DG_[A-Z0-9_]+\*", peers)) - {"DG_XDIT_*"} == set(GROUPS_IN_PEERS)
    pools = (NOTES / "APIS.md").read_text(encoding="utf-8").partition("## Pools")[2]
    assert set(re.findall(r"DG_OPENAI_[A-Z_]*[A-Z]", pools)) == set(POOL_IN_APIS)


def test_what_the_notes_name_is_in_the_table() -> None:
    assert {name[2:] for name in NAMED_IN_PEERS if name.startswith("--")} <= diffgentor.FLAGS.keys()
    assert {group.removesuffix("*") for group in GROUPS_IN_PEERS} <= diffgentor.PREFIXES.keys()
    assert (
        set(POOL_IN_APIS) | {name.replace("OPENAI", "GEMINI") for name in POOL_IN_APIS} <= diffgentor.VARIABLES.keys()
    )
