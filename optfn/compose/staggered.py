"""Costly refreshes, one leaf after the other."""

from typing import Any

from optfn.core.state import Context
from optfn.core.transform import Transform
from optfn.core.tree import PyTree
from optfn.core.turns import in_turn
from optfn.core.wrapper import Wrapper


class staggered(Wrapper):
    """Refreshes the matrices of each leaf at a step of its own, so that no step takes long.

    SOAP, Shampoo and their kin compute bases and roots every few steps, for all leaves in the same
    one, which then takes many times as long as the others. In turns every step takes about as long
    as the mean:

        tx = staggered(soap(3e-3, precondition_frequency=10))

    Of n leaves with matrices, leaf i is due floor(i * every / n) steps after the first one: each
    once in `every` steps, and at most ceil(n / every) in the same. What must be there from the
    first step on is still computed in it, for all. The turns follow from the step and the tree
    alone, so a run goes on from its state with or without them. A stack of matrices in one leaf, as
    of layers in a scan, is refreshed at once, and each group of a `partition` counts its own
    leaves.

    Args:
        transform: an optimizer or a stage, of which something is refreshed every few steps: `soap`,
            `kl_soap`, `kl_shampoo`, `shampoo`, `splus`, `kron`, `psgd_pro`, `galore`, or `apollo`
            with `proj="svd"`.

    Raises:
        ValueError: nothing in it is refreshed leaf by leaf.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if not _refreshes(self.transform):
            raise ValueError(
                f"staggered(transform=...): nothing in {self.transform!r} is refreshed leaf by "
                "leaf every few steps, as the bases of soap are."
            )

    def apply(self, updates: PyTree, slots: Any, ctx: Context) -> tuple[PyTree, Any]:
        with in_turn():
            return self.transform.apply_named(updates, slots, ctx)


def _refreshes(tx: Transform) -> bool:
    return getattr(tx, "refreshes", False) or any(map(_refreshes, tx.contents))
