"""Flags, DG_* variables and defaults: which wins, and that a mistake in one is never a default. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest

from dglaunch import BackendConfig, OptimizationConfig, ParallelConfig, T2IConfig
from dglaunch.cli.flag_table import Named, flags_of
from dglaunch.cli.flags import parse, read_own, without
from dglaunch.config import OTHER_DTYPES, DtypeName
from dglaunch.environment import check_variables, known_flags, parallel_from_environment, parse_value
from dglaunch.errors import UserError
from support.commands import dglaunch, run_module


def parsed(*words: str, **environ: str) -> tuple[T2IConfig, Mapping[str, str]]:
    return parse(T2IConfig, words, environ, "t2i")


def test_a_flag_wins_over_a_variable_and_both_are_remembered() -> None:
    config, origins = parsed(
        "--prompt", "x", "--batch-size", "3", DG_BATCH_SIZE="8", DG_HEIGHT="512", DG_GUIDANCE_SCALE="0"
    )
    assert (config.batch_size, config.height, config.guidance_scale) == (3, 512, 0.0)
    assert (origins["batch_size"], origins["height"], origins["width"]) == ("flag", "DG_HEIGHT", "default")


def test_nested_configs_have_flat_flags() -> None:
    config, _ = parsed("--prompt", "x", "--backend", "xdit", "--enable_vae_tiling", "--cache_type", "first_block_cache")
    assert config.backend == BackendConfig(backend="xdit")
    assert config.optimization == OptimizationConfig(enable_vae_tiling=True, cache_type="first_block_cache")


def test_a_switch_from_the_environment_can_be_taken_back() -> None:
    assert parsed("--prompt", "x", DG_ENABLE_VAE_SLICING="1")[0].optimization.enable_vae_slicing
    taken_back, _ = parsed("--prompt", "x", "--no-enable-vae-slicing", DG_ENABLE_VAE_SLICING="1")
    assert not taken_back.optimization.enable_vae_slicing


def test_the_prompt_may_come_from_the_environment_and_look_like_a_flag() -> None:
    assert parsed(DG_PROMPT="--a = b")[0].prompt == "--a = b"


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"DG_BATCH_SIZE": "3O"}, "DG_BATCH_SIZE='3O' is not a whole number or one of auto"),
        ({"DG_ENABLE_VAE_SLICING": "maybe"}, "is not a truth value"),
        ({"DG_BACKEND": "xdti"}, "one of diffusers, xdit"),
        ({"DG_BATCHSIZE": "4"}, "The nearest is DG_BATCH_SIZE"),
        ({"DG_XDIT_ULYSES_DEGREE": "2"}, "The nearest is DG_XDIT_ULYSSES_DEGREE"),
    ],
)
def test_a_wrong_variable_is_an_error(environ: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said.replace("(", r"\(")):
        parsed("--prompt", "x", **environ)


def test_xdit_degrees() -> None:
    parallel = parallel_from_environment({"DG_XDIT_ULYSSES_DEGREE": "2", "DG_XDIT_USE_CFG_PARALLEL": "true"})
    assert (parallel.ulysses_degree, parallel.use_cfg_parallel, parallel.data_parallel_degree) == (2, True, None)
    for text in ("0", "-1", "two", "2.5", ""):
        with pytest.raises(UserError, match="DG_XDIT_RING_DEGREE"):
            parallel_from_environment({"DG_XDIT_RING_DEGREE": text})


@pytest.mark.parametrize("words", ["", "--backend xdit", "--backend xdit --device cuda", "--backend fake"])
def test_pipefusion_is_refused_with_its_reason_whatever_runs_it(tmp_path: Path, words: str) -> None:
    """Also where it does not go with the world, so that nobody starts more ranks for it first."""
    command = ["t2i", "--prompt", "a fox", "--output_dir", tmp_path / "o", *words.split()]
    ended = dglaunch(*command, DG_XDIT_PIPEFUSION_DEGREE="2", COLUMNS="2000")
    assert ended.code == 2, ended.output
    assert "only approximates" in ended.output and "DG_XDIT_ULYSSES_DEGREE" in ended.output
    assert not (tmp_path / "o").exists()
    assert parallel_from_environment({"DG_XDIT_PIPEFUSION_DEGREE": "1"}) == ParallelConfig()


def test_every_flag_has_a_variable() -> None:
    check_variables({f"DG_{name.upper()}": "" for name in known_flags()})


def test_num_gpus_does_not_reach_the_ranks() -> None:
    words = ["t2i", "--num_gpus", "8", "--prompt", "a", "--num-gpus=4", "--batch_size", "2"]
    assert without(words, "num_gpus") == ["t2i", "--prompt", "a", "--batch_size", "2"]


def test_configs_are_usable_from_python() -> None:
    config = T2IConfig(prompts_file=Path("a.jsonl"), backend=BackendConfig(model_name="x/y"), batch_size=2)
    assert config.backend.model_name == "x/y"
    with pytest.raises(UserError, match="--batch_size is 0"):
        T2IConfig(prompt="x", batch_size=0)


@pytest.mark.parametrize(
    ("heavy", "words"),
    [
        ("torch,numpy,PIL,pyarrow,rich,tyro,yaml", ["--help"]),
        *(
            ("torch,numpy,PIL,pyarrow,tyro,yaml", [*words, "--help"])
            for words in (["t2i"], ["plan"], ["certify", "edit"])
        ),
    ],
)
def test_help_imports_nothing_heavy(heavy: str, words: list[str]) -> None:
    """Half a second is only possible without it."""
    ended = run_module("support.imported", heavy, *words)
    assert ended.code == 0, ended.output
    assert "dglaunch" in ended.output


@pytest.mark.parametrize(("other", "name"), OTHER_DTYPES.items())
def test_the_short_names_of_types_are_taken_everywhere(other: DtypeName, name: str) -> None:
    assert parsed("--prompt", "x", "--torch_dtype", other)[0].backend.torch_dtype == name
    assert parsed("--prompt", "x", DG_TORCH_DTYPE=other)[0].backend.torch_dtype == name
    assert BackendConfig(torch_dtype=other).torch_dtype == name


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--seed abc", "--seed 'abc' is not a whole number"),
        ("--seed", "--seed needs a value: a whole number"),
        ("--seed --debug", "--seed needs a value: a whole number"),
        ("--batch_size some", "--batch_size 'some' is not a whole number or one of auto"),
        ("--torch_dtype bf17", "is not one of bfloat16, float16, float32, bf16"),
        ("--output_dir=", "--output_dir '' is not a path; it is empty"),
    ],
)
def test_a_wrong_value_is_told_in_one_sentence(words: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        parsed("--prompt", "x", *words.split())


def test_the_word_none_takes_a_number_back_and_is_a_text_elsewhere() -> None:
    config, origins = parsed("--prompt", "None", "--height", "None", DG_HEIGHT="512")
    assert (config.prompt, config.height, origins["height"]) == ("None", None, "flag")


def test_of_a_flag_that_is_given_twice_the_last_counts() -> None:
    assert parsed("--prompt", "a", "--seed", "1", "--seed=2")[0].seed == 2


def test_a_prompt_that_looks_like_a_flag_is_not_cut_out_of_the_words() -> None:
    words = ["--prompt", "--num_gpus 8", "--num_gpus", "2"]
    assert without(words, "num_gpus") == ["--prompt", "--num_gpus 8"]


@dataclass(kw_only=True)
class Own:
    """A command of its own."""

    folder: Annotated[Path, Named(by_place=True)]
    """Where."""
    files: Path | tuple[Path, ...] | None = None
    """One or several."""
    changes: Annotated[tuple[str, ...], Named(name="set", metavar="KEY=VALUE")] = ()
    """What is other."""
    failed: bool = False
    """Only those."""


def test_a_command_without_a_job_has_places_names_and_lists() -> None:
    words = ["out", "--set", "a=1", "b=2", "--files", "one", "--failed", "--set=c=--x"]
    assert read_own(Own, words, "own") == Own(
        folder=Path("out"), changes=("a=1", "b=2", "c=--x"), files=Path("one"), failed=True
    )
    assert read_own(Own, ["out", "--files", "one", "two"], "own").files == (Path("one"), Path("two"))
    with pytest.raises(UserError, match="own needs FOLDER"):
        read_own(Own, [], "own")
    with pytest.raises(UserError, match=r"--files needs a value: a path or several\."):
        read_own(Own, ["out", "--files"], "own")
    assert [flag.takes for flag in flags_of(Own).values()] == ["PATH", "PATH ...", "KEY=VALUE ...", ""]


def test_a_variable_of_several_words_is_read_as_a_shell_reads_it() -> None:
    assert parse_value("DG_GRID", "a=1,2 'b=x y'", tuple[str, ...]) == ("a=1,2", "b=x y")
    assert parse_value("DG_FILES", "my file.csv", Path | tuple[Path, ...] | None) == Path("my file.csv")
    with pytest.raises(UserError, match="a quote that does not end"):
        parse_value("DG_GRID", "'a", tuple[str, ...])
