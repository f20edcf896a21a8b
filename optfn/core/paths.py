"""Values per leaf by the leaf's path."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cache
from typing import Any


class by_path:
    """A value per leaf of the params by patterns of its path, for labels, masks and depths.

    Wherever a tree or a function `(path, leaf) -> value` is taken:

        partition(groups, by_path({"**/bias": "plain", "encoder/**": "slow"}, default="fast"))
        adamw(1e-3, mask=by_path({"**/kernel": True}, default=False))

    It is data: it hashes, pickles, prints as the call that makes it and equals another of the same
    content, so an optimizer that is built anew does not compile again. For a choice by shape or
    dtype give a function of your own.

    A pattern is matched against the whole path, entry by entry: `*` stands for any text inside an
    entry, `?` for one character, `[0-9]` for one of several, and an entry `**` for any number of
    entries, none included. An entry also stands for itself as it is written, as `layer[0]` does.
    The first pattern that matches decides.

    Args:
        patterns: a dict from patterns to values, which hash.
        default: the value of leaves that no pattern matches; None if there should be none.

    Raises:
        ValueError: where it is used, a pattern that matches no leaf, or only such as patterns
            before it have taken; or a leaf that no pattern matches where there is no default. In a
            group of a partition the leaves of the other groups count for the former.
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
            hash(self)
        except TypeError:
            raise TypeError(f"{self!r}: every value must hash.") from None

    def __call__(self, path: str, leaf: Any = None) -> Any:
        first = self._first(path)
        return self.default if first is None else dict(self.patterns)[first]

    def _first(self, path: str) -> str | None:
        """The pattern that decides."""
        return next((pattern for pattern, _ in self.patterns if matches(pattern, path)), None)

    def check(self, leaves: Sequence[str], places: Sequence[str], where: str) -> None:
        """Refuses patterns that decide for no leaf and leaves without a value.

        Args:
            leaves: the paths of all leaves.
            places: these and the paths where None stands for one.
            where: the argument that this was given as.
        """
        unused = [
            pattern
            for pattern, _ in self.patterns
            if places and not any(matches(pattern, path) for path in places)
        ]
        if unused:
            raise ValueError(
                f"{where}: no leaf matches {_listed(unused)}; there are {_listed(places)}."
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

    def _content(self) -> tuple:
        # True == 1 == 1.0 in Python, and a mask is not a depth.
        types = [type(value) for _, value in self.patterns]
        return self.patterns, self.default, *types, type(self.default)

    def __repr__(self) -> str:
        default = "" if self.default is None else f", default={self.default!r}"
        return f"by_path({dict(self.patterns)!r}{default})"


@cache
def matches(pattern: str, path: str) -> bool:
    """Whether a path like `"encoder/0/kernel"` is one of those that a pattern stands for."""
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
    # The key "layer[0]" is none of those that fnmatch has the pattern "layer[0]" stand for.
    return pattern == entry or fnmatchcase(entry, pattern)


def _listed(names: Sequence[str]) -> str:
    listed = ", ".join(map(repr, names[:5]))
    return listed if len(names) <= 5 else f"{listed} and {len(names) - 5} more"
