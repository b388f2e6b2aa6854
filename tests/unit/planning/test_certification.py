"""What a certificate consists of: splits of a world, what a family refuses, limits. The command: unit/cli/test_certify.py."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from dglaunch.cli.certify import Setup
from dglaunch.distributed.topology import splits
from dglaunch.errors import UserError
from dglaunch.output.differences import Comparison, Difference
from dglaunch.planning.certification import Case, Limits, cases, chosen, limits_for
from support.commands import clean_environment

FREE = Limits(max_difference=None, max_mean=None, max_share=None)


def test_the_splits_of_a_world_multiply_to_a_part_of_it() -> None:
    def splits_of(world_size: int) -> list[tuple[int, int, bool]]:
        return [(each.ulysses_degree, each.ring_degree, each.use_cfg_parallel) for each in splits(world_size)]

    assert splits_of(1) == []
    assert splits_of(2) == [(2, 1, False), (1, 2, False), (1, 1, True)]
    assert splits_of(3) == [(3, 1, False), (1, 3, False)]
    eight = splits_of(8)
    assert len(eight) == len(set(eight)) == 15 and (2, 2, True) in eight and (8, 1, False) in eight
    sizes = [ulysses * ring * (1 + cfg) for ulysses, ring, cfg in eight]
    assert sizes == sorted(sizes) and set(sizes) == {2, 4, 8}


@pytest.mark.skipif(find_spec("xfuser") is None, reason="xfuser is not installed")
@pytest.mark.parametrize(
    ("family", "ranks", "flags", "refused"),
    [
        (
            "qwenimage",
            2,
            [],
            {"ring 2": "Ring attention is not right for QwenImage", "cfg 2": "QwenImage has no second"},
        ),
        ("lumina2", 2, ["--guidance_scale", "4"], {"ring 2": "Ring attention is not right for Lumina2"}),
        ("lumina2", 2, ["--guidance_scale", "1"], {"cfg 2": "Row 0 has the guidance scale 1"}),
    ],
)
def test_what_a_family_refuses_is_told_with_its_reason(
    families: Path, family: str, ranks: int, flags: list[str], refused: dict[str, str]
) -> None:
    from support.tiny_models import build

    words = ["--model_name", str(build(family, families / family)), "--num_gpus", str(ranks), "--device", "cpu", *flags]
    setup = Setup.of("t2i", words, clean_environment(), 0)
    one = Case(name="reference", shows="", words=())
    found = cases(setup.job_of(one, Path("out")), ranks, {})
    told = {}
    for case in found:
        try:
            setup.job_of(case, Path("out"))
        except UserError as error:
            told[case.name] = str(error)
    assert {name: reason in told.get(name, "") for name, reason in refused.items()} == dict.fromkeys(refused, True), (
        told
    )
    assert "ulysses 2" in {case.name for case in found} - told.keys()


def test_a_degree_that_is_set_is_the_only_split(families: Path) -> None:
    from support.tiny_models import build

    words = ["--model_name", str(build("flux", families / "flux")), "--num_gpus", "4", "--device", "cpu"]
    setup = Setup.of("t2i", words, {**clean_environment(), "DG_SHARD_DEGREE": "2"}, 0)
    job = setup.job_of(Case(name="reference", shows="", words=()), Path("out"))
    shared = {case.name: case for case in cases(job, 4, setup.degrees) if case.variables}
    assert shared.keys() == {"fsdp 2", "tensor 2"}
    assert setup.job_of(shared["fsdp 2"], Path("out")).topology.num_replicas == 2
    every = {case.name for case in cases(job, 4, {}) if case.variables}
    assert {"ulysses 4", "ulysses 2, ring 2", "fsdp 4", "tensor 4", "context 4"} <= every


def image(greatest: int, mean: float, share: float = 0.0) -> Difference:
    return Difference(greatest=greatest, mean=mean, share=share, mean_square=mean * mean, ssim=1.0)


def test_a_limit_is_for_every_image() -> None:
    found = Comparison({(0, 0): image(1, 0.5), (1, 0): image(9, 0.1, 0.2), (2, 1): image(3, 4.0)})
    assert FREE.broken_by(found) == []
    strict = Limits(max_difference=2, max_mean=1, max_share=0.1)
    assert strict.broken_by(found) == [
        "image 1: a pixel differs by 9 of 255, the limit is 2",
        "image 2, sample 1: its pixels differ by 4 of 255 on average, the limit is 1",
        "image 1: 20.00% of its pixels differ by more than 2, the limit is 10.00%",
    ]
    assert Limits(max_difference=9, max_mean=4, max_share=0.2).broken_by(found) == []
    assert FREE.broken_by(Comparison({}, {(3, 0): "out has no such image"})) == ["image 3: out has no such image"]


def test_the_limits_are_those_of_the_type_unless_one_is_given() -> None:
    assert limits_for("float32", FREE) == Limits(max_difference=2, max_mean=None, max_share=None)
    assert limits_for("bfloat16", FREE) == Limits(max_difference=None, max_mean=8, max_share=None)
    given = Limits(max_difference=None, max_mean=None, max_share=0.01)
    assert limits_for("float32", given) == given


def test_words_choose_cases_and_a_wrong_one_is_told() -> None:
    found = [Case(name=name, shows="") for name in ("reference", "batch 2", "largest batch", "ring 2")]
    assert [case.name for case in chosen(found, ["batch"])] == ["reference", "batch 2", "largest batch"]
    assert chosen(found, []) == found
    with pytest.raises(UserError, match="words ulises in its name"):
        chosen(found, ["batch", "ulises"])
