"""Names of what dglaunch puts into an output folder beside results, for whoever has to know them."""

REPLACED = "replaced"
"""The folder of the images that `dglaunch redo` has replaced (output/replaced.py)."""
SCORES = "scores"
"""The folder of scores (output/scores.py)."""
LEDGER_OF_REPLACED = f"{REPLACED}/metadata.jsonl"
