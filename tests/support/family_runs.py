"""How the tests run each family of `tiny_models`: flags for text to image, checkpoints and tables for editing."""

from support.edit_images import MULTI, SINGLE

SIZE = ["--height", "64", "--width", "64", "--num_inference_steps", "3"]
DIFFERENT_LENGTHS = ["a red cat", "two blue dogs on the moon", "x", "a green house by the sea, at night, in the rain"]
T2I = ("flux", "flux2", "flux2_klein", "qwenimage", "zimage", "sd3", "pixart_sigma", "lumina2")
"""Those that draw from text alone and that xfuser can split by Ulysses."""
UNSPLIT = ("sdxl",)
"""Those that xfuser does not run; of a pipeline outside of the table one stands for all."""
GUIDED = {
    "sdxl": ["--guidance_scale", "4", "--negative_prompt", "ugly"],
    "sd3": ["--guidance_scale", "4"],
    "pixart_sigma": ["--guidance_scale", "4"],
    "lumina2": ["--guidance_scale", "4", "--negative_prompt", "ugly"],
    "zimage": ["--guidance_scale", "4"],
    "qwenimage": ["--guidance_scale", "4", "--negative_prompt", "ugly"],
}
EDITORS = {
    "flux1_kontext": "flux_kontext",
    "flux2": "flux2",
    "flux2_klein": "flux2_klein",
    "qwen_singleimg": "qwenimage_edit",
    "qwen": "qwenimage_edit_2511",
    "longcat": "longcat_edit",
}
"""Family of editing -> the tiny checkpoint of it."""
SETS = {family: MULTI if family in ("qwen", "flux2", "flux2_klein") else SINGLE for family in EDITORS}
"""The input images of each of its rows."""
