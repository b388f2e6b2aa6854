"""Texts on pictures, in Pillow's own font, which has no letters beyond Latin."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont


def fitting(text: str, width: float, draw: "ImageDraw", font: "FreeTypeFont | ImageFont") -> str:
    """Return as much of a text as there is room for in a width, as the font has it; a cut one ends in dots."""
    text = shown = text.encode("latin-1", "replace").decode("latin-1")
    while text and draw.textlength(shown, font=font) > width:
        text = text[:-1]
        shown = text.rstrip() + "..."
    return shown
