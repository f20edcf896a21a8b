"""What the entries of a slot can be, which a rule declares and a storage format needs to know.

    class Moments(NamedTuple):
        mu: Signed
        nu: NonNegative

A slot that declares nothing is exact: counters, factors and bases of matrices, copies of params.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_type_hints

import jax

from optfn.core.tree import PyTree

Kind = Literal["signed", "non_negative"]
SIGNED: Kind = "signed"
NON_NEGATIVE: Kind = "non_negative"

# A tree like the params of entries that may be rounded: an error of a thousandth of the largest
# entries beside one does no harm.
Signed = Annotated[PyTree, SIGNED]
# The same for entries that are never negative and are divided by: their relative error counts, and
# one that is not zero must not become zero.
NonNegative = Annotated[PyTree, NON_NEGATIVE]


def slot_kinds(slots: Any) -> list[Kind | None]:
    """The declared kind of every leaf of a state, in flattening order; None for what is exact."""
    return list(_kinds(slots, None))


def _kinds(tree: Any, kind: Kind | None) -> Iterator[Kind | None]:
    if kind is None and hasattr(tree, "_fields"):
        declared = _declared(type(tree))
        for name, value in zip(type(tree)._fields, tree, strict=True):
            yield from _kinds(value, declared.get(name))
    elif kind is None and not jax.tree_util.all_leaves([tree]):
        children, _ = jax.tree_util.default_registry.flatten_one_level(tree)
        for child in children:
            yield from _kinds(child, None)
    else:
        yield from [kind] * len(jax.tree.leaves(tree))


def _declared(cls: type) -> dict[str, Kind]:
    hints = get_type_hints(cls, include_extras=True)
    found = {name: getattr(hint, "__metadata__", (None,))[0] for name, hint in hints.items()}
    return {name: kind for name, kind in found.items() if kind in (SIGNED, NON_NEGATIVE)}
