"""Trees with None in the place of the leaves that a transform is not for."""

import jax
import jax.numpy as jnp

from optfn.core.tree import PyTree, is_leaf


def view(tree: PyTree, mine: list[bool]) -> PyTree:
    """The tree with None in place of the leaves that are not mine."""
    leaves, treedef = jax.tree.flatten(tree)
    seen = treedef.unflatten([x if own else None for x, own in zip(leaves, mine, strict=True)])
    # None for the params as a whole would say that there are none.
    return () if seen is None else seen


def merge(own: PyTree, others: PyTree, mine: list[bool]) -> PyTree:
    """`others` with my leaves in their places."""
    mine_leaves = iter(jax.tree.leaves(own))
    leaves, treedef = jax.tree.flatten(others)
    return treedef.unflatten(
        [next(mine_leaves) if m else x for x, m in zip(leaves, mine, strict=True)]
    )


def seen_in(view: PyTree, tree: PyTree) -> list[bool]:
    """Which leaves of a tree a view of it has: the `mine` that it was made by."""
    return list(map(is_leaf, jax.tree.structure(tree).flatten_up_to(view)))


def floating(tree: PyTree) -> list[bool]:
    """Which leaves have fractions, as those have that are not frozen."""
    return [jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in jax.tree.leaves(tree)]
