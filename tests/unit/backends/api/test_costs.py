"""What a job of an API costs: the vendors' prices, tokens of images, and the arithmetic before a run. Nothing is sent."""

from pathlib import Path

import pytest

from dglaunch.backends.api.costs import Costs
from dglaunch.backends.api.description import api_of
from dglaunch.backends.api.models import MODELS
from dglaunch.backends.api.prices import GPT_2, GPT_25, REPORTED, GridTokens, dollars_of
from dglaunch.backends.profiles import Dollars, ExpectedCost
from dglaunch.config import BackendConfig, RemoteConfig, T2IConfig
from dglaunch.data.task import Task
from support.commands import dglaunch

KEYS = {"OPENAI_API_KEY": "sk-1", "GEMINI_API_KEY": "k-1"}


@pytest.mark.parametrize(
    ("size", "quality", "tokens"),
    [
        ((1024, 1024), "low", 196), ((1024, 1024), "medium", 1756), ((1024, 1024), "high", 7024),
        ((1536, 1024), "low", 158), ((1024, 1536), "medium", 1372), ((1536, 1024), "high", 5488),
        ((1792, 1024), "high", 5063), ((3584, 2048), "high", 12329), ((3840, 2160), "high", 13342),
    ],
)  # fmt: skip
def test_tokens_of_an_image_are_those_of_openai_s_calculator(size: tuple[int, int], quality: str, tokens: int) -> None:
    """What it showed to people who asked it (community.openai.com/t/1379464 and others)."""
    assert isinstance(GPT_2.image, GridTokens)
    assert GPT_2.image.of(quality, *size) == tokens


def test_another_model_has_other_tokens_at_the_same_quality() -> None:
    assert isinstance(GPT_25.image, GridTokens)
    tokens = [GPT_25.image.of(quality, 1024, 1024) for quality in ("low", "medium", "high", "xhigh", "max")]
    assert tokens == [196, 439, 1756, 3122, 7024]


def test_every_price_says_when_and_where_it_was_read() -> None:
    priced = {name: row.price for rows in MODELS.values() for name, row in rows.items() if row.price is not None}
    assert {"gpt-image-2", "gpt-image-2.5-flare", "gemini-3.1-flash-image", "gpt-image-1-mini"} <= priced.keys()
    assert all("/" in price.source and price.as_of.year == 2026 for price in priced.values())
    assert "gemini-nano-banana-2.1" not in priced, "it has no source"


def costs_of(backend: str, model: str, remote: RemoteConfig | None = None) -> Costs:
    config = T2IConfig(
        backend=BackendConfig(backend=backend, model_name=model), remote=remote or RemoteConfig(), prompt="a",
        output_dir=Path("nowhere"),
    )  # fmt: skip
    return Costs(api_of(config), config)


def row(width: int | None = None, height: int | None = None, prompt: str = "a" * 36) -> Task:
    return Task(index=0, prompt=prompt, seed=0, stem="0", width=width, height=height)


def thousand(costs: Costs, *size: int) -> ExpectedCost:
    found = costs.expected([row(*size)] * 1000)
    assert found is not None
    return found


def test_a_thousand_images_of_gpt_image_2() -> None:
    """196 to 7,024 tokens at 30 dollars a million, and a prompt of 36 characters: at most 100 tokens at 5."""
    costs = thousand(costs_of("openai", "gpt-image-2"), 1024, 1024)
    assert costs.dollars is not None and costs.dollars.most is not None
    assert costs.dollars.least == pytest.approx(1000 * 196 * 30 / 1e6) == pytest.approx(5.88)
    assert costs.dollars.most == pytest.approx(1000 * (7024 * 30 + 100 * 5) / 1e6) == pytest.approx(211.22)
    assert costs.words.startswith("$5.88 to $211.22; with --api_batch $2.94 to $105.61; --quality say")
    half = thousand(costs_of("openai", "gpt-image-2", RemoteConfig(api_batch=True)), 1024, 1024)
    assert half.dollars == costs.dollars.times(0.5) and half.words.startswith("$2.94 to $105.61, as batches")
    high = thousand(costs_of("openai", "gpt-image-2", RemoteConfig(quality="high")), 1024, 1024)
    assert str(high.dollars) == "$210.72 to $211.22" and "closer" not in high.words


def test_where_the_api_chooses_the_size_the_bounds_are_those_of_all_sizes() -> None:
    costs = thousand(costs_of("openai", "gpt-image-2", RemoteConfig(quality="high")))
    assert costs.dollars is not None and costs.dollars.most is not None
    assert costs.dollars.most == pytest.approx(1000 * (23719 * 30 + 500) / 1e6), "2880x2880"
    assert costs.dollars.least < 1000 * 5488 * 30 / 1e6 and "--width --height say it closer" in costs.words


@pytest.mark.parametrize(
    ("remote", "size", "tokens"),
    [
        (RemoteConfig(), (1024, 1024), (1120, 1120)),
        (RemoteConfig(), (5504, 3072), (2520, 2520)),
        (RemoteConfig(image_config=("image_size=2K",)), (), (1680, 1680)),
        (RemoteConfig(), (), (747, 2520)),
    ],
)
def test_gemini_s_images_have_tokens_by_class(
    remote: RemoteConfig, size: tuple[int, ...], tokens: tuple[int, int]
) -> None:
    dollars = costs_of("google_genai", "gemini-3.1-flash-image", remote).of(row(*size))
    assert dollars is not None and dollars.most is not None
    assert dollars.least == pytest.approx(tokens[0] * 60 / 1e6)
    assert dollars.most == pytest.approx((tokens[1] * 60 + 100 * 0.5) / 1e6)


def test_a_price_by_image() -> None:
    dollars = costs_of("openai", "gpt-image-1-mini", RemoteConfig(quality="medium")).of(row(1536, 1024))
    assert dollars is not None and dollars.least == 0.015


@pytest.mark.parametrize(
    ("backend", "model", "said"),
    [
        ("openai", "gpt-image-1.5", "unknown: there is no price of gpt-image-1.5"),
        ("openai", "gpt-image-9", "unknown: there is no price"),
        ("openai", "gpt-image-2.6-flare", "unknown: how many tokens an image of gpt-image-2.6-flare has"),
        ("google_genai", "gemini-nano-banana-2.1", "unknown: there is no price"),
    ],
)
def test_what_has_no_source_is_unknown_and_never_a_guess(backend: str, model: str, said: str) -> None:
    found = thousand(costs_of(backend, model))
    assert found.dollars is None and found.words.startswith(said)


def test_a_server_of_one_s_own_has_no_price() -> None:
    own = RemoteConfig(api_base=("http://gpu1:8000/v1",))
    assert costs_of("openai", "Qwen/Qwen-Image", own).expected([row()]) is None
    gateway = costs_of("openai", "gpt-image-2", own).expected([row(1024, 1024)])
    assert gateway is not None and "if the server charges as the vendor does" in gateway.words


def test_an_amount_without_an_upper_bound() -> None:
    both = Dollars(1.0, 2.0) + Dollars(0.5, None)
    assert both == Dollars(1.5, None) and str(both) == "$1.50 at the least" and str(Dollars(0.0, 0.0)) == "$0.00"


@pytest.mark.parametrize(
    ("usage", "dollars"),
    [
        ({"input_tokens": 50, "output_tokens": 196, "input_tokens_details.image_tokens": 0}, (50 * 5 + 196 * 30) / 1e6),
        ({"input_tokens": 50, "output_tokens": 196}, (50 * 8 + 196 * 30) / 1e6),
        ({"input_tokens": 1050, "output_tokens": 0, "input_tokens_details.image_tokens": 1000}, (250 + 8000) / 1e6),
        ({"total_tokens": 9}, None),
    ],
)
def test_what_an_answer_cost(usage: dict[str, float], dollars: float | None) -> None:
    """Tokens of which it is not said what they are count as the dearer ones."""
    assert dollars_of(GPT_2, REPORTED["openai"], usage) == (None if dollars is None else pytest.approx(dollars))


def test_a_batch_costs_half() -> None:
    usage = {"input_tokens": 50, "output_tokens": 196}
    whole = dollars_of(GPT_2, REPORTED["openai"], usage)
    assert whole is not None and dollars_of(GPT_2, REPORTED["openai"], usage, in_batch=True) == whole / 2


# -- as a user sees it --------------------------------------------------------------------------------------------


def plan(tmp_path: Path, model: str, *flags: str, backend: str = "openai") -> tuple[int, str]:
    table = tmp_path / "prompts.txt"
    table.write_text("a red fox in the snow at dawn, no. 1\n" * 1000)
    ended = dglaunch(
        "plan", "t2i", "--backend", backend, "--model_name", model, "--prompts_file", table,
        "--output_dir", tmp_path / "out", *flags, **KEYS,
    )  # fmt: skip
    return ended.code, " ".join(ended.output.split())


def test_plan_shows_the_least_and_the_most_and_half_of_it_in_batches(tmp_path: Path) -> None:
    code, said = plan(tmp_path, "gpt-image-2", "--width", "1024", "--height", "1024")
    assert code == 0 and "1,000 images" in said
    assert "cost $5.88 to $211.22; with --api_batch $2.94 to $105.61" in said
    assert "developers.openai.com" in said and "26 November 2026" in said


@pytest.mark.parametrize(
    ("model", "flags", "said"),
    [
        ("gpt-image-2", ["--max_cost", "0.1"], "less than one image may cost, which is up to $0.7121"),
        ("gpt-image-2", ["--max_cost", "0.0001", "--quality", "low"], "less than one image may cost"),
        ("gpt-image-2", ["--max_cost", "1", "--world_size", "4"], "of which each of 4 ranks has $0.2500"),
        ("gpt-image-1.5", ["--max_cost", "5"], "has no price of gpt-image-1.5"),
    ],
)
def test_a_limit_below_one_image_is_refused_before_anything_is_sent(
    tmp_path: Path, model: str, flags: list[str], said: str
) -> None:
    code, output = plan(tmp_path, model, *flags)
    assert code == 2 and said in output
