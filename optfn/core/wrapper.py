"""The base class of wrappers without slots of their own."""

from typing import Any

from optfn.core.data import child
from optfn.core.transform import Transform, as_transform
from optfn.core.tree import PyTree


class Wrapper(Transform):
    """A transform around another one, whose named slots are its own.

    A subclass writes `apply`. There `self.transform.apply_named(updates, slots, ctx)` returns the
    updates of the inner transform and its new slots:

        class doubled(optfn.Wrapper):
            def apply(self, updates, slots, ctx):
                updates, slots = self.transform.apply_named(updates, slots, ctx)
                return jax.tree.map(lambda u: 2 * u, updates), slots

    Args:
        transform: the inner transform.
    """

    transform: Transform = child(also_called="inner", converter=as_transform)

    @property
    def stateful(self) -> bool:
        return self.transform.stateful

    def init_slots(self, params: PyTree) -> Any:
        return self.transform.init_named(self.inner_params(params, "transform"))
