"""What images of an API cost: before a run at the least and at the most, and during it by what answers report.

costs = Costs(api, config)
costs.of(task)                       Dollars(least=0.0059, most=0.0061)
costs.paid(answer.usage)             0.00595
costs.expected(tasks)                of a whole job, with the words for `plan`
"""

from collections.abc import Iterable, Mapping, Sequence

from dglaunch.backends.api.description import Api
from dglaunch.backends.api.models import FreeSizes, Sizes
from dglaunch.backends.api.prices import REPORTED, ByImage, ClassTokens, GridTokens, dollars_of
from dglaunch.backends.profiles import Dollars, ExpectedCost
from dglaunch.config import RunConfig, pairs_of
from dglaunch.data.task import Task

AROUND_PROMPT = 64
"""Tokens that a server may put around a prompt, on the safe side; a prompt has at most one for each of its bytes."""


class Costs:
    """Prices of one model as a job asks for it, in US dollars."""

    def __init__(self, api: Api, config: RunConfig) -> None:
        self._api = api
        self._price = api.model.price
        self._names = REPORTED[config.backend.backend]
        self._config = config
        self._in_batch = config.remote.api_batch
        self._known: dict[tuple[int | None, int | None], tuple[float, float]] = {}
        """Of an image without its prompt, by width and height."""

    @property
    def is_known(self) -> bool:
        """Whether there is a price of its tokens."""
        return self._price is not None

    def paid(self, usage: Mapping[str, float]) -> float | None:
        """Return what an answer cost: what it says, else by its tokens; None if neither is known."""
        if "cost" in usage:
            return usage["cost"]
        return None if self._price is None else dollars_of(self._price, self._names, usage, self._in_batch)

    def of(self, task: Task) -> Dollars | None:
        """Return what one image costs; None if there is no price."""
        price, output = self._price, self._output(task.width, task.height)
        if price is None or output is None:
            return None
        texts = (task.text, self._config.remote.system_instruction or "")
        text_tokens = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts) + AROUND_PROMPT
        least, most = output[0], output[1] + price.text_in * text_tokens / 1e6 * self._part
        if not task.images:
            return Dollars(least, most)
        if price.input_image is None:
            return Dollars(least, None)
        inputs = len(task.images) * price.image_in / 1e6 * self._part
        return Dollars(least + inputs * price.input_image[0], most + inputs * price.input_image[1])

    def expected(self, tasks: Iterable[Task]) -> ExpectedCost | None:
        """Return what these images cost together; None on a server of one's own, which has no price that could be known."""
        if self._api.is_own_model:
            return None
        if self._price is None or self._price.image is None:
            return ExpectedCost(None, self._unknown())
        total = Dollars(0.0, 0.0)
        for task in tasks:
            each = self.of(task)
            assert each is not None, "it has a price"
            total = total + each
        return ExpectedCost(total, self._words(total))

    @property
    def _part(self) -> float:
        return self._price.in_batch if self._price is not None and self._in_batch else 1.0

    def _output(self, width: int | None, height: int | None) -> tuple[float, float] | None:
        """The image alone, whatever its prompt."""
        if (width, height) not in self._known:
            found = self._dollars(width, height)
            if not found:
                return None
            self._known[width, height] = min(found) * self._part, max(found) * self._part
        return self._known[width, height]

    def _dollars(self, width: int | None, height: int | None) -> list[float]:
        """What an image of a size may cost, by the qualities (and the sizes) that the request leaves open."""
        price, sizes = self._price, self._api.model.sizes
        if price is None or price.image is None:
            return []
        if isinstance(price.image, ByImage):
            asked = [f"{width}x{height}"] if width is not None else None
            of_quality = [price.image.dollars[quality] for quality in self._qualities(price.image.dollars)]
            return [dollars for row in of_quality for size, dollars in row.items() if asked is None or size in asked]
        if isinstance(price.image, ClassTokens):
            tokens = [price.image.classes[name] for name in self._classes(price.image, width, height)]
        else:
            cells = price.image.cells
            tokens = [
                price.image.of(quality, *size)
                for quality in self._qualities(cells)
                for size in ([(width, height)] if width is not None and height is not None else _extremes(sizes))
            ]
        return [price.image_out * count / 1e6 for count in tokens]

    def _qualities(self, known: Mapping[str, object]) -> Sequence[str]:
        asked = self._config.remote.quality
        return [asked] if asked is not None and asked in known else list(known)

    def _classes(self, tokens: ClassTokens, width: int | None, height: int | None) -> Sequence[str]:
        asked = pairs_of("image_config", self._config.remote.image_config).get("image_size")
        if width is not None and height is not None:
            size = self._api.size(width, height)
            asked = size.get("image_size") if isinstance(size, dict) else None
        return [asked] if asked is not None and asked in tokens.classes else list(tokens.classes)

    def _unknown(self) -> str:
        name = self._config.backend.model_name
        if self._price is None:
            return f"unknown: there is no price of {name} that has a source"
        price = self._price
        return (
            f"unknown: how many tokens an image of {name} has is not published; a million cost ${price.text_in:g} (text in), "
            f"${price.image_in:g} (images in) and ${price.image_out:g} (images out), {price.source}"
        )

    def _words(self, total: Dollars) -> str:
        price = self._price
        assert price is not None
        if self._in_batch:
            half = f", as batches ({price.in_batch:g} of the price)"
        else:
            half = f"; with --api_batch {total.times(price.in_batch)}"
        open_ended = "" if total.most is not None else ", and its input images, whose tokens are not published"
        vendor = " if the server charges as the vendor does" if self._api.servers else ""
        closer = "".join(f"; {flags} say it closer" for flags in self._closer())
        return f"{total}{half}{open_ended}{vendor}{closer} (prices of {price.as_of:%d %B %Y}, {price.source}; nobody warrants them)"

    def _closer(self) -> list[str]:
        """Flags that leave less open."""
        price, config = self._price, self._config
        assert price is not None
        flags = []
        if isinstance(price.image, GridTokens | ByImage) and config.remote.quality in (None, "auto"):
            flags.append("--quality")
        is_open = config.width is None and None in {width for width, _ in self._known}
        if is_open and not (isinstance(price.image, ClassTokens) and len(price.image.classes) == 1):
            flags += ["--width", "--height"]
        return [" ".join(flags)] if flags else []


def _extremes(sizes: Sizes | None) -> Sequence[tuple[int, int]]:
    """The sizes among which the cheapest and the dearest are, where the API chooses."""
    assert isinstance(sizes, FreeSizes), "a grid of tokens goes with free sizes"
    step = sizes.multiple
    found = []
    for long in range(step, sizes.longest + 1, step):
        shortest = max(-(-sizes.least_pixels // long), -(-long // int(sizes.max_aspect)))
        longest = min(long, sizes.most_pixels // long)
        lowest, highest = -(-shortest // step) * step, longest // step * step
        if lowest <= highest:
            found += [(long, lowest), (long, highest)]
    return found
