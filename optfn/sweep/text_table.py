"""Tables as text."""

from collections.abc import Collection, Sequence
from typing import Any


def in_columns(rows: Sequence[Sequence[str]], left: Collection[int] = ()) -> str:
    """The rows in lines, in columns of equal width, all to the right but those named."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def line(row: Sequence[str]) -> str:
        cells = [
            f"{cell:<{width}}" if i in left else f"{cell:>{width}}"
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    return "\n".join(map(line, rows))


def number(x: Any) -> str:
    """A number in four digits, all else as it is."""
    return f"{x:.4g}" if isinstance(x, float) else str(x)
