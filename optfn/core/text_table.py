"""Tables as text."""

from collections.abc import Collection, Sequence
from typing import Any


def in_columns(rows: Sequence[Sequence[str]], left: Collection[int] = ()) -> str:
    """A line for each row; columns are aligned to the right, or to the left if in `left`."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def line(row: Sequence[str]) -> str:
        cells = [
            f"{cell:<{width}}" if i in left else f"{cell:>{width}}"
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    return "\n".join(map(line, rows))


def number(x: Any) -> str:
    """A float in four digits, anything else as `text` gives it."""
    return f"{x:.4g}" if isinstance(x, float) else text(x)


def text(x: Any) -> str:
    """A function by its name, anything else as `str` gives it."""
    name = getattr(x, "__name__", None)
    return name if callable(x) and isinstance(name, str) else str(x)
