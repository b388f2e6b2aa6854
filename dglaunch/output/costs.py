"""What the images of a folder cost at an API, over all starts: run.json carries the sum on, and each ledger line its image's."""

from dglaunch.output.ledger import RUN, OutputFolder, Part, object_at, read_run

COST_BEFORE = "cost_before"
"""In run.json: US dollars that the starts before it have paid."""
COST_USD = "cost_usd"
"""In a ledger line: US dollars of this image."""


def cost_until_now(folder: OutputFolder, part: Part) -> float:
    """Return US dollars that the starts so far of one part of a job have paid. A start that was killed has not said what it
    paid, so it is no less than what the lines of its images say."""
    run = read_run(folder.file(RUN, part.ledger_suffix)) or {}
    told = _amount(run.get(COST_BEFORE)) + _amount(object_at(run, "usage").get("cost"))
    by_image = 0.0 if part.ledger_suffix else sum(_amount(line.get(COST_USD)) for line in folder.records())
    return max(told, by_image)


def _amount(value: object) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 else 0.0
