"""Many small params as one vector for each dtype, where an optimizer takes all of them as one."""

from typing import Any

import jax

from optfn.compose.chain import chain
from optfn.compose.flatten import pack, unpack
from optfn.core.transform import Transform
from optfn.core.tree import PyTree
from optfn.optimizers.quasi_newton.lbfgs import scale_by_lbfgs
from optfn.optimizers.quasi_newton.lbfgsb import scale_by_lbfgsb
from optfn.optimizers.quasi_newton.search import LineSearch
from optfn.transforms.scale import negate, scale, scale_by_learning_rate

# Entries of a leaf that is worth no operations of its own. It may be sharded, and is gathered.
SMALL = 4096
OF_ONE_VECTOR = (scale_by_lbfgs, scale_by_lbfgsb, LineSearch, negate, scale, scale_by_learning_rate)


class Joined:
    """Trees like `like` with their small leaves in one vector for each dtype of `like`.

    A program of hundreds of scalars takes XLA minutes, one of their vector a second.

    Args:
        like: a tree of arrays.
    """

    def __init__(self, like: PyTree):
        self.leaves, self.treedef = jax.tree.flatten(like)
        self.is_small = [x.size <= SMALL for x in self.leaves]
        self.small = [x for x, small in zip(self.leaves, self.is_small, strict=True) if small]

    def join(self, tree: PyTree) -> tuple[PyTree, list[Any]]:
        """The vectors, and the leaves that are large."""
        pairs = list(zip(jax.tree.leaves(tree), self.is_small, strict=True))
        small = pack([x for x, is_small in pairs if is_small], self.small)
        return small, [x for x, is_small in pairs if not is_small]

    def apart(self, joined: tuple[PyTree, list[Any]]) -> PyTree:
        """The inverse of `join`."""
        small, large = iter(unpack(joined[0], self.small)), iter(joined[1])
        leaves = [next(small if is_small else large) for is_small in self.is_small]
        return self.treedef.unflatten(leaves)


def joined_for(tx: Transform, params: PyTree) -> Joined | None:
    """How to join the params for an optimizer; None if it would be another or nothing is won."""
    joined = Joined(params)
    if len(joined.small) < 2 or not is_of_one_vector(tx):
        return None
    return joined


def is_of_one_vector(tx: Transform) -> bool:
    """Whether an optimizer takes all params together for one vector, up to rounding."""
    if type(tx) is chain:
        return all(map(is_of_one_vector, tx.stages))
    return isinstance(tx, OF_ONE_VECTOR)
