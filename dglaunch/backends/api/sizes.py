"""Width and height to what an API calls them, by the rules of the table of models."""

from collections.abc import Callable

from dglaunch.backends.api.models import FreeSizes, Model, RatioSizes

SizeOf = Callable[[int, int], str | dict[str, str]]
"""A ValueError says which sizes there are."""


def size_of(name: str, model: Model | None) -> SizeOf:
    """Return how a model is asked for a size; one that the table does not know gets it as WIDTHxHEIGHT."""

    def size(width: int, height: int) -> str | dict[str, str]:
        if model is None or model.sizes is None:
            return f"{width}x{height}"
        if isinstance(model.sizes, FreeSizes):
            return _free(name, model.sizes, width, height)
        if isinstance(model.sizes, RatioSizes):
            return _by_ratio(name, model.sizes, width, height)
        if f"{width}x{height}" not in model.sizes:
            raise ValueError(f"{name} makes {', '.join(model.sizes)}.")
        return f"{width}x{height}"

    return size


def _free(name: str, sizes: FreeSizes, width: int, height: int) -> str:
    steps = width % sizes.multiple == height % sizes.multiple == 0
    aspect = max(width / height, height / width) <= sizes.max_aspect
    within = max(width, height) <= sizes.longest and sizes.least_pixels <= width * height <= sizes.most_pixels
    if not (steps and aspect and within):
        raise ValueError(
            f"{name} makes multiples of {sizes.multiple} between 1:{sizes.max_aspect:g} and {sizes.max_aspect:g}:1, with "
            f"{sizes.least_pixels:,} to {sizes.most_pixels:,} pixels and no side longer than {sizes.longest}, such as "
            "1024x1024, 1536x1024."
        )
    return f"{width}x{height}"


def _by_ratio(name: str, sizes: RatioSizes, width: int, height: int) -> dict[str, str]:
    for scale, factor in sizes.classes.items():
        for ratio, (base_width, base_height) in sizes.ratios.items():
            if (width, height) == (base_width * factor, base_height * factor):
                return {"aspect_ratio": ratio} | ({"image_size": scale} if len(sizes.classes) > 1 else {})
    plain = ", ".join(f"{base_width}x{base_height}" for base_width, base_height in sizes.ratios.values())
    others = [f"{factor:g} times that ({scale})" for scale, factor in sizes.classes.items() if factor != 1]
    raise ValueError(f"{name} makes {plain}{''.join(f', {other}' for other in others)}.")
