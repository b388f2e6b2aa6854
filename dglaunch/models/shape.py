"""The one form of a size: height and width of an image in pixels."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Shape:
    """Height and width of an image in pixels; as text `1024x768`, the height first."""

    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"

    @classmethod
    def parse(cls, text: str) -> "Shape | None":
        """Return the shape that a text such as `1024x768` stands for; None if it is no such text."""
        height, _, width = text.partition("x")
        return cls(int(height), int(width)) if height.isdecimal() and width.isdecimal() else None

    @property
    def area(self) -> int:
        """Number of pixels."""
        return self.height * self.width

    @property
    def ratio(self) -> float:
        """Width by height."""
        return self.width / self.height
