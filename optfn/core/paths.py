"""Values per leaf, chosen by the leaf's path."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cache
from typing import Any


class by_path:
    """A value per leaf of the params by patterns of its path, for labels, masks and depths.

    Wherever a tree or a function `(path, leaf) -> value` is taken:

        partition(groups, by_path({"**/bias": "plain", "encoder/**": "slow"}, default="fast"))
        adamw(1e-3, mask=by_path({"**/kernel": True}, default=False))

    It is data: it hashes, pickles, prints as the call that makes it and equals another of the same
    content, so an optimizer that is built again does not compile again. For a choice by shape or
    dtype use a function instead.

    In the place of a hyperparameter it gives numbers and schedules, of which each is a leaf, and
    `times` gives multiples of the default:

        adamw(by_path({"head/**": times(10)}, 1e-3), weight_decay=by_path({"**/bias": 0}, 0.1))

    A pattern is matched against the whole path, entry by entry: `*` matches any text inside an
    entry, `?` one character, `[0-9]` one of several, and an entry `**` any number of entries, also
    none. An entry also matches itself literally, as `layer[0]` does. The first matching pattern
    decides.

    Args:
        patterns: a dict from patterns to hashable values, or to arrays where they are numbers.
        default: the value of leaves that no pattern matches; None if every leaf must match one.

    Raises:
        ValueError: when it is used, if a pattern matches no leaf, or only leaves that earlier
            patterns match; or if a leaf matches no pattern and there is no default. In a group of a
            partition, patterns may also match leaves of the other groups.
    """

    def __init__(self, patterns: Mapping[str, Any], default: Any = None):
        if not isinstance(patterns, Mapping) or not patterns:
            raise TypeError(
                f"by_path(patterns=...) must be a dict {{pattern: value}}, found {patterns!r}."
            )
        for pattern, value in patterns.items():
            if not isinstance(pattern, str):
                raise TypeError(f"by_path(patterns=...): patterns are strings, found {pattern!r}.")
            if value is None:
                raise TypeError(f"by_path(patterns=...): {pattern!r} has None for a value.")
        self.patterns, self.default = tuple(patterns.items()), default
        try:
            hash(tuple(x for x in (*patterns.values(), default) if not _is_array(x)))
        except TypeError:
            raise TypeError(f"{self!r}: every value must hash.") from None

    def __call__(self, path: str, leaf: Any = None) -> Any:
        first = self._first(path)
        return self.default if first is None else dict(self.patterns)[first]

    def _first(self, path: str) -> str | None:
        """The pattern that decides."""
        return next((pattern for pattern, _ in self.patterns if matches(pattern, path)), None)

    def check(self, leaves: Sequence[str], places: Sequence[str], where: str) -> None:
        """Refuses patterns that decide for no leaf, and leaves without a value.

        Args:
            leaves: the paths of all leaves.
            places: the same, and the paths of None leaves.
            where: the argument that holds the patterns, for messages.
        """
        unused = [
            pattern
            for pattern, _ in self.patterns
            if places and not any(matches(pattern, path) for path in places)
        ]
        if unused:
            raise ValueError(
                f"{where}: no leaf matches {_listed(unused)}; there are {_listed(places)}."
                f"{_hint(unused, places)}"
            )
        deciding = {path: self._first(path) for path in places}
        for pattern, _ in self.patterns:
            if places and pattern not in deciding.values():
                before = dict.fromkeys(
                    str(deciding[path]) for path in places if matches(pattern, path)
                )
                raise ValueError(
                    f"{where}: {pattern!r} decides for no leaf, as all that it matches are taken "
                    f"by {_listed(list(before))} before it."
                )
        left_out = [path for path in leaves if self(path) is None]
        if left_out:
            raise ValueError(
                f"{where}: no pattern matches {_listed(left_out)}, and by_path has no default."
            )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, by_path) and self._content() == other._content()

    def __hash__(self) -> int:
        return hash(self._content())

    def _content(self) -> tuple[Any, ...]:
        # True == 1 == 1.0 in Python, and a mask is not a depth.
        types = [type(value) for _, value in self.patterns]
        return self.patterns, self.default, *types, type(self.default)

    def __repr__(self) -> str:
        default = "" if self.default is None else f", default={self.default!r}"
        return f"by_path({dict(self.patterns)!r}{default})"


@cache
def matches(pattern: str, path: str) -> bool:
    """Whether a pattern matches a path like `"encoder/0/kernel"`."""
    return _entries_match(_entries(pattern), _entries(path))


def _entries(path: str) -> list[str]:
    return path.split("/") if path else []


def _entries_match(pattern: list[str], path: list[str]) -> bool:
    if not pattern:
        return not path
    first, *rest = pattern
    if first == "**":
        return any(_entries_match(rest, path[i:]) for i in range(len(path) + 1))
    return bool(path) and _entry_matches(first, path[0]) and _entries_match(rest, path[1:])


def _entry_matches(pattern: str, entry: str) -> bool:
    # For fnmatch the pattern "layer[0]" does not match the key "layer[0]".
    return pattern == entry or fnmatchcase(entry, pattern)


def _hint(patterns: Sequence[str], paths: Sequence[str]) -> str:
    """The entry of a path that is most like one of a pattern, which no path has."""
    there = sorted({entry for path in paths for entry in _entries(path)})
    for entry in (entry for pattern in patterns for entry in _entries(pattern)):
        if entry != "**" and not any(_entry_matches(entry, x) for x in there):
            for near in get_close_matches(entry, there, 1):
                return f" For {entry!r} did you mean {near!r}?"
    return ""


def _is_array(value: Any) -> bool:
    return hasattr(value, "dtype") and hasattr(value, "shape")


def _listed(names: Sequence[str]) -> str:
    listed = ", ".join(map(repr, names[:5]))
    return listed if len(names) <= 5 else f"{listed} and {len(names) - 5} more"
