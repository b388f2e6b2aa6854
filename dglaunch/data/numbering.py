"""The indices of a table's rows: each is used once."""


class Numbering:
    """The indices that rows have had so far, and where those rows stand."""

    def __init__(self) -> None:
        self._labels: dict[int, str] = {}

    def __len__(self) -> int:
        """Return how many rows there were."""
        return len(self._labels)

    def claim(self, index: int, number: int, label: str) -> str | None:
        """Note the index of a row, and return which row had it before; None: none, or none that is known yet.

        Args:
            number: of the row in the table.
        """
        before = self._labels.setdefault(index, label)
        return None if before is label else before

    @property
    def least(self) -> int:
        """The least index."""
        return min(self._labels)

    @property
    def greatest(self) -> int:
        """The greatest index."""
        return max(self._labels)
