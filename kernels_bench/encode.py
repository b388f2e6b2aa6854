"""Pictures to bytes: PNG at several levels, JPEG, WebP, with 1 to 4 threads. Images/s and bytes an image.

    python -m kernels_bench encode

Pillow releases the GIL while it compresses, so threads help as far as there are idle cores. The pictures look like
photographs to a compressor: smooth colours, edges and a little noise. Checked: PNG comes back exactly, the others with
a PSNR of 30 dB or more. The rows named "dglaunch" go through dglaunch/images.py, with its text chunks or EXIF.
"""

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from kernels_bench import measure

SIDES = {"full": 1024, "scaled": 1024, "quick": 96}
IMAGES = {"full": 8, "scaled": 4, "quick": 4}
"""Pictures of one repeat, shared by the threads."""
FORMATS: dict[str, dict[str, Any]] = {
    "PNG 0": {"format": "PNG", "compress_level": 0},
    "PNG 1": {"format": "PNG", "compress_level": 1},
    "PNG 3": {"format": "PNG", "compress_level": 3},
    "PNG 6": {"format": "PNG", "compress_level": 6},
    "JPEG 95": {"format": "JPEG", "quality": 95},
    "WebP 95": {"format": "WEBP", "quality": 95},
    "WebP lossless 0": {"format": "WEBP", "lossless": True, "quality": 0, "method": 0},
}
OURS = {"dglaunch png": "png", "dglaunch jpg": "jpg", "dglaunch webp": "webp"}
QUICK = ("PNG 1", "JPEG 95", "dglaunch png")
LEAST_PSNR = 30.0
COLUMNS = {
    "format": "{format}",
    "threads": "{workers}",
    "images/s": "{images_per_s[p50]:.4g} ({images_per_s[p20]:.4g}-{images_per_s[p80]:.4g})",
    "MB an image": "{mb:.3f}",
    "PSNR dB": "{psnr}",
}


@dataclass(kw_only=True, slots=True)
class Options(measure.Options):
    """`python -m kernels_bench encode`. Encoding is the CPU's work with --device cuda too."""

    repeats: int = 5
    """Timed repeats of each case; the cases take turns."""
    warm_up: int = 1
    """Repeats before them that are not counted."""
    workers: tuple[int, ...] = (1, 2, 3, 4)
    """Numbers of encoding threads."""


def run(options: Options) -> tuple[list[measure.Row], list[str]]:
    """One process: formats and numbers of threads take turns."""
    names = QUICK if options.quick else (*FORMATS, *OURS)
    workers = (1, 2) if options.quick else options.workers
    side, images = SIDES[options.size], IMAGES[options.size]
    payload = options.shared() | {"names": names, "workers": workers, "side": side, "images": images}
    rows = measure.in_process("kernels_bench.encode:work", payload, options)
    return rows, [f"{images} pictures of {side}x{side} a repeat"]


# -- in the child ---------------------------------------------------------------------------------------------------


def work(payload: dict[str, Any]) -> list[measure.Row]:
    """Check each format on one picture, then time all of them on others."""
    import numpy

    random = numpy.random.default_rng(payload["seed"])
    encoders = {name: encoder(name) for name in payload["names"]}
    sample = photo(random, payload["side"])
    checked = {name: check(name, encode, sample, payload["damage"]) for name, encode in encoders.items()}
    pools = {workers: ThreadPoolExecutor(workers) for workers in payload["workers"]}
    cases = {
        f"{name}/{workers}": partial(encode_all, pool, encode)
        for name, encode in encoders.items()
        for workers, pool in pools.items()
    }

    def fresh() -> tuple[list[Any]]:
        return ([photo(random, payload["side"]) for _ in range(payload["images"])],)

    taken = measure.seconds(cases, fresh, payload["repeats"], payload["warm_up"])
    return [row(case, times, payload["images"], *checked[case.rpartition("/")[0]]) for case, times in taken.items()]


def row(case: str, taken: list[float], images: int, size: int, psnr: float | None) -> measure.Row:
    name, _, workers = case.rpartition("/")
    return {
        "name": f"{name}, {workers} threads", "format": name, "workers": int(workers), "mb": size / 1e6,
        "images_per_s": measure.spread([images / s for s in taken]), "psnr": "exact" if psnr is None else round(psnr, 1),
    }  # fmt: skip


def encode_all(pool: ThreadPoolExecutor, encode: Callable[[Any], bytes], pictures: list[Any]) -> None:
    for _ in pool.map(encode, pictures):
        pass


def encoder(name: str) -> Callable[[Any], bytes]:
    """Pillow with the format's own parameters, or dglaunch's encoder."""
    if name in OURS:
        from dglaunch.output import encode as images

        description = {"prompt": "a red fox in the snow", "seed": 17, "model": "tiny", "width": 1024, "height": 1024}
        return lambda picture: images.encode(picture, OURS[name], description)

    def encode(picture: Any) -> bytes:
        buffer = io.BytesIO()
        picture.save(buffer, **FORMATS[name])
        return buffer.getvalue()

    return encode


def check(name: str, encode: Callable[[Any], bytes], picture: Any, damage: bool) -> tuple[int, float | None]:
    """Bytes of the encoded picture, and its PSNR when it is decoded again (None: it is exactly the picture).

    Raises:
        WrongOutput: a lossless format changed it, or a lossy one by too much.
    """
    import numpy
    from PIL import Image

    data = encode(picture)
    given = numpy.asarray(picture).astype(float)
    back = measure.spoil(numpy.asarray(Image.open(io.BytesIO(data)).convert("RGB")), damage).astype(float)
    error = float(((given - back) ** 2).mean())
    lossless = "PNG" in name.upper() or "lossless" in name
    measure.require(
        f"{name}, mean square error of a pixel", error, 0.0 if lossless else 255**2 / 10 ** (LEAST_PSNR / 10)
    )
    return len(data), 10 * numpy.log10(255**2 / error) if error else None


def photo(random: Any, side: int) -> Any:
    """A picture that is new each time: a smooth field of colours, some flat shapes with edges, noise of 2 in 255."""
    import numpy
    from PIL import Image

    coarse = Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=numpy.uint8))
    pixels = numpy.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC)).astype(float)
    for _ in range(12):
        x, y = random.integers(0, side, 2)
        width, height = random.integers(side // 16, side // 4, 2)
        pixels[y : y + height, x : x + width] = 0.7 * pixels[y : y + height, x : x + width] + 0.3 * random.integers(
            0, 256, 3
        )
    pixels += random.normal(0, 2, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(numpy.uint8))


def plot(axes: Any, rows: list[measure.Row]) -> None:
    """A line for each format over the number of threads."""
    for name in dict.fromkeys(row["format"] for row in rows):
        of = [row for row in rows if row["format"] == name]
        axes.plot([row["workers"] for row in of], [row["images_per_s"]["p50"] for row in of], marker="o", label=name)
    axes.set(xlabel="threads", ylabel="images/s", yscale="log", xticks=sorted({row["workers"] for row in rows}))
    axes.legend(fontsize=8)
