"""Trees with None instead of the leaves that a transform does not handle."""

import jax
import jax.numpy as jnp

from optfn.core.tree import PyTree, is_leaf


def view(tree: PyTree, mine: list[bool]) -> PyTree:
    """The tree with None instead of the leaves that are not `mine`."""
    leaves, treedef = jax.tree.flatten(tree)
    seen = treedef.unflatten([x if own else None for x, own in zip(leaves, mine, strict=True)])
    # None instead of a whole tree would mean that no params were given.
    return () if seen is None else seen


def merge(own: PyTree, others: PyTree, mine: list[bool]) -> PyTree:
    """`others` with its leaves that are `mine` replaced by those of `own`."""
    mine_leaves = iter(jax.tree.leaves(own))
    leaves, treedef = jax.tree.flatten(others)
    return treedef.unflatten(
        [next(mine_leaves) if m else x for x, m in zip(leaves, mine, strict=True)]
    )


def seen_in(view: PyTree, tree: PyTree) -> list[bool]:
    """Which leaves of the tree are in the view: the `mine` that made it."""
    return list(map(is_leaf, jax.tree.structure(tree).flatten_up_to(view)))


def floating(tree: PyTree) -> list[bool]:
    """Which leaves are floating point or complex; integer leaves can only be frozen."""
    return [jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in jax.tree.leaves(tree)]
