"""What must hold for a job of an API, before anything is sent: its model, its options, and all bad rows at once."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import date

from dglaunch import strict_json
from dglaunch.backends.api.batch_checks import batch_problems
from dglaunch.backends.api.costs import Costs
from dglaunch.backends.api.description import Api
from dglaunch.backends.api.models import MODELS, RatioSizes
from dglaunch.backends.profiles import money
from dglaunch.config import RunConfig, pairs_of
from dglaunch.data.grid import places_of
from dglaunch.data.tables import shown
from dglaunch.data.task import SAMPLING, Task
from dglaunch.errors import InputError, UserError

OPTIONS = (
    "quality", "background", "output_compression", "moderation", "input_fidelity", "image_config", "safety_settings",
    "system_instruction",
)  # fmt: skip
"""The flags that only some models take."""
IMAGE_CONFIG = (
    "aspect_ratio", "image_size", "person_generation", "prominent_people", "output_mime_type", "output_compression_quality",
)  # fmt: skip
"""Keys of Gemini's image configuration (google-genai 3.4.0: types.ImageConfig)."""
THRESHOLDS = ("BLOCK_LOW_AND_ABOVE", "BLOCK_MEDIUM_AND_ABOVE", "BLOCK_ONLY_HIGH", "BLOCK_NONE", "OFF")


def check_model(api: Api, name: str, today: date) -> None:
    """Refuse a model that its vendor has no more. (A server of one's own may have it yet.)

    Raises:
        UserError: with its successor.
    """
    if api.ends is not None and today >= api.ends:
        raise UserError(
            f"{name} has ended: {api.name} has it no more since {api.ends:%d %B %Y}. Its successor is "
            f"--model_name {api.model.successor}."
        )


def check_options(api: Api, config: RunConfig) -> None:
    """Refuse options that the model does not have, or that do nothing or contradict others.

    Raises:
        UserError: with what to write instead.
    """
    remote = config.remote
    for name in OPTIONS:
        value = getattr(remote, name)
        if value is not None and value != ():
            _check_option(api, config.backend.model_name, config.backend.backend, name, value)
    if remote.background == "transparent" and config.output_format == "jpg":
        raise UserError("--background transparent: a JPEG has no transparency. Take --output_format png or webp.")
    if remote.output_compression is not None and config.output_format == "png":
        raise UserError("--output_compression does nothing for PNG. Take --output_format jpg or webp, or drop it.")
    if remote.moderation is not None and config.edits:
        raise UserError("--moderation goes with t2i only; the API takes none with an edit. Drop it.")
    if remote.input_fidelity is not None and not config.edits:
        raise UserError("--input_fidelity is about input images, and t2i has none. Drop it.")
    _check_row_flags(api, config)
    _check_image_config(api, config.backend.model_name, pairs_of("image_config", remote.image_config))
    _check_safety(pairs_of("safety_settings", remote.safety_settings))
    for key in pairs_of("api_extra", remote.api_extra):
        if key in api.refused_extra:
            raise UserError(
                f"--api_extra {key}=...: dglaunch sets it itself, from the row or a flag of its own. Drop it."
            )
    most = api.most_per_request or api.model.images_per_request
    if config.edits and api.is_own_model:
        most = 1  # the form of an edit has room for one seed
    if config.batch_size != "auto" and config.batch_size > most:
        raise UserError(
            f"--batch_size {config.batch_size}: {api.name} makes at most {most} images of one prompt in a request. Leave "
            "the flag out."
        )


def _check_option(api: Api, model: str, backend: str, name: str, value: object) -> None:
    if name not in api.model.options:
        others = [other for other, row in MODELS[backend].items() if name in row.options and not row.ends]
        having = f" (these do: {', '.join(others)})" if others else ""
        raise UserError(f"--{name}: {model} takes none through {api.name}{having}. Drop it.")
    values = api.model.options[name]
    if values and value not in values:
        raise UserError(f"--{name} {value}: {model} takes {', '.join(values)}.")


def _check_image_config(api: Api, model: str, given: Mapping[str, str]) -> None:
    for key in given:
        if key not in IMAGE_CONFIG:
            raise UserError(f"--image_config {key}=...: there is no such key. There are {', '.join(IMAGE_CONFIG)}.")
    sizes = api.model.sizes
    if not isinstance(sizes, RatioSizes):
        return
    for key, known in (("aspect_ratio", sizes.ratios), ("image_size", sizes.classes)):
        if key in given and given[key] not in known:
            raise UserError(f"--image_config {key}={given[key]}: {model} takes {', '.join(known)}.")


def _check_safety(given: Mapping[str, str]) -> None:
    for category, threshold in given.items():
        if not category.startswith("HARM_CATEGORY_") or threshold not in THRESHOLDS:
            raise UserError(
                f"--safety_settings {category}={threshold}: a category begins with HARM_CATEGORY_, and a threshold is one of "
                f"{', '.join(THRESHOLDS)}."
            )


def extra_fields(values: tuple[str, ...]) -> dict[str, object]:
    """Return what --api_extra adds to each request: values as JSON, and as a text where they are none."""
    fields: dict[str, object] = {}
    for key, text in pairs_of("api_extra", values).items():
        try:
            fields[key] = strict_json.loads(text)
        except ValueError:
            fields[key] = text
    return fields


def _check_row_flags(api: Api, config: RunConfig) -> None:
    """What a flag says for all rows is told once."""
    for name in SAMPLING:
        value = getattr(config, name)
        if name != "seed" and value is not None and name not in api.fields:
            raise UserError(f"--{name} {value}: {api.name} takes no {name} of {config.backend.model_name}. Drop it.")
    if config.width is not None and config.height is not None:
        for problem in _size_problem(api, config.width, config.height):
            raise UserError(f"--width {config.width} --height {config.height}: {problem}")


def check_max_cost(api: Api, config: RunConfig, costs: Costs, tasks: Sequence[Task], ranks: int) -> None:
    """Refuse a --max_cost that allows no image, or that could not be kept.

    Raises:
        UserError: with what one image may cost.
    """
    limit = config.remote.max_cost
    if limit is None:
        return
    if not costs.is_known and not api.servers:
        raise UserError(
            f"--max_cost {limit:g}: dglaunch has no price of {config.backend.model_name}, and {api.name} reports tokens, never "
            "a cost, so the limit could not be kept. Use --max_requests instead."
        )
    known = [dollars.most for task in tasks if (dollars := costs.of(task)) is not None and dollars.most is not None]
    if known and limit / ranks < min(known):
        each = f", of which each of {ranks} ranks has {money(limit / ranks)}," if ranks > 1 else ""
        closer = "" if config.remote.quality not in (None, "auto") else " (--quality and a size say it closer)"
        raise UserError(
            f"--max_cost {limit:g}{each} is less than one image may cost, which is up to {money(min(known))}{closer}, so "
            "nothing could be asked for. Raise it."
        )


# -- rows ---------------------------------------------------------------------------------------------------------


def check_rows(api: Api, config: RunConfig, tasks: Sequence[Task]) -> None:
    """Refuse rows that the API would not take.

    Raises:
        InputError: with all of them.
    """
    source = shown(config.tables) or "the command line"
    ratio = sorted({"aspect_ratio", "image_size"} & pairs_of("image_config", config.remote.image_config).keys())
    problems = [
        f"{task.row.removeprefix(f'{source}, ') or f'row {task.index}'}: {problem}"
        for task in tasks
        for problem in (
            *_problems(api, task, config),
            *_contradictions(task, ratio),
            *batch_problems(config, task),
        )
    ]
    if problems:
        raise InputError(source, list(dict.fromkeys(problems)))


def _problems(api: Api, task: Task, config: RunConfig) -> Iterator[str]:
    model = config.backend.model_name
    yield from _size_problem(api, task.width, task.height)
    for name in SAMPLING:
        value = getattr(task, name)
        if name != "seed" and value is not None and name not in api.fields:
            places = places_of(name, config.grid)
            yield f"{name} {value!r}, but {api.name} takes no {name} of {model}; remove it ({places})"
    if api.max_seed and task.seed > api.max_seed:
        yield f"the seed {task.seed}; {api.name} takes seeds up to {api.max_seed}"
    most = api.model.max_images
    if most is not None and len(task.images) > most:
        several = "exactly one" if most == 1 else f"1 to {most}"
        yield f"{len(task.images)} input images, but {model} takes {several} through {api.name}"
    if task.mask is not None:
        yield from _mask_problems(api, task, model)


def _size_problem(api: Api, width: int | None, height: int | None) -> Iterator[str]:
    if (width is None) != (height is None):
        yield f"{api.name} takes width and height together; give both --width and --height, or neither"
    elif width is not None and height is not None:
        try:
            api.size(width, height)
        except ValueError as error:
            yield f"{width}x{height} is no size of {api.name}: {error}"


def _contradictions(task: Task, ratio: Sequence[str]) -> Iterator[str]:
    if ratio and task.width is not None:
        yield f"width and height, and --image_config {' and '.join(ratio)} as well; keep one of the two"


def _mask_problems(api: Api, task: Task, model: str) -> Iterator[str]:
    mask = task.mask
    assert mask is not None
    if not api.model.takes_mask:
        yield f"the mask {mask.name}, but {model} takes none through {api.name}; remove the column"
    elif mask.suffix != ".png":
        yield f"the mask {mask.name} is no PNG; save it as one, transparent where the image is to be edited"
    elif task.images and mask.shape != task.images[0].shape:
        image = task.images[0]
        yield (
            f"the mask {mask.name} is {mask.shape.width}x{mask.shape.height}, and the first image {image.name} "
            f"{image.shape.width}x{image.shape.height}; they must be of one size"
        )
