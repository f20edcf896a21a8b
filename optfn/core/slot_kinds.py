"""What the entries of a slot can be, which a rule declares and a storage format needs to know.

    class Moments(NamedTuple):
        mu: Signed
        nu: NonNegative

A slot that declares nothing is exact: counters, factors and bases of matrices, copies of params.
"""

import sys
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, TypeAlias

import jax

from optfn.core.tree import PyTree

Kind = Literal["signed", "non_negative"]
SIGNED: Kind = "signed"
NON_NEGATIVE: Kind = "non_negative"

# A tree like the params of entries that may be rounded: an error of a thousandth of the largest
# entries beside one does no harm.
Signed: TypeAlias = Annotated[PyTree, SIGNED]
# The same for entries that are never negative and are divided by: their relative error counts, and
# one that is not zero must not become zero.
NonNegative: TypeAlias = Annotated[PyTree, NON_NEGATIVE]


def slot_kinds(slots: Any, is_leaf: Callable[[Any], bool]) -> list[Kind | None]:
    """The declared kind of every leaf of a state, in flattening order; None for what is exact.

    Args:
        slots: slots, by name or in a `State`.
        is_leaf: which nodes are leaves too.
    """
    return list(_kinds(slots, None, is_leaf))


def _kinds(tree: Any, kind: Kind | None, is_leaf: Callable[[Any], bool]) -> Iterator[Kind | None]:
    if kind is not None or is_leaf(tree) or jax.tree_util.all_leaves([tree]):
        for _ in jax.tree.leaves(tree, is_leaf=is_leaf):
            yield kind
        return
    declared = _declared(type(tree)) if hasattr(tree, "_fields") else {}
    names = getattr(type(tree), "_fields", ())
    children, _ = jax.tree_util.default_registry.flatten_one_level(tree)  # pyright: ignore
    for i, child in enumerate(children):
        yield from _kinds(child, declared.get(names[i]) if names else None, is_leaf)


def _declared(cls: type[Any]) -> dict[str, Kind]:
    """The kinds of a NamedTuple's fields; annotations that cannot be read here say none."""
    found = {}
    for base in reversed(cls.__mro__):
        for name, hint in vars(base).get("__annotations__", {}).items():
            hint = getattr(hint, "__forward_arg__", hint)
            if isinstance(hint, str):
                try:
                    hint = eval(hint, vars(sys.modules[base.__module__]))
                except (AttributeError, NameError, SyntaxError, TypeError):
                    continue
            kind = getattr(hint, "__metadata__", (None,))[0]
            if kind in (SIGNED, NON_NEGATIVE):
                found[name] = kind
    return found
