"""Which param a slot belongs to, by their paths."""

from collections.abc import Collection, Mapping
from typing import Any


def place_in(path: tuple[Any, ...], params: Collection[tuple[Any, ...]], slot: Any) -> slice | None:
    """Which part of a slot's path is the path of a param, the longest and then the first.

    A slot may be several arrays for a param, whose own entries stand behind the param's. Where the
    params are one array, all but scalars is its own.
    """
    if () in params:
        return slice(len(path), len(path)) if slot.shape else None
    lengths = range(len(path), 0, -1)
    parts = (slice(start, start + n) for n in lengths for start in range(len(path) - n + 1))
    return next((part for part in parts if path[part] in params), None)


def param_of(
    path: tuple[Any, ...], slot: Any, params: Mapping[tuple[Any, ...], Any]
) -> tuple[Any, ...] | None:
    """The path of the param that a slot of the same shape belongs to; None if there is none."""
    if () in params:
        return () if params[()].shape == slot.shape else None
    part = place_in(path, params, slot)
    return path[part] if part and params[path[part]].shape == slot.shape else None
